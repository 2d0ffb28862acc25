"""Where the base model's weights lie, and what shapes they have; without PyTorch.

Only the header of ``model.safetensors`` is read: names and shapes, no numbers, so
the file's digest is not checked here. Whoever loads the weights checks it.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from secfed.errors import ModelError
from secfed.study.sections import AdapterSection, ModelSection

__all__ = ["WEIGHTS", "ModuleShape", "adapted_shapes", "find_model"]

WEIGHTS: Final = "model.safetensors"

_MATRIX: Final = 2
_LAYER: Final = re.compile(r"(?:^|\.)(?:layer|layers|h)\.(\d+)\.")
"""Layers, as ``secfed.models`` finds them: ``encoder.layer.<number>`` of BERT,
``model.layers.<number>`` of Llama, ``transformer.h.<number>`` of GPT-2."""

_TRANSPOSED: Final = ("gpt2",)
"""Model types whose weights are stored (in, out)."""


@dataclass(frozen=True)
class ModuleShape:
    """One linear layer of the base model.

    Attributes:
        name: As in the weights file; PEFT puts the architecture's prefix before it
            (``bert.``), which changes no shape.
        d: Outputs.
        k: Inputs.
    """

    name: str
    d: int
    k: int


def find_model(section: ModelSection, base_dir: Path) -> Path:
    """The folder of the model that a study names; nothing is imported.

    Raises:
        ModelError: The package is not installed or the folder has no weights.
    """
    if section.path is not None:
        folder = (base_dir / section.path).resolve()
    else:
        package = str(section.package)
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(
                f"the package {package!r} that carries the base model is not "
                "installed; `make setup` installs it, or set [model] path to a "
                "folder with the weights"
            )
        folder = Path(next(iter(spec.submodule_search_locations)))
        folder = folder / (section.subfolder or "")
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder}: no {WEIGHTS} there; only safetensors are loaded")
    return folder


def adapted_shapes(folder: Path, section: AdapterSection) -> tuple[ModuleShape, ...]:
    """The linear layers that the study adapts, in the order of the layers.

    A layer is adapted when its name ends with one of the targets and it belongs to
    one of the last ``section.layers`` layers (0: all), as PEFT chooses.

    Raises:
        ModelError: The header cannot be read, a target is not there, there are
            fewer layers, or the rank is above a matrix's smaller side.
    """
    found = _matrices(folder)
    total = 1 + max((number for number, _ in found), default=-1)
    if section.layers > total:
        raise ModelError(f"[adapter] layers: the base model has only {total} layers")
    first = total - section.layers if section.layers else 0
    for target in section.target_modules:
        if not any(_is_called(shape.name, target) for _, shape in found):
            short = sorted({shape.name.rpartition(".")[2] for _, shape in found})
            raise ModelError(
                f"[adapter] target_modules: no layer is called {target}; "
                f"found were {', '.join(short)}"
            )
    chosen = tuple(
        shape
        for number, shape in found
        if number >= first
        and any(_is_called(shape.name, target) for target in section.target_modules)
    )
    for shape in chosen:
        if section.r > min(shape.d, shape.k):
            raise ModelError(
                f"[adapter] r: {section.r} is above the smaller side of "
                f"{shape.name} ({shape.d} x {shape.k})"
            )
    return chosen


def _matrices(folder: Path) -> list[tuple[int, ModuleShape]]:
    """(layer number, shape) of every matrix inside a layer."""
    path, found = folder / WEIGHTS, []
    transposed = _model_type(folder) in _TRANSPOSED
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                layer = _LAYER.search(name)
                shape = file.get_slice(name).get_shape()
                if layer and name.endswith(".weight") and len(shape) == _MATRIX:
                    short = name.removesuffix(".weight")
                    d, k = reversed(shape) if transposed else shape
                    found.append((int(layer[1]), ModuleShape(short, d, k)))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: the header cannot be read: {error}") from error
    if not found:
        raise ModelError(
            f"{path}: no layers that secfed knows; BERT-like encoders, GPT-2 and "
            "Llama are supported"
        )
    return sorted(found, key=lambda entry: (entry[0], entry[1].name))


def _model_type(folder: Path) -> str | None:
    """What ``config.json`` says; None where it says nothing."""
    try:
        value = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    found = value.get("model_type") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def _is_called(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")
