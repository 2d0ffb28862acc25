"""Where a model computes: on this machine's GPU, or on its processor.

A site's own choice of speed, as its threads are: it enters no digest, no plan and no
approval. Cached states and records stay in the processor's memory, and a batch goes to
the model when it is used. Noise is drawn on the processor, from the secure stream.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

import torch
from torch import nn

from secfed.errors import ModelError

__all__ = ["VARIABLE", "chosen_device", "device_of", "moved", "on_device"]

VARIABLE: Final = "SECFED_DEVICE"
_KNOWN: Final = ("", "cpu", "cuda")


def chosen_device() -> torch.device:
    """CUDA where there is such a GPU, else the processor; ``VARIABLE`` overrides.

    Raises:
        ModelError: The variable names another device, or a GPU that is not there.
    """
    asked, there = os.environ.get(VARIABLE, ""), torch.cuda.is_available()
    if asked not in _KNOWN:
        raise ModelError(f"{VARIABLE}={asked!r}: it is cpu or cuda, or not set")
    if asked == "cuda" and not there:
        raise ModelError(
            f"{VARIABLE}=cuda, and torch {torch.__version__} finds no CUDA device; "
            "take cpu, or install a build of torch for this machine's GPU"
        )
    return torch.device("cuda" if there and asked != "cpu" else "cpu")


def on_device(network: nn.Module) -> nn.Module:
    """The network, moved to the chosen device."""
    device = chosen_device()
    if device.type == "cpu":
        return network
    _repeat_sums()
    return network.to(device)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are; the processor if it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def moved(batch: Iterable[torch.Tensor], model: nn.Module) -> tuple[torch.Tensor, ...]:
    """A batch where the model is; the same tensors if they are there already."""
    device = device_of(model)
    return tuple(part.to(device) for part in batch)


def _repeat_sums() -> None:
    """Ask CUDA for kernels that give the same bits twice.

    The self-test of independence compares gradients bit for bit. Where there is no such
    kernel torch warns, and the round may be refused; it is never made less private.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
