"""Memory, cores and accelerator of this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

__all__ = ["Gpu", "cores", "find_gpu", "memory_bytes"]

_LIMITS: Final = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
"""Limit and use of a container, in version 2 and in version 1 of control groups."""


@dataclass(frozen=True)
class Gpu:
    """An accelerator that PyTorch can use."""

    name: str
    memory_bytes: int


def memory_bytes() -> int:
    """What this process can have: what is free, and what it has already.

    The limit of a container counts where it is less than the machine's memory.
    """
    own = int(psutil.Process().memory_info().rss)
    free = [int(psutil.virtual_memory().available)]
    for limit, used in _LIMITS:
        try:
            free.append(int(limit.read_text("ascii")) - int(used.read_text("ascii")))
        except (OSError, ValueError):
            continue  # No such version, or "max": no limit.
    return own + max(0, min(free))


def cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_gpu() -> Gpu | None:
    """The first accelerator that PyTorch sees; None where there is none."""
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        return None
    seen = torch.cuda.get_device_properties(0)
    return Gpu(str(seen.name), int(seen.total_memory))
