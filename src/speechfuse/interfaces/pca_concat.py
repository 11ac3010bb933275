"""Principal components of every layer, side by side (Shih & Harwath 2024, arXiv:2406.12209)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from speechfuse.contracts import Interface
from speechfuse.errors import DataError, RunError
from speechfuse.ops import exporting, length_mask
from speechfuse.types import Count, Frames, LayerStack, StackSpec


class PCAConcat(Interface):
    """hidden = [(stack.layers[l] - means[l]) @ axes[l] for every layer l]

    axes[l] are the directions in which the valid frames of layer l vary most, largest first. They
    are fitted to training utterances and kept with the run; nothing is learned by gradient. The
    paper's 60 components of 13 layers are about as wide as one layer of 768.
    """

    means: Tensor
    axes: Tensor
    fitted: Tensor

    def __init__(self, spec: StackSpec, *, tasks: Sequence[str], components: Count = 60) -> None:
        """components: of each layer; fewer, with a warning, where layers are narrower."""
        super().__init__()
        if components > spec.dim:
            logging.getLogger(__name__).warning(
                "pca_concat: components reduced from %d to %d, the width of a layer",
                components,
                spec.dim,
            )
            components = spec.dim
        self.out_dim = spec.num_layers * components
        self.register_buffer("means", torch.zeros(spec.num_layers, spec.dim))
        self.register_buffer("axes", torch.zeros(spec.num_layers, spec.dim, components))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, stacks: Iterable[LayerStack]) -> None:
        """One pass that keeps means and scatters, (L, D) and (L, D, D) in double precision.

        A batch's own mean and scatter are merged into those of the frames before it (Chan et al.
        1983), so that no large sums are subtracted from each other.

        Raises:
            DataError: fewer than two frames.
        """
        means = torch.zeros(self.means.shape, dtype=torch.float64)
        scatters = torch.zeros(*means.shape, means.shape[1], dtype=torch.float64)
        count = 0
        for stack in stacks:
            valid = length_mask(stack.lengths, stack.layers[0].shape[1])
            new = int(valid.sum())
            if not new:
                continue
            for layer, mean, scatter in zip(stack.layers, means, scatters, strict=True):
                frames = layer[valid].to("cpu", torch.float64)
                own = frames.mean(0)
                shift = own - mean
                scatter.addmm_((frames - own).T, frames - own)
                scatter.addr_(shift, shift, alpha=count * new / (count + new))
                mean.add_(shift, alpha=new / (count + new))
            count += new
        if count < 2:
            raise DataError(f"pca_concat: {count} frames to fit to, at least 2 needed")
        self.means.copy_(means)
        for axes, scatter in zip(self.axes, scatters, strict=True):
            axes.copy_(_largest(scatter, axes.shape[1]))
        self.fitted.fill_(True)

    def forward(self, stack: LayerStack, task: str) -> Frames:
        if not exporting() and not self.fitted:
            raise RunError("pca_concat is not fitted; train does that, or call its fit(stacks)")
        parts = [
            (layer - mean) @ axes
            for layer, mean, axes in zip(stack.layers, self.means, self.axes, strict=True)
        ]
        return Frames(torch.cat(parts, dim=-1), stack.lengths, stack.frame_rate)


def _largest(scatter: Tensor, components: int) -> Tensor:
    """The first principal axes, (D, components); the largest entry of each is positive."""
    axes: Tensor = torch.linalg.eigh(scatter).eigenvectors.flip(1)[:, :components]
    peaks = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return axes * torch.where(peaks < 0, -1.0, 1.0)
