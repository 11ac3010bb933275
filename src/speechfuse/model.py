"""Fusion, context and heads put together. Knows the roles and no concrete part but text heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speechfuse.context.reading import PromptedFusion
from speechfuse.contracts import Fusion, Head, Interface, LossSum, ScoresClasses, Upstream
from speechfuse.errors import ShapeError
from speechfuse.heads.text import Text
from speechfuse.types import Frames, LayerStack, Tokens, Waveforms, Where

SHARED = "all_tasks"


class FusionModel(nn.Module):
    """The trained part: stacks -> fusion -> head, or stacks -> fusion -> context -> fusion -> head.

    Frozen upstreams are not inside, their stacks come from a store. One that is tuned is, and its
    input is the waveforms.
    """

    def __init__(
        self,
        fusions: Mapping[str, Fusion],
        heads: Mapping[str, Head],
        before: Mapping[str, nn.Module] | None = None,
        upstreams: Sequence[Upstream] = (),
        reader: PromptedFusion | None = None,
        places: Mapping[str, Where] | None = None,
    ) -> None:
        """fusions: by task, or one under SHARED that all tasks read. heads: by task.

        before: what is done to the frames of a task before its head reads them, if anything.
        upstreams: those that are tuned, in recipe order. reader: the prompted transformer that all
        tasks share, if there is one. places: which of its positions a task's head reads.
        """
        super().__init__()
        self.places = dict(places or {})
        self.upstreams = nn.ModuleList(upstreams)
        self.fusions = nn.ModuleDict(fusions)
        self.before = nn.ModuleDict(before or {})
        self.reader = reader
        self.heads = nn.ModuleDict(heads)

    def fusion_of(self, task: str) -> Fusion:
        fusion = self.fusions[SHARED if SHARED in self.fusions else task]
        assert isinstance(fusion, Fusion)
        return fusion

    def head_of(self, task: str) -> Head:
        head = self.heads[task]
        assert isinstance(head, Head)
        return head

    def stacks(self, inputs: Sequence[Waveforms | LayerStack]) -> list[LayerStack]:
        """One for each upstream: what a store gave, or what a tuned upstream makes of waveforms."""
        tuned = iter(self.upstreams)
        return [next(tuned)(one) if isinstance(one, Waveforms) else one for one in inputs]

    @torch.no_grad()
    def hear(
        self, upstreams: Sequence[Upstream | None], wav: Waveforms, tasks: Sequence[str]
    ) -> dict[str, Frames]:
        """What the fusion of each task makes of audio, from one pass over the upstreams.

        Layers go into the fusions while upstreams make them, in step, so that none holds its
        stack; unless a part needs all layers of a frame together.

        upstreams: in recipe order; None for one that is tuned, which is inside.
        """
        tuned = iter(self.upstreams)
        parts = (next(tuned) if one is None else one for one in upstreams)
        at_work = [part for part in parts if isinstance(part, Upstream)]
        specs = [part.plan.spec for part in at_work]
        given = [part.stream(wav) for part in at_work]
        lengths = [size for size, _ in given]
        try:
            streams = {name: self.fusion_of(name).stream(name, specs, lengths) for name in tasks}
        except ShapeError:  # which says what needs them together
            stacks = [
                LayerStack(tuple(layers), size, spec.frame_rate)
                for (size, layers), spec in zip(given, specs, strict=True)
            ]
            return {name: self.fusion_of(name)(stacks, name) for name in tasks}
        made = [iter(layers) for _, layers in given]
        in_step = sorted(
            (index / max(1, spec.num_layers - 1), model, index)
            for model, spec in enumerate(specs)
            for index in range(spec.num_layers)
        )
        for _, model, index in in_step:
            hidden = next(made[model])
            for stream in streams.values():
                stream.accumulate(index, hidden, model)
        return {name: stream.result() for name, stream in streams.items()}

    def fuse(self, inputs: Sequence[Waveforms | LayerStack] | Frames, task: str) -> Frames:
        """What the task's head reads, or the context if there is one.

        inputs: of the upstreams, or what the fusion made of them already.
        """
        if isinstance(inputs, Frames):
            frames = inputs
        else:
            frames = self.fusion_of(task)(self.stacks(inputs), task)
        if task in self.before:
            frames = self.before[task](frames)
        return frames

    def read(self, frames: Frames, task: str, prompts: Sequence[str] | None = None) -> Frames:
        """What a head that writes no text reads of them, through the context if there is one."""
        if self.reader is None:
            return frames
        found: Frames = self.reader(frames, task, [self.places[task]], prompts=prompts)[0]
        return found

    def loss(self, inputs: Sequence[Waveforms | LayerStack], task: str, targets: Tokens) -> LossSum:
        frames, head = self.fuse(inputs, task), self.head_of(task)
        if self.reader is None or not isinstance(head, Text):
            return head.loss(self.read(frames, task), targets)
        places: list[Where] = ["text", "speech"] if head.ctc else ["text"]
        text, *speech = self.reader(frames, task, places, text=targets)
        loss = head.loss(text, targets)
        return head.with_ctc(loss, speech[0], targets) if speech else loss

    def context_reading(
        self, inputs: Sequence[Waveforms | LayerStack], task: str, targets: Tokens
    ) -> tuple[Interface, LayerStack]:
        """What fuses the layers of the context, and the layers where the task's head reads them."""
        assert self.reader is not None
        writes = isinstance(self.head_of(task), Text)
        frames = self.fuse(inputs, task)
        sequences = self.reader.context(frames, task, targets if writes else None)
        return self.reader.interface, self.reader.normalised(sequences.at(self.places[task]))

    def predict(
        self,
        inputs: Sequence[Waveforms | LayerStack] | Frames,
        task: str,
        prompts: Sequence[str] | None = None,
    ) -> list[Any]:
        """prompts: in words, one for each utterance, for a context that was trained with such."""
        return self.answer(self.fuse(inputs, task), task, prompts)

    def answer(self, frames: Frames, task: str, prompts: Sequence[str] | None = None) -> list[Any]:
        """The same of what `fuse` gave."""
        head = self.head_of(task)
        if self.reader is not None and isinstance(head, Text):
            from speechfuse.decoding import generate  # transformers takes seconds to import

            return generate(self.reader, head, frames, task, prompts)
        return head.predict(self.read(frames, task, prompts))

    def logits(self, inputs: Sequence[Waveforms | LayerStack] | Frames, task: str) -> Tensor:
        """Unnormalised scores of the classes, (B, C), of a task whose head predicts one."""
        head = self.head_of(task)
        assert isinstance(head, ScoresClasses), f"{type(head).__name__} has no logits"
        return head.logits(self.read(self.fuse(inputs, task), task))

    def parameters_of(self, task: str) -> int:
        """Trained parameters that this task uses, those of tuned upstreams with them."""
        return sum(
            p.numel()
            for name, p in self.named_parameters()
            if self.task_of(name) in (None, task)
            and (p.requires_grad or not name.startswith("upstreams."))
        )

    def task_of(self, name: str) -> str | None:
        """Whose a parameter of this name is; None if all tasks share it.

        What is a task's own lies in a dictionary whose keys are tasks.
        """
        owner: Any = self
        for part in name.split("."):
            named = isinstance(owner, nn.ModuleDict | nn.ParameterDict)
            if named and owner.keys() <= self.heads.keys():
                return part
            owner = getattr(owner, part)
        return None
