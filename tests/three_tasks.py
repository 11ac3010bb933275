"""A recipe of log-mel that learns words, emotions and voices of the tones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HEADS = {
    "asr": {"kind": "ctc", "project": 16, "lstm_dim": 16, "dropout": 0.0},
    "emotion": {"kind": "classifier"},
    "verification": {"kind": "speaker", "embedding_dim": 8},
}
LONG = {  # until words are right, in some seconds
    "steps": 500,
    "evaluate_every": 500,
    "interleave": {"asr": 8, "emotion": 1, "verification": 1},
}


def three_tasks(corpus: str | Path, **training: Any) -> dict[str, Any]:
    """training: other settings of it; `steps` has to be among them."""
    return {
        "seed": 1,
        "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}},
        "fusion": {"interface": {"kind": "weighted_sum"}},
        "tasks": {name: {"corpus": str(corpus), "head": {**head}} for name, head in HEADS.items()},
        "training": {"batch_seconds": 4, "learning_rate": 1e-2, **training},
    }
