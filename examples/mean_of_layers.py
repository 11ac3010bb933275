"""A layer fusion of your own in one file: the plain mean of all layers.

speechfuse train recipe.yaml --out runs/mean \
    'fusion.interface={kind: "mean_of_layers:MeanOfLayers"}'
"""

from collections.abc import Sequence

from speechfuse.contracts import Interface
from speechfuse.types import Frames, LayerStack, StackSpec


class MeanOfLayers(Interface):
    """hidden = mean over l of stack.layers[l]; the options are the keyword-only arguments."""

    def __init__(self, spec: StackSpec, *, tasks: Sequence[str], skip: int = 0) -> None:
        """skip: layers left out at the bottom."""
        super().__init__()
        self.skip, self.out_dim = skip, spec.dim

    def forward(self, stack: LayerStack, task: str) -> Frames:
        used = stack.layers[self.skip :]
        hidden = sum(used[1:], start=used[0]) / len(used)
        return Frames(hidden, stack.lengths, stack.frame_rate)
