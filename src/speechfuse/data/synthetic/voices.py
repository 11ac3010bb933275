"""Speakers and emotions of the synthetic corpus: how a voice sounds and how a feeling bends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechfuse.data.synthetic.espeak import Job

if TYPE_CHECKING:
    from numpy.random import Generator

ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029")
EMOTIONS = ("angry", "happy", "neutral", "sad")


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice: an espeak-ng accent, a variant file and a habitual speaking rate."""

    name: str
    accent: str
    variant: str  # text of an espeak-ng voice variant file
    rate: float  # words per minute

    @property
    def voice(self) -> str:
        return f"{self.accent}+{self.name}"


@dataclass(frozen=True, slots=True)
class Prosody:
    """What a speaker does to the neutral voice: factors, and a pause between words."""

    rate: float = 1.0
    pitch: float = 1.0
    range: float = 1.0
    volume: float = 1.0
    pause: float = 0.0  # seconds between some of the words


MEAN_PROSODY = {
    "angry": Prosody(rate=1.12, pitch=1.04, range=1.35, volume=1.40, pause=0.04),
    "happy": Prosody(rate=1.08, pitch=1.20, range=1.50, volume=1.10, pause=0.04),
    "neutral": Prosody(rate=1.00, pitch=1.00, range=1.00, volume=1.00, pause=0.05),
    "sad": Prosody(rate=0.88, pitch=0.92, range=0.65, volume=0.80, pause=0.12),
}


def draw_speaker(name: str, random: Generator) -> Speaker:
    """A new voice: vocal tract, pitch, roughness, breath, accent and rate.

    The vocal tract (one factor for all formants) goes with the pitch, as it does in people, and
    every formant has an offset, a height and a width of its own.
    """
    height = random.normal()
    pitch = 132 * 2 ** (0.36 * height + 0.16 * random.normal())  # Hz
    tract = 1.0 + 0.07 * height + 0.03 * random.normal()
    lines = [
        "language variant",
        f"name {name}",
        f"gender {'female' if pitch > 165 else 'male'}",
        f"pitch {pitch * 0.82:.0f} {pitch * 1.22:.0f}",
        f"roughness {random.integers(0, 4)}",
        f"flutter {random.integers(0, 6)}",
        f"consonants {random.integers(80, 130)} {random.integers(80, 130)}",
    ]
    for formant in range(9):
        frequency = 100 * tract * (1 + 0.03 * random.normal())
        strength, width = 100 * (1 + 0.15 * random.normal(size=2))
        lines.append(f"formant {formant} {frequency:.0f} {strength:.0f} {width:.0f}")
    if random.random() < 0.4:
        breath = " ".join(str(level) for level in random.integers(0, 4, size=8))
        lines.append(f"breath {breath}")
    return Speaker(
        name=name,
        accent=ACCENTS[random.integers(len(ACCENTS))],
        variant="\n".join(lines) + "\n",
        rate=float(random.normal(172, 12)),
    )


def draw_prosody(emotion: str, spread: float, random: Generator) -> Prosody:
    """One performance of an emotion: log-normal around its mean, so that emotions overlap."""
    mean = MEAN_PROSODY[emotion]

    def around(value: float, amount: float) -> float:
        return float(value * 2 ** (spread * amount * random.normal()))

    return Prosody(
        rate=around(mean.rate, 0.14),
        pitch=around(mean.pitch, 0.16),
        range=around(mean.range, 0.50),
        volume=around(mean.volume, 0.45),
        pause=around(mean.pause, 1.0),
    )


def job(text: str, speaker: Speaker, prosody: Prosody, random: Generator) -> Job:
    """What espeak-ng is asked for: the text with pauses between some words, and its settings."""
    first, *others = text.split()
    pause = f' <break time="{round(1000 * prosody.pause)}ms"/> '
    spoken = first + "".join((pause if random.random() < 0.3 else " ") + word for word in others)

    def within(value: float, low: int, high: int) -> int:
        return int(min(max(value, low), high))

    return Job(
        text=spoken,
        voice=speaker.voice,
        rate=within(speaker.rate * prosody.rate, 80, 450),
        pitch=within(50 * prosody.pitch, 0, 99),
        range=within(50 * prosody.range, 0, 99),
        volume=within(60 * prosody.volume, 10, 200),
    )
