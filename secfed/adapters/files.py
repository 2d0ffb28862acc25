"""The adapter between rounds, as a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save_file

from secfed.errors import ModelError
from secfed.types import Adapter

__all__ = ["adapter_from_bytes", "load_adapter", "save_adapter"]


def save_adapter(adapter: Adapter, path: Path) -> None:
    """Write an adapter between rounds (``scaling`` is in the metadata)."""
    save_file(
        {name: np.ascontiguousarray(value) for name, value in adapter.tensors.items()},
        path,
        metadata={"scaling": json.dumps(adapter.scaling)},
    )


def load_adapter(path: Path, like: Adapter) -> Adapter:
    """Read what ``save_adapter`` wrote; it must fit ``like`` exactly.

    Raises:
        ModelError: The file is damaged or belongs to another study.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: not a readable adapter: {error}") from error
    return adapter_from_bytes(data, like, path)


def adapter_from_bytes(
    data: bytes, like: Adapter, where: str | Path = "the adapter"
) -> Adapter:
    """Read an adapter as it travels; it must fit ``like`` and be finite.

    Raises:
        ModelError: The bytes are damaged, of another study, or not finite.
    """
    try:
        tensors = load(data)
    except Exception as error:  # safetensors raises its own Rust exception type
        raise ModelError(f"{where}: not a readable adapter: {error}") from error
    shapes = {name: value.shape for name, value in like.tensors.items()}
    if {name: value.shape for name, value in tensors.items()} != shapes:
        raise ModelError(f"{where}: holds another adapter than the study describes")
    if not all(np.isfinite(value).all() for value in tensors.values()):
        raise ModelError(f"{where}: holds numbers that are not finite")
    ordered = {name: tensors[name] for name in like.tensors}
    return Adapter(tensors=ordered, scaling=like.scaling)
