"""The role of a teacher: clips in, a probability for each of its classes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from speechfuse.data.teachers import Seen

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray


class Teacher(ABC):
    """A trained classifier of utterances. Weights are read by `load`, all else before."""

    source: str  # a folder, or a name on the hub
    label: str  # the column that it fills
    classes: list[str]
    wanted: list[str]  # the classes that are kept if none are asked for
    seen: tuple[Seen, ...]  # what it was trained on
    min_samples: int = 1  # of a clip at 16 kHz
    max_samples: int | None = None  # it would read no more of a clip
    silence: float = 0.0  # seconds that it computes after each clip
    equal: bool = True  # only clips of one length may be computed together

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Hashes of what decides its answers."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short, and another one for other weights: what stands beside each label."""

    @abstractmethod
    def load(self) -> None:
        """Read the weights.

        Raises:
            SpeechFuseError: they are missing, damaged or of another model.
        """

    @abstractmethod
    def probabilities(self, clips: Sequence[NDArray[float32]]) -> Tensor:
        """(B, C), of mono clips at 16 kHz; a clip gives the same alone and beside others."""
