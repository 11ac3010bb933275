"""What is exported: samples in, and what every task's head makes of them out, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speechfuse.audio import SAMPLE_RATE
from speechfuse.context.prompted_transformer import prompt_ids
from speechfuse.contracts import Head, ScoresClasses, Upstream
from speechfuse.errors import ExportError
from speechfuse.export.lstm import replace_lstms
from speechfuse.export.writing import Decoder, Prompted
from speechfuse.heads.ctc_head import CTCHead
from speechfuse.heads.diarization import Diarization
from speechfuse.heads.text import Text
from speechfuse.model import FusionModel
from speechfuse.ops import length_mask, zero_padding
from speechfuse.types import Frames, LayerStack, Waveforms
from speechfuse.upstreams.huggingface import HuggingFace

INPUTS = ("samples", "lengths")


class Graph(nn.Module):
    """Encoders, fusion and heads of a run, of which no size is fixed but features and layers.

    Each utterance is computed from its own samples alone, whatever it is padded to.
    """

    def __init__(self, upstreams: Sequence[Upstream], model: FusionModel) -> None:
        """upstreams: all of them in recipe order, tuned ones as the model has them.

        Raises:
            ExportError: a part for which no graph can be made.
        """
        super().__init__()
        self.upstreams, self.model = nn.ModuleList(upstreams), model
        tasks = [*model.heads]
        self.prompted = None if model.reader is None else Prompted(model.reader, tasks)
        self.outputs = {task: self._names(task) for task in tasks}
        self.inputs = [*INPUTS, *(f"{task}.prompt" for task in self.worded)]
        replace_lstms(self)
        self.requires_grad_(False).eval()

    @property
    def worded(self) -> list[str]:
        """Tasks that take a prompt in words."""
        known = {} if self.prompted is None else self.prompted.context.worded
        return [task for task in self.outputs if task in known]

    @property
    def names(self) -> list[str]:
        """Of all outputs, in order."""
        return [name for names in self.outputs.values() for name in names]

    def forward(self, samples: Tensor, lengths: Tensor, *prompts: Tensor) -> tuple[Tensor, ...]:
        """(B, S) float32 at 16 kHz, and how many samples of each are its own (B,) int64.

        prompts: (N,) int64 for each task that takes one in words, see `prompt_ids`.
        """
        silent = samples * length_mask(lengths, samples.shape[1])
        wav = Waveforms(silent, lengths, SAMPLE_RATE)
        stacks = [_stack(upstream, wav) for upstream in self.upstreams]
        asked = dict(zip(self.worded, prompts, strict=True))
        return tuple(
            tensor
            for task in self.outputs
            for tensor in self._answered(self.model.fuse(stacks, task), task, asked.get(task))
        )

    def decoders(self) -> dict[str, Decoder]:
        """By task, of those that write."""
        heads = {task: self.model.head_of(task) for task in self.outputs}
        assert self.prompted is not None or not any(isinstance(h, Text) for h in heads.values())
        return {
            task: Decoder(self.prompted, head, task)
            for task, head in heads.items()
            if self.prompted is not None and isinstance(head, Text)
        }

    def _names(self, task: str) -> list[str]:
        head = self.model.head_of(task)
        if isinstance(head, CTCHead):
            return [f"{task}.log_probs", f"{task}.lengths"]
        if isinstance(head, Text):
            heard = self.prompted is not None and self.prompted.reader.reads_prefix
            names = [f"{task}.logits", f"{task}.valid", f"{task}.cache"]
            names += [f"{task}.heard"] if heard else []
            times = [f"{task}.log_probs", f"{task}.lengths"]
            return names if head.branch is None else names + times
        if isinstance(head, Diarization):
            return [f"{task}.logits", f"{task}.lengths"]
        if isinstance(head, ScoresClasses):
            return [f"{task}.logits"]
        if _embeds(head):
            return [f"{task}.vector"]
        raise ExportError(
            f"head {type(head).__name__} of task '{task}' has none of log_probs, logits and "
            "embedding, which a graph could give; add one"
        )

    def _answered(self, frames: Frames, task: str, prompt: Tensor | None) -> Sequence[Tensor]:
        """What the names say, of what the task's head or the context reads."""
        head: Any = self.model.head_of(task)
        if self.prompted is not None:
            prefix = self.prompted.prefix(frames, task, prompt)
            heard = self.prompted.heard(prefix)
            stack = self.prompted.at(prefix, self.model.places[task])
            frames = self.prompted.reader.fused(stack, task, heard)
            if isinstance(head, Text):
                logits = head.logits(frames.hidden)[:, 0]
                valid = length_mask(prefix.total, prefix.layers[0].shape[1])
                given = [logits, valid, prefix.cache]
                given += [] if heard is None else [heard]
                if head.branch is None:
                    return given
                speech = self.prompted.reader.fused(self.prompted.at(prefix, "speech"), task, heard)
                return [*given, head.ctc_log_probs(speech), speech.lengths]
        return head_outputs(head, frames)


def head_outputs(head: Any, frames: Frames) -> Sequence[Tensor]:
    """Scores of frames with their lengths, of classes, or a vector, of what a head reads."""
    if isinstance(head, CTCHead):
        return head.log_probs(frames)
    if isinstance(head, Diarization):
        return head.logits(frames), frames.lengths
    if isinstance(head, ScoresClasses):
        return [head.logits(frames).float()]
    vector: Tensor = head.embedding(frames).float()
    return [vector]


def _embeds(head: Head) -> bool:
    return head.predicts == "vector" and hasattr(head, "embedding")


def _stack(upstream: nn.Module, wav: Waveforms) -> LayerStack:
    """The layers as modules make them, without what only a batch of known sizes can do."""
    if not isinstance(upstream, HuggingFace):
        stack: LayerStack = upstream(wav)
        return stack
    lengths: Tensor = upstream.states.frames(wav.lengths)
    states = enumerate(upstream.states.states(wav, frozen=False))
    layers = tuple(zero_padding(h, lengths) for number, h in states if number in upstream.layers)
    return LayerStack(layers, lengths, upstream.plan.spec.frame_rate)


def example(shortest: int, prompts: Sequence[str]) -> tuple[Tensor, ...]:
    """Two clips to follow through the graph, not shorter than the encoders' window, and prompts."""
    size = max(4000, 2 * shortest)
    generator = torch.Generator().manual_seed(0)
    samples = 0.1 * torch.randn(2, size, generator=generator)
    lengths = torch.tensor([size, size - max(0, size - shortest) // 3])
    return samples, lengths, *map(prompt_ids, prompts)
