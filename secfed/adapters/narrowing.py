"""A model whose factors have a smaller rank for a while: less to compute and keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from torch import nn

from secfed.adapters.model import AdaptedModel
from secfed.errors import ModelError

__all__ = ["narrowed"]

_ADAPTER: Final = "default"


@contextmanager
def narrowed(model: AdaptedModel, rank: int | None) -> Iterator[None]:
    """Give every pair of factors ``rank`` rows and columns; None: leaves them.

    Inside, ``model.read`` and ``model.write`` speak of the narrow factors. Afterwards
    the wide ones are back, with the numbers that they had. ``lora_alpha / r`` stays
    that of the wide ones, so that a narrow product is a part of the wide one.

    Raises:
        ModelError: The rank is above that of the factors, or there are none.
    """
    pairs = [] if rank is None else _pairs(model)
    if rank is not None and not pairs:
        raise ModelError("an adapter without factors has no rank")
    wide = [(layers, layers[_ADAPTER]) for pair in pairs for layers in pair]
    try:
        for first, second in pairs:
            _narrow(first, second, int(rank or 0))
        yield
    finally:
        for layers, layer in wide:
            layers[_ADAPTER] = layer


def _pairs(model: AdaptedModel) -> list[tuple[nn.ModuleDict, nn.ModuleDict]]:
    """PEFT's dictionaries of A and B, of every adapted layer."""
    return [
        (module.lora_A, module.lora_B)
        for module in model.network.modules()
        if isinstance(getattr(module, "lora_A", None), nn.ModuleDict)
        and _ADAPTER in module.lora_A
    ]


def _narrow(first: nn.ModuleDict, second: nn.ModuleDict, rank: int) -> None:
    a, b = first[_ADAPTER], second[_ADAPTER]
    if not isinstance(a, nn.Linear) or not isinstance(b, nn.Linear):
        raise ModelError("only plain factors have another rank at a site")
    if not 1 <= rank <= a.out_features:
        raise ModelError(f"rank {rank} is not between 1 and {a.out_features}")
    device, dtype = a.weight.device, a.weight.dtype
    for layers, sizes in (
        (first, (a.in_features, rank)),
        (second, (rank, b.out_features)),
    ):
        layer = nn.Linear(*sizes, bias=False, device=device, dtype=dtype)
        layers[_ADAPTER] = layer.train(a.training)
