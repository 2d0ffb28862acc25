"""Texts as tokens: blocks, prompts, answers; without PyTorch and Transformers.

The tokenizer is the base model's ``tokenizer.json``, read as it is. What it adds by
itself at the ends of a text (a first token, a last one) is added once per text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenizers import Encoding, Tokenizer

from secfed.errors import ModelError

__all__ = [
    "Block",
    "answer_tokens",
    "cut_blocks",
    "end_token",
    "load_tokenizer",
    "prompt_tokens",
]

_FILE: Final = "tokenizer.json"
_CONFIG: Final = "config.json"
_AT_ONCE: Final = 1000

_FEWEST: Final = 2
"""A single token predicts nothing."""


@dataclass(frozen=True)
class Block:
    """Some tokens of one text.

    Attributes:
        row: The text's place in the list.
        ids: Token ids.
        text: What they cover; a character that is cut through is on both sides.
    """

    row: int
    ids: tuple[int, ...]
    text: str


def load_tokenizer(folder: Path) -> Tokenizer:
    """The model's tokenizer; it neither cuts nor pads.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    path = folder / _FILE
    if not path.is_file():
        raise ModelError(f"{folder}: no {_FILE} there; causal language models need it")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises its own Rust exception type
        raise ModelError(f"{path}: not a readable tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def cut_blocks(
    tokenizer: Tokenizer, texts: Sequence[str], length: int
) -> Iterator[Block]:
    """Consecutive blocks of every text, in order; the last one may be shorter.

    Guarantees:
        The blocks of a text depend on that text alone. A block has at least two
        tokens and at most ``length``; what is shorter is left out.
    """
    for start in range(0, len(texts), _AT_ONCE):
        some = tokenizer.encode_batch(list(texts[start : start + _AT_ONCE]))
        for row, encoding in enumerate(some, start=start):
            yield from _blocks(row, texts[row], encoding, length)


def _blocks(row: int, text: str, encoding: Encoding, length: int) -> Iterator[Block]:
    ids, offsets = encoding.ids, encoding.offsets
    for first in range(0, len(ids), length):
        own = tuple(ids[first : first + length])
        if len(own) < _FEWEST:
            continue
        covered = [
            span for span in offsets[first : first + length] if span[0] < span[1]
        ]
        begin = min((span[0] for span in covered), default=0)
        end = max((span[1] for span in covered), default=0)
        yield Block(row=row, ids=own, text=text[begin:end])


def end_token(folder: Path) -> int:
    """The token by which the model ends a text: the first that its files name.

    Raises:
        ModelError: ``config.json`` names none, so that no answer would end.
    """
    try:
        value = json.loads((folder / _CONFIG).read_bytes()).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / _CONFIG}: cannot be read: {error}") from error
    found = value[0] if isinstance(value, list) and value else value
    if not isinstance(found, int) or isinstance(found, bool):
        raise ModelError(f"{folder / _CONFIG}: no eos_token_id, so answers cannot end")
    return found


def answer_tokens(
    tokenizer: Tokenizer, answers: Sequence[str], end: int
) -> tuple[tuple[int, ...], ...]:
    """The ids of every answer, each with the end of the text.

    Raises:
        ModelError: An answer has no token.
    """
    some = tokenizer.encode_batch(list(answers), add_special_tokens=False)
    for answer, encoding in zip(answers, some, strict=True):
        if not encoding.ids:
            raise ModelError(f"the tokenizer makes no token of the answer {answer!r}")
    return tuple((*encoding.ids, end) for encoding in some)


def prompt_tokens(
    tokenizer: Tokenizer, texts: Sequence[str], room: int
) -> Iterator[tuple[int, ...]]:
    """The last ``room`` tokens of every prompt, behind what begins every text.

    What the tokenizer adds at a text's end is left out: the answer comes there.

    Raises:
        ModelError: There is no room for a token of the prompt.
    """
    for start in range(0, len(texts), _AT_ONCE):
        for encoding in tokenizer.encode_batch(list(texts[start : start + _AT_ONCE])):
            marks, ids = encoding.special_tokens_mask, list(encoding.ids)
            leading = next((i for i, mark in enumerate(marks) if not mark), 0)
            own = [i for i, m in zip(ids, marks, strict=True) if not m]
            if room <= leading or not own:
                raise ModelError(
                    "[model] max_length: no room for a prompt beside the longest answer"
                )
            yield (*ids[:leading], *own[-(room - leading) :])
