"""A teacher with its adapter, read as strictly as our own (PITFALLS 34)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load

from secfed.canonical import sha256_hex
from secfed.errors import ModelError
from secfed.models import TeacherBase, open_teacher
from secfed.study.distillation import TeacherSection
from secfed.types import LabelledTexts

__all__ = ["AdapterFiles", "Teacher", "load_teacher"]

_WEIGHTS: Final = "adapter_model.safetensors"
_CONFIG: Final = "adapter_config.json"


@dataclass(frozen=True)
class AdapterFiles:
    """Where a teacher's adapter is, and the digests that its files must have."""

    folder: Path
    weights_sha256: str
    config_sha256: str | None = None


@dataclass(frozen=True)
class Teacher:
    """A frozen classifier; ``order[i]`` is where it has the study's class i."""

    base: TeacherBase
    network: Any
    order: tuple[int, ...]

    def logits(self, records: LabelledTexts) -> NDArray[np.float32]:
        """What it says of every record, (n, classes) in the study's order."""
        if not records.texts:
            return np.zeros((0, len(self.order)), np.float32)
        said = self.base.logits(self.network, records.texts, records.pairs)
        return np.ascontiguousarray(said[:, list(self.order)])


def load_teacher(
    section: TeacherSection,
    base_dir: Path,
    label_names: Sequence[str],
    adapter: AdapterFiles | None,
) -> Teacher:
    """Open the teacher that a study names.

    Args:
        section: The study's.
        base_dir: Folder that relative paths start from.
        label_names: The study's classes, in its order.
        adapter: The files of its adapter; None where the folder has a trained head.

    Raises:
        ModelError: A file is missing or another one than was pinned, or they do not
            fit each other.
    """
    own = section.labels or tuple(label_names)
    if sorted(own) != sorted(label_names):
        raise ModelError(
            "[distillation.teacher] labels: not the classes of the study, "
            f"{', '.join(label_names)}"
        )
    base = open_teacher(section, base_dir, len(own), own_head=adapter is None)
    network = base.network if adapter is None else _adapted(base.network, adapter)
    return Teacher(base, network, tuple(own.index(name) for name in label_names))


def _adapted(network: Any, files: AdapterFiles) -> Any:
    weights = _pinned(files.folder / _WEIGHTS, files.weights_sha256)
    _pinned(files.folder / _CONFIG, files.config_sha256)
    try:
        config = peft.PeftConfig.from_pretrained(str(files.folder))
        tensors = load(weights)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{files.folder}: not a usable adapter: {error}") from error
    if config.task_type != "TOKEN_CLS" or config.is_prompt_learning:
        raise ModelError(
            f"{files.folder}: a teacher's adapter is one of a token classifier, in its "
            f"modules, as secfed releases it; this is {config.peft_type} for "
            f"{config.task_type}"
        )
    config.base_model_name_or_path = None  # Its name in the release is no path.
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 asks Transformers under a name that is being replaced.
            warnings.filterwarnings("ignore", message=".is_gradient_checkpointing")
            found = peft.get_peft_model(network, config)
    except ValueError as error:
        raise ModelError(f"{files.folder}: does not fit the base: {error}") from error
    _require_fit(peft.get_peft_model_state_dict(found), tensors, files.folder)
    peft.set_peft_model_state_dict(found, tensors)
    found.requires_grad_(requires_grad=False)
    return found.eval()


def _pinned(path: Path, digest: str | None) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: not readable: {error.strerror}") from error
    if digest is not None and sha256_hex(data) != digest:
        raise ModelError(f"{path}: not the teacher's adapter that the study pins")
    return data


def _require_fit(
    wanted: dict[str, torch.Tensor], given: dict[str, torch.Tensor], where: Path
) -> None:
    shapes = {name: value.shape for name, value in wanted.items()}
    odd = {n for n in shapes.keys() | given.keys() if n not in given or n not in shapes}
    odd |= {n for n in shapes.keys() & given.keys() if given[n].shape != shapes[n]}
    if odd:
        raise ModelError(
            f"{where}: the adapter does not fit the teacher's base: {sorted(odd)[:4]}"
        )
