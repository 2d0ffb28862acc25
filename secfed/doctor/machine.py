"""Memory, disk, accelerator, and what Flower would tell its makers."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from secfed.doctor.findings import Finding, failed, found, unknown, warned
from secfed.errors import ModelError
from secfed.model_files import WEIGHTS, find_model
from secfed.profiles.facts import find_gpu, memory_bytes
from secfed.runtime.flower.children import SWITCHES
from secfed.study.sections import ModelSection

__all__ = [
    "check_disk",
    "check_gpu",
    "check_memory",
    "check_telemetry",
    "weight_bytes",
]

_GIGABYTE: Final = 1e9
_LEAST_DISK: Final = 200_000_000
"""Adapters, ledger and logs of a study; a full disk stops a site in a round."""

_COMFORTABLE: Final = 5
_FLOAT32_BYTES: Final = 4
_TELEMETRY: Final = "flwr.supercore.telemetry"


def weight_bytes(section: ModelSection, base_dir: Path) -> int:
    """What the base model's weights take in memory, from the header of its file.

    As float32, or as they lie in the file where they are quantised after loading.

    Raises:
        ModelError: There is no such file, or its header cannot be read.
    """
    path = find_model(section, base_dir) / WEIGHTS
    if section.quantisation is not None:
        return path.stat().st_size
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            shapes = [file.get_slice(name).get_shape() for name in names]
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: the header cannot be read: {error}") from error
    return _FLOAT32_BYTES * sum(map(math.prod, shapes))


def check_memory(
    section: ModelSection, base_dir: Path, available: int | None = None
) -> Finding:
    """Whether the base model's weights can be loaded; training needs more.

    Args:
        section: The model.
        base_dir: Where a relative path starts.
        available: Bytes; what this process can have by default.
    """
    have = memory_bytes() if available is None else available
    shown = f"{have / _GIGABYTE:.1f} GB are free"
    try:
        needed = weight_bytes(section, base_dir)
    except ModelError:
        return unknown("memory", f"{shown}; what the model needs is not known")
    text = f"{shown}; the base model's weights take {needed / _GIGABYTE:.1f} GB"
    if have < needed:
        mend = "end other programs, or use a machine with more memory"
        return failed("memory", text, f"{mend}, or a base in few bits (quantisation)")
    if have < 2 * needed:
        mend = "`secfed doctor --measure` shows what training takes"
        return warned("memory", text, mend)
    return found("memory", text)


def check_disk(folders: Sequence[Path], free: int | None = None) -> Finding:
    """Whether the folders that a run writes to can be written, and have room.

    Args:
        folders: They need not exist; the nearest that does is asked.
        free: Bytes; what is free where there is least by default.
    """
    there = [_existing(folder) for folder in folders]
    for folder in there:
        if not os.access(folder, os.W_OK):
            return failed(
                "disk",
                f"{folder} cannot be written",
                "give this user the right to write there, or name another folder",
            )
    least = min(shutil.disk_usage(f).free for f in there) if free is None else free
    text = f"{least / _GIGABYTE:.1f} GB are free where the run writes"
    mend = "make room: a site with a full disk is out of the study"
    if least < _LEAST_DISK:
        return failed("disk", text, mend)
    if least < _COMFORTABLE * _LEAST_DISK:
        return warned("disk", text, mend)
    return found("disk", text)


def _existing(folder: Path) -> Path:
    resolved = folder.resolve()
    return next(path for path in (resolved, *resolved.parents) if path.is_dir())


def check_gpu() -> Finding:
    """Whether there is an accelerator; none is needed."""
    gpu = find_gpu()
    if gpu is None:
        return found("gpu", "none; the processor does the work")
    size = gpu.memory_bytes / _GIGABYTE
    choice = "studies train on it, and on the processor with SECFED_DEVICE=cpu"
    return found("gpu", f"{gpu.name}, {size:.0f} GB; {choice}")


def check_telemetry(environment: Mapping[str, str] | None = None) -> Finding:
    """Whether everything that Flower tells its makers is off, here and in children.

    Args:
        environment: Of this process by default; children get ours over it.
    """
    seen = os.environ if environment is None else environment
    on = [name for name, off in SWITCHES.items() if seen.get(name) != off]
    module = sys.modules.get(_TELEMETRY)
    if getattr(module, "FLWR_TELEMETRY_ENABLED", "0") != "0":
        on.append("flwr itself, which was loaded before")
    if on:
        return failed(
            "telemetry",
            f"not off: {', '.join(on)}",
            " ".join(f"{name}={off}" for name, off in SWITCHES.items())
            + " belong into the environment",
        )
    return found("telemetry", "off in this process and in Flower's")
