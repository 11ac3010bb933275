"""Fuse the layers of several speech foundation models and train small heads on the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechfuse.pipeline.speech_model import SpeechModel, load

__all__ = ["SpeechModel", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What takes torch with it is imported when it is asked for."""
    if name in ("load", "SpeechModel"):
        from speechfuse.pipeline import speech_model

        return getattr(speech_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
