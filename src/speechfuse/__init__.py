"""Fuse the layers of several speech foundation models and train small heads on the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechfuse.pipeline.speech_model import load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load` takes torch with it, so it is imported when it is asked for."""
    if name == "load":
        from speechfuse.pipeline.speech_model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
