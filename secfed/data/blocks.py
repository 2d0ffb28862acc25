"""Documents become blocks of tokens: the records of a causal language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from secfed.data.records import RecordTable
from secfed.errors import DataError
from secfed.model_files import find_model
from secfed.study import Study
from secfed.tokens import cut_blocks, load_tokenizer

__all__ = ["documents_to_blocks"]


def documents_to_blocks(
    table: RecordTable, study: Study, base_dir: Path
) -> RecordTable:
    """Cut every document into records of at most ``model.max_length`` tokens.

    Guarantees:
        A block has its document's unit, group, site, label and row. Where a record is
        its own unit, every block is one.

    Raises:
        ModelError: The base model or its tokenizer is not here.
        DataError: No document has two tokens.
    """
    tokenizer = load_tokenizer(find_model(study.model, base_dir))
    blocks = list(cut_blocks(tokenizer, table.texts, study.model.max_length))
    if not blocks:
        raise DataError(f"{study.data.source}: no document has two tokens")
    cut = table.select(np.array([block.row for block in blocks], dtype=np.int64))
    return replace(
        cut,
        texts=tuple(block.text for block in blocks),
        tokens=tuple(block.ids for block in blocks),
    )
