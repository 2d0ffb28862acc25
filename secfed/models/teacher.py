"""Teachers: stock classifiers that only say their word, once for every record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from secfed.errors import ModelError
from secfed.models.base import (
    compute_dtype,
    offline_transformers,
    open_folder,
    padded_batches,
)
from secfed.models.device import device_of, on_device
from secfed.study.distillation import TeacherSection

__all__ = ["TeacherBase", "open_teacher"]

_BATCH_TOKENS: Final = 4096
_TOKENS, _SEQUENCES = "ForTokenClassification", "ForSequenceClassification"


@dataclass(frozen=True)
class TeacherBase:
    """A frozen classifier in evaluation mode, and its tokenizer.

    ``per_token``: its logits are those of tokens, and a text's are their mean, as in
    secfed's releases.
    """

    network: Any
    tokenizer: Any
    digest: str
    max_length: int
    compute_dtype: torch.dtype
    per_token: bool

    def logits(
        self, network: Any, texts: Sequence[str], pairs: Sequence[str] = ()
    ) -> NDArray[np.float32]:
        """What ``network``, this one or an adapted one, says: (n, classes).

        Each row depends on its own text; how texts are put into batches changes the
        last bits at most.
        """
        ids = self._encoded(texts, pairs)
        lengths = np.array([len(row) for row in ids["input_ids"]], dtype=np.int64)
        found: dict[int, NDArray[np.float32]] = {}
        everything = np.arange(len(lengths))
        with torch.inference_mode():
            for rows in padded_batches(lengths, everything, _BATCH_TOKENS):
                said = self._of_batch(network, ids, rows)
                found |= dict(zip(rows.tolist(), said, strict=True))
        return np.stack([found[row] for row in everything.tolist()])

    def _encoded(self, texts: Sequence[str], pairs: Sequence[str]) -> Any:
        return self.tokenizer(
            list(texts),
            list(pairs) or None,
            truncation=True,
            max_length=self.max_length,
            padding=False,
        )

    def _of_batch(
        self, network: Any, ids: Any, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        chosen = {name: [held[row] for row in rows] for name, held in ids.items()}
        device = device_of(network)
        batch = self.tokenizer.pad(chosen, return_tensors="pt").to(device)
        low = self.compute_dtype is torch.bfloat16
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            logits = network(**batch).logits.float()
        if self.per_token:
            weights = batch["attention_mask"][:, :, None].float()
            logits = (logits * weights).sum(1) / weights.sum(1)
        array: NDArray[np.float32] = logits.numpy(force=True)
        return array


def open_teacher(
    section: TeacherSection, base_dir: Path, num_labels: int, *, own_head: bool
) -> TeacherBase:
    """Open the pinned folder.

    Args:
        section: Where it is.
        base_dir: Folder that relative paths start from.
        num_labels: Classes of the study.
        own_head: Whether the folder has the trained head; else an adapter has it.

    Raises:
        ModelError: The folder, the digest or the architecture is wrong, or a weight is
            missing.
    """
    folder, digest = open_folder(section, base_dir)
    transformers = offline_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        name = _head_of(config, folder, num_labels) if own_head else _TOKENS
        config.num_labels = num_labels
        network, told = getattr(transformers, f"AutoModel{name}").from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: not a usable teacher: {error}") from error
    if own_head and told["missing_keys"]:
        raise ModelError(
            f"{folder}: a teacher's weights are all trained, and these are missing: "
            f"{', '.join(sorted(told['missing_keys'])[:4])}"
        )
    network.requires_grad_(requires_grad=False)
    network = on_device(network.eval())
    return TeacherBase(
        network=network,
        tokenizer=tokenizer,
        digest=digest,
        max_length=section.max_length,
        compute_dtype=compute_dtype(section.dtype, device_of(network)),
        per_token=name == _TOKENS,
    )


def _head_of(config: Any, folder: Path, num_labels: int) -> str:
    """``ForTokenClassification`` or ``ForSequenceClassification``, as it was saved."""
    saved = (getattr(config, "architectures", None) or [""])[0]
    kinds = [kind for kind in (_TOKENS, _SEQUENCES) if saved.endswith(kind)]
    if not kinds:
        raise ModelError(
            f"{folder}: {saved or 'a model of no named kind'} has no classification "
            "head; train one on public data, or name its adapter "
            "([distillation.teacher] adapter)"
        )
    if config.num_labels != num_labels:
        raise ModelError(
            f"{folder}: the teacher has {config.num_labels} classes, the study "
            f"{num_labels}"
        )
    return kinds[0]
