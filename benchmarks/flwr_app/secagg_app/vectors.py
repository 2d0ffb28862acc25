"""What each client sends; the server checks the mean against it."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["vector"]


def vector(client: int, length: int) -> Any:
    """A vector of float32 in [-1, 1], the same at every call."""
    return np.random.default_rng(client).uniform(-1, 1, length).astype(np.float32)
