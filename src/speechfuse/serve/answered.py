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

CSS = """
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  grid-auto-flow: dense; gap: 1rem; color: var(--body-text-color); }
body.dark { color-scheme: dark; }
.html-container:has(> * > .answers) { padding: 0; }
.answers .card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 1rem;
  background: var(--block-background-fill); min-width: 0; overflow-wrap: anywhere; }
.answers .wide, .answers .card:has(.scrolled) { grid-column: 1 / -1; }
.answers h3 { margin: 0 0 .4rem; font-size: .9rem; font-weight: 600;
  color: var(--body-text-color); opacity: .75; }
.answers .said { font-size: 1.3rem; line-height: 1.5; margin: 0; }
.answers .note { font-size: .85rem; opacity: .75; margin: .4rem 0 0; }
.answers .error { border-color: #d0453c; border-left-width: 5px; }
.answers svg.picture { width: 100%; max-width: 32rem; height: auto; display: block; margin: auto; }
.answers .scrolled { overflow-x: auto; }
.answers .scrolled svg.picture { min-width: calc(22rem * var(--times));
  max-width: calc(32rem * var(--times)); }
.answers svg.picture text { font-family: inherit; }
.answers table { width: 100%; border-collapse: collapse; }
.answers td { padding: .15rem .5rem .15rem 0; }
.answers meter { width: 100%; height: 1.2rem; }
@media (max-width: 500px) { .answers .card { padding: .6rem; } }
.answers .waiting { opacity: .75; }
"""
MOST_BARS = 100  # over time; of longer recordings, stretches are shown
EMPTY = '<div class="answers"><div class="card wide waiting">The answer comes here.</div></div>'


def answer_html(answer: Answer, samples: Samples) -> str:
    """Cards: results of tasks, spectrogram, layers."""
    cards = [_result(task, result) for task, result in answer.results.items()]
    cards.append(_card(f"spectrogram, {answer.duration:.2f} s", spectrogram(samples)))
    cards += _layer_cards(answer)
    return f'<div class="answers">{"".join(cards)}</div>'


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
        cosine, verdict = f"{compared.similarity:.3f}", _sentence(compared.text())
        cards.append(
            _card(
                task,
                f'<p class="said">cosine {cosine}</p>'
                f'<meter min="0" max="1" value="{cosine}">{cosine}</meter>'
                f'<p class="verdict">{escape(verdict)}</p>'
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
    text = escape(result.text)
    if result.words:
        text = " ".join(
            f'<span title="{word.start:.2f} to {word.end:.2f} s">{escape(word.text)}</span>'
            for word in result.words
        )
    note = '<p class="note">Cut at the longest text that is written.</p>' if result.cut else ""
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
