"""An answer as HTML for the page: words, classes, turns, layers; everything escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from speechfuse.pipeline.answers import (
    Answer,
    Label,
    Layers,
    Result,
    Speakers,
    Transcript,
    Voice,
)
from speechfuse.pipeline.recordings import Samples
from speechfuse.serve.pictures import bars_over_time, class_bars, layer_picture, spectrogram
from speechfuse.serve.refusals import Refusal

MOST_BARS = 100  # over time; of longer recordings, stretches are shown
EMPTY = '<div class="answers"><div class="card wide waiting">The answer comes here.</div></div>'


def answer_html(answer: Answer, samples: Samples) -> str:
    """Cards: results of tasks and a spectrogram, then layers in rows of their own."""
    heard = [_result(task, result) for task, result in answer.results.items()]
    heard.append(_card(f"spectrogram, {answer.duration:.2f} s", spectrogram(samples)))
    groups = [heard, _layer_cards(answer)]
    shown = "".join(f'<div class="cards">{"".join(cards)}</div>' for cards in groups if cards)
    return f'<div class="answers">{shown}</div>'


def refusal_html(refusal: Refusal) -> str:
    """What was found, what is expected, what to do."""
    body = (
        f'<p class="said">{escape(refusal.found)}</p>'
        f'<p class="note">Expected: {escape(refusal.expected)}.<br>'
        f"{escape(_sentence(refusal.remedy))}</p>"
    )
    return f'<div class="answers"><div class="card wide error" role="alert">{body}</div></div>'


def comparison_html(found: Mapping[str, tuple[Voice, Voice]]) -> str:
    """How alike two voices are, by every task that compares."""
    cards = []
    for task, (one, other) in found.items():
        compared = one.compare(other)
        cosine, decision = f"{compared.similarity:.3f}", compared.decision
        said, low, mark, note = f"cosine {cosine}", 0.0, "", compared.text()
        if decision is not None:
            verdict = "One speaker" if compared.same else "Two speakers"
            said = f'{verdict} <span class="beside">{said}</span>'
            low, note = min(max(decision.threshold, 0), 1), decision.expected()
            mark = f'<p class="mark">threshold {decision.threshold:.3f}</p>'
        cards.append(
            _card(
                task,
                f'<p class="said">{said}</p>'
                f'<div class="gauge" style="--at: {100 * low:.1f}%"><meter min="0" max="1" '
                f'low="{low}" optimum="1" value="{cosine}">{cosine}</meter>{mark}</div>'
                f"<p>{escape(_sentence(note))}</p>"
                '<p class="note">1: the same voice to the model; 0: nothing in common. Where the '
                "line between same and different lies depends on the recordings: compare some "
                "that you know.</p>",
                wide=True,
            )
        )
    return f'<div class="answers">{"".join(cards)}</div>'


def _result(task: str, result: Result) -> str:
    if isinstance(result, Transcript):
        return _card(task, _transcript(result), wide=True)
    if isinstance(result, Label):
        return _card(task, f'<p class="said">{escape(result.label)}</p>{_classes(task, result)}')
    if isinstance(result, Speakers):
        rows = "".join(
            f"<tr><td>{escape(turn.speaker)}</td><td>{turn.start:.2f} to {turn.end:.2f} s</td></tr>"
            for turn in result.turns
        )
        return _card(task, f"<table>{rows}</table>" if rows else "<p>nobody speaks</p>")
    size = len(result.vector)
    note = f'<p class="note">A vector of {size} numbers; compare it with another voice.</p>'
    return _card(task, note)


def _classes(task: str, result: Label) -> str:
    """Bars of all of it, and below them bars over time where it has several parts."""
    if not result.scores:
        return ""
    parts = result.windows if 1 < len(result.windows) <= MOST_BARS else result.stretches
    if len(parts) > 1:
        said = f"Over time, in parts of about {parts[0].end - parts[0].start:.1f} s:"
        drawn = bars_over_time(parts, result.scores, f"{task} over time")
        return f'{class_bars(result, task)}<p class="note">{said}</p>{drawn}'
    if result.stretches and result.stretches[0].end >= 4 and not result.windows:
        note = "The run reads all of it as one vector, so there is nothing over time."
        return f'{class_bars(result, task)}<p class="note">{note}</p>'
    return class_bars(result, task)


def _transcript(result: Transcript) -> str:
    if not result.text:
        return '<p class="said waiting">no words</p>'
    text, notes = escape(result.text), []
    if result.words:
        text = " ".join(
            f'<span class="word" title="{word.start:.2f} to {word.end:.2f} s">'
            f"{escape(word.text)}<small>{word.start:.2f}</small></span>"
            for word in result.words
        )
        notes.append("Below each word: the second at which it begins.")
    if result.cut:
        notes.append("Cut at the longest text that is written.")
    note = f'<p class="note">{" ".join(notes)}</p>' if notes else ""
    return f'<p class="said">{text}</p>{note}'


def _layer_cards(answer: Answer) -> list[str]:
    cards = []
    for task, given in answer.layers.items():
        models: dict[str, list[Layers]] = {}
        for one in given:
            models.setdefault(one.model, []).append(one)
        result = answer.results.get(task)
        said = result.text if isinstance(result, Transcript) else None
        for model, stretches in models.items():
            if len(stretches[0].numbers) < 2:
                continue  # nothing to choose from
            title = f"{task}: weights of the layers of {model}"
            cards.append(_card(title, layer_picture(stretches, said, title)))
    return cards


def _card(title: str, body: str, *, wide: bool = False) -> str:
    kind = "card wide" if wide else "card"
    return f'<section class="{kind}"><h3>{escape(title)}</h3>{body}</section>'


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
