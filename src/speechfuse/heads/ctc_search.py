"""From frame-wise log-probabilities to tokens: greedy, prefix beam, or flashlight-text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from speechfuse.errors import RecipeError

BLANK = 0


def greedy(log_probs: Tensor) -> list[int]:
    """The best token of each frame, (T, C), repetitions and blanks taken out."""
    best: list[int] = log_probs.argmax(-1).unique_consecutive().tolist()
    return [token for token in best if token != BLANK]


def prefix_beam(log_probs: Tensor, beam_size: int = 16, floor: float = -8.0) -> list[int]:
    """The most probable token sequence, summed over its alignments (Hannun et al. 2014).

    Each prefix carries two probabilities: of ending in a blank, and in its last token. Tokens
    below `floor` in a frame are not tried.
    """
    never = -math.inf
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, never)}
    for frame in log_probs.tolist():
        grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [never, never])
        tried = [(t, p) for t, p in enumerate(frame) if p > floor or t == BLANK]
        for prefix, (blank, token) in beam.items():
            both = _add(blank, token)
            for t, p in tried:
                if t == BLANK:
                    grown[prefix][0] = _add(grown[prefix][0], both + p)
                elif prefix and t == prefix[-1]:
                    grown[prefix][1] = _add(grown[prefix][1], token + p)
                    longer = (*prefix, t)  # the same token again needs a blank between
                    grown[longer][1] = _add(grown[longer][1], blank + p)
                else:
                    longer = (*prefix, t)
                    grown[longer][1] = _add(grown[longer][1], both + p)
        best = sorted(grown.items(), key=lambda item: -_add(*item[1]))[:beam_size]
        beam = {prefix: (b, t) for prefix, (b, t) in best}
    best_prefix = max(beam.items(), key=lambda item: _add(*item[1]))[0]
    return list(best_prefix)


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


class FlashlightSearch:
    """Lexicon-free beam search of flashlight-text, with a KenLM language model over characters."""

    def __init__(
        self, symbols: Sequence[str], language_model: str | None, weight: float, beam_size: int
    ) -> None:
        """Raises RecipeError if the package or the language model file is missing."""
        try:
            from flashlight.lib.text import decoder
            from flashlight.lib.text.dictionary import Dictionary
        except ImportError as error:
            raise RecipeError(
                "search 'flashlight' needs the package flashlight-text; install it with: "
                "pip install 'speechfuse[lm]'"
            ) from error
        # KenLM files hold words without spaces; a space between words is written as |.
        names = ["<blank>", *("|" if s == " " else s for s in symbols)]
        options = decoder.LexiconFreeDecoderOptions(
            beam_size=beam_size,
            beam_size_token=len(names),
            beam_threshold=50.0,
            lm_weight=weight if language_model else 0.0,
            sil_score=0.0,
            log_add=True,
            criterion_type=decoder.CriterionType.CTC,
        )
        self._model: Any = decoder.ZeroLM()
        if language_model:
            try:
                self._model = decoder.KenLM(language_model, Dictionary(names))
            except Exception as error:
                raise RecipeError(f"cannot read KenLM file {language_model}: {error}") from error
        space = names.index("|") if "|" in names else -1
        self._decoder: Any = decoder.LexiconFreeDecoder(options, self._model, space, BLANK, [])

    def __call__(self, log_probs: Tensor) -> list[int]:
        frames = log_probs.contiguous()
        # The decoder adds a silence before the first and after the last frame.
        found = self._decoder.decode(frames.data_ptr(), *frames.shape)[0].tokens[1:-1]
        tokens = [found[i] for i in range(len(found)) if i == 0 or found[i] != found[i - 1]]
        return [token for token in tokens if token > BLANK]
