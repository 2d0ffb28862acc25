"""The released adapter: two files that plain PEFT loads."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from secfed.adapters import AdaptedModel, file_name
from secfed.types import LORA_A, LORA_B, LORA_R, MERGED, Adapter

__all__ = ["plain_lora", "save_release"]

_NUMERICAL_RANK = 1e-6


def save_release(
    model: AdaptedModel, adapter: Adapter, name: str, folder: Path
) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` for plain PEFT.

    Args:
        model: The model that carries PEFT's settings.
        adapter: What is released; a core or a folded change becomes part of the
            factors, whose rank then grows (``plain_lora``).
        name: The base model's public name, written instead of the local path.
        folder: Made if needed.
    """
    kind = model.kind
    plain = plain_lora(adapter) if kind.is_product else adapter
    folder.mkdir(parents=True, exist_ok=True)
    named = {
        file_name(own, in_modules=kind.in_modules): np.ascontiguousarray(value)
        for own, value in plain.tensors.items()
    }
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.deepcopy(model.network.peft_config["default"])
    config.base_model_name_or_path = name
    if kind.is_product:
        config.r = len(plain.tensors[plain.modules()[0] + LORA_A])
        config.lora_alpha = kind.lora_alpha(config.r, plain.scaling)
    config.inference_mode = True
    config.save_pretrained(str(folder))


def plain_lora(adapter: Adapter) -> Adapter:
    """The same change of every weight as two factors per module and nothing else.

    A folded change is factored by its singular values, those above 1e-6 of the
    largest; all modules get the largest rank that one of them needs. ``scaling``
    stays, so that ``lora_alpha`` grows with the rank.
    """
    if any(name.endswith(MERGED) for name in adapter.tensors):
        return _factored(adapter)
    tensors = dict(adapter.tensors)
    for module in adapter.modules():
        core = tensors.pop(module + LORA_R, None)
        if core is not None:
            tensors[module + LORA_B] = tensors[module + LORA_B] @ core
    return Adapter(tensors=tensors, scaling=adapter.scaling)


def _factored(adapter: Adapter) -> Adapter:
    factors = {
        module: _factors(adapter.delta(module) / adapter.scaling)
        for module in adapter.modules()
    }
    rank = max(1, *(len(a) for _, a in factors.values()))
    own = (LORA_A, LORA_B, LORA_R, MERGED)
    tensors = {n: v for n, v in adapter.tensors.items() if not n.endswith(own)}
    for module, (b, a) in factors.items():
        missing = rank - len(a)
        tensors[module + LORA_A] = np.pad(a, ((0, missing), (0, 0)))
        tensors[module + LORA_B] = np.pad(b, ((0, 0), (0, missing)))
    return Adapter(tensors=dict(sorted(tensors.items())), scaling=adapter.scaling)


def _factors(
    change: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    left, values, right = np.linalg.svd(change, full_matrices=False)
    kept = values > _NUMERICAL_RANK * max(values[0], np.finfo(float).tiny)
    root = np.sqrt(values[kept])
    b, a = left[:, kept] * root, root[:, None] * right[kept]
    return b.astype(np.float32), a.astype(np.float32)
