"""A context and the interface that fuses its layers: what heads read of prompted speech."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from speechfuse.contracts import Context, Interface, ReadsPrefix
from speechfuse.ops import normalise
from speechfuse.types import Frames, LayerStack, Sequences, Tokens, Where


class PromptedFusion(nn.Module):
    """frames, prompt -> layers of the context, normalised -> interface -> last norm -> frames.

    Only positions that are read are fused. Layers of a pre-norm transformer grow with depth, so
    every hidden state is normalised first, without learned scale, as an encoder's may be.
    """

    context: Context
    interface: Interface

    def __init__(self, context: Context, interface: Interface, *, normalize: str) -> None:
        """normalize: none, layer_norm or unit_rms, which leaves a pretrained last layer alone."""
        super().__init__()
        self.context, self.interface, self.normalize = context, interface, normalize
        self.out_dim, self.frame_rate = interface.out_dim, context.spec.frame_rate

    def forward(
        self,
        frames: Frames,
        task: str,
        where: Sequence[Where],
        text: Tokens | None = None,
        prompts: Sequence[str] | None = None,
    ) -> list[Frames]:
        """What is read at each of some places, from one pass. text: what is written there."""
        sequences: Sequences = self.context(frames, task, text, prompts)
        heard = self.prefix_scores(sequences.at("prefix")) if self.reads_prefix else None
        return [self.fused(sequences.at(one), task, heard) for one in where]

    @property
    def reads_prefix(self) -> bool:
        """Whether the interface weighs the layers of an utterance as a whole."""
        return isinstance(self.interface, ReadsPrefix) and self.interface.reads_prefix

    def prefix_scores(self, prefix: LayerStack) -> Tensor | None:
        """What they are weighed by, if the interface does. prefix: at speech and prompt."""
        if not self.reads_prefix:
            return None
        assert isinstance(self.interface, ReadsPrefix)
        return self.interface.prefix_scores(self.normalised(prefix))

    def normalised(self, stack: LayerStack) -> LayerStack:
        """The layers as the interface reads them."""
        if self.normalize == "none":
            return stack
        layers = normalise(stack.stacked(), self.normalize)  # together: a token at a time is little
        return LayerStack(layers.unbind(), stack.lengths, stack.frame_rate)

    def fused(self, stack: LayerStack, task: str, heard: Tensor | None) -> Frames:
        """What a head reads of some positions. heard: what `prefix_scores` found."""
        stack = self.normalised(stack)
        if heard is not None:
            assert isinstance(self.interface, ReadsPrefix)
            fused = self.interface.mixed(stack, task, heard)
        else:
            fused = self.interface(stack, task)
        hidden = fused.hidden
        if self.out_dim == self.context.spec.dim:
            hidden = self.context.finish(hidden)
        return Frames(hidden, fused.lengths, fused.frame_rate)
