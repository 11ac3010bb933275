"""Whether torch.compile works on this machine."""

from __future__ import annotations

from functools import cache

import torch


@cache
def compiler_failure() -> str | None:
    """Why it does not, None if it does: a sum is compiled, which takes seconds the first time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(torch.add)(torch.ones(8, device=device), 1)
    except Exception as error:  # no compiler, no headers of Python, no triton: each has its own
        told = str(error).strip().split("\n\n")[0] or type(error).__name__
        return " ".join(told.split())
    return None
