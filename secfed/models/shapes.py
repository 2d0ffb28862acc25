"""A model without its weights: shapes from the configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import torch

from secfed.errors import ModelError
from secfed.models.base import Architecture, BaseModel, offline_transformers
from secfed.models.decoder import decoder_of
from secfed.models.encoder import Encoder

__all__ = ["TaskType", "read_shapes", "shapes_of"]

TaskType = Literal["TOKEN_CLS", "SEQ_CLS", "CAUSAL_LM"]
"""PEFT's names: secfed's classifier, the stock one with its own head, and texts."""

_CLASSES: Final = {
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
}


def shapes_of(config: Any, task: TaskType) -> BaseModel:
    """The model that a configuration describes, on no device: nothing is allocated.

    Args:
        config: Of Transformers, with ``num_labels`` where there are classes.
        task: Which head it has.

    Raises:
        ModelError: The architecture is none that is known.
    """
    transformers = offline_transformers()
    kind: Architecture = (
        decoder_of(config) if task == "CAUSAL_LM" else Encoder(task_type=task)
    )
    try:
        with torch.device("meta"):
            network = getattr(transformers, _CLASSES[task]).from_config(config)
    except ValueError as error:
        raise ModelError(f"not a usable configuration: {error}") from error
    network.requires_grad_(requires_grad=False)
    return BaseModel(
        network=network,
        tokenizer=None,
        digest="",
        max_length=0,
        compute_dtype=torch.float32,
        architecture=kind,
    )


def read_shapes(folder: Path, task: TaskType, num_labels: int) -> BaseModel:
    """``shapes_of`` the ``config.json`` in a folder.

    Raises:
        ModelError: There is none, or its architecture is not known.
    """
    transformers = offline_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, num_labels=num_labels
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no usable configuration: {error}") from error
    return shapes_of(config, task)
