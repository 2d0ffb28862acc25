"""Records from a CSV, JSONL or Parquet file, or from a data set of the hub.

Errors name rows (counted from 1, without a header), never what a row contains.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import logging
import os
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secfed.data.records import RecordTable
from secfed.data.tsv import read_tsv
from secfed.errors import DataError
from secfed.study.data_sections import HUB_PREFIX, DataSection
from secfed.study.reading import nearest
from secfed.study.task import PromptTemplate

__all__ = ["load_external"]

_SHOWN_ROWS = 5
_GZIP = ".gz"
_PROMPT = "prompt "


def load_external(
    section: DataSection,
    base_dir: Path,
    prompt: PromptTemplate | None = None,
    *,
    subgroups: bool = False,
) -> RecordTable:
    """Read the columns that the study names and check every value.

    Args:
        section: The study's data section; not a built-in source.
        base_dir: Folder that a relative file name starts from.
        prompt: Whose columns make the text, where there is no column of texts.
        subgroups: Whether a public test set is read, with the column that groups it.

    Raises:
        DataError: The file is missing, not UTF-8 or malformed; a column is
            missing; a text, unit, group or site is empty; a label or site is not
            declared by the study.
    """
    names = {
        "text": section.text_column,
        "text_pair": section.text_pair_column,
        "label": section.label_column,
        "unit": section.unit_column,
        "group": section.group_column,
        "site": section.site_column,
        "subgroup": section.holdout.subgroup_column if subgroups else None,
    }
    wanted = {role: name for role, name in names.items() if name is not None}
    wanted |= {_PROMPT + name: name for name in (prompt.columns if prompt else ())}
    if section.source.startswith(HUB_PREFIX):
        where, columns = section.source, _read_hub(section.source, wanted)
    else:
        path = base_dir / section.source
        where, columns = str(path), _read_file(path, wanted, section)
    read = {
        role: _filled(where, name, columns[role])
        for role, name in wanted.items()
        if _is_text(role)
    }
    texts = _prompts(prompt, read) if prompt else read["text"]
    pairs = read.get("text_pair", ())
    if not texts:
        raise DataError(f"{where}: no records")
    sites, known = columns.get("site", ()), section.labels or ()
    labels = columns.get("label", ())
    if "label" in wanted:
        _require_known(where, wanted["label"], labels, known, "data.labels")
    if sites:
        declared = section.partition.sites
        _require_known(where, wanted["site"], sites, declared, "data.partition.sites")
    units = _filled(where, wanted.get("unit", ""), columns.get("unit", ()))
    groups = _filled(where, wanted.get("group", ""), columns.get("group", ()))
    number = {name: index for index, name in enumerate(known)}
    return RecordTable(
        texts=texts,
        # Without categories all texts are of one kind, and it has no name.
        labels=np.array([number[str(label)] for label in labels], dtype=np.int64)
        if known
        else np.zeros(len(texts), dtype=np.int64),
        label_names=known,
        # Without a group column a person is held out as a whole, and equal texts
        # never stand on both sides.
        groups=groups or units or _as_groups(texts, pairs),
        units=units,
        sites=tuple(str(site) for site in sites),
        pairs=pairs,
        subgroups=_filled(
            where, wanted.get("subgroup", ""), columns.get("subgroup", ())
        ),
    )


def _prompts(
    prompt: PromptTemplate, read: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """The prompt of every record."""
    columns = [read[_PROMPT + name] for name in prompt.columns]
    rows = zip(*columns, strict=True)
    return tuple(
        prompt.filled(dict(zip(prompt.columns, row, strict=True))) for row in rows
    )


def _as_groups(texts: Sequence[str], pairs: Sequence[str]) -> tuple[str, ...]:
    """Equal texts, or equal pairs of texts, under one name."""
    folded = tuple(" ".join(text.lower().split()) for text in texts)
    if not pairs:
        return folded
    others = (" ".join(text.lower().split()) for text in pairs)
    return tuple(f"{one}\0{two}" for one, two in zip(folded, others, strict=True))


def _is_text(role: str) -> bool:
    """Whether a column is read by the model."""
    return role in {"text", "text_pair"} or role.startswith(_PROMPT)


_Columns = dict[str, Sequence[object]]


def _read_file(path: Path, wanted: dict[str, str], section: DataSection) -> _Columns:
    # 1. What the file system says.
    if not path.is_file():
        raise DataError(f"{path}: no such file (data.source)")
    compressed = path.suffix == _GZIP
    suffix = path.with_suffix("").suffix if compressed else path.suffix
    if section.is_tsv:
        table = read_tsv(path, _utf8(path), section.columns)
        _require_columns(str(path), list(table), wanted)
        return {role: table[name] for role, name in wanted.items()}
    # 2. What can be said with a line number, before a reader guesses.
    features: dict[str, str] | None = None
    if suffix != ".parquet":
        text = _utf8(path)
        if suffix == ".csv":
            header = _check_csv(path, text)
            _require_columns(str(path), header, wanted)
            features = dict.fromkeys(header, "string")
        else:
            _check_jsonl(path, text)
    # 3. The data set itself, with its cache in a folder that ends with us.
    with _datasets(offline=True) as datasets, tempfile.TemporaryDirectory() as cache:
        readers: dict[str, Callable[[], Any]] = {
            # Every cell is text: "NA", "1e3" and "007" keep their wording.
            ".csv": lambda: datasets.Dataset.from_csv(
                str(path),
                features=_as_features(datasets, features or {}),
                cache_dir=cache,
                keep_default_na=False,
            ),
            ".jsonl": lambda: datasets.Dataset.from_json(str(path), cache_dir=cache),
            ".parquet": lambda: datasets.Dataset.from_parquet(
                str(path), cache_dir=cache
            ),
        }
        try:
            found = readers[suffix]()
            _require_columns(str(path), found.column_names, wanted)
            return _columns(str(path), found, wanted)
        except DataError:
            raise
        except Exception:  # noqa: BLE001
            # A reader's own message may quote a record, so it is not passed on.
            message = f"{path}: no readable {suffix} file with rows of one type"
            raise DataError(message) from None


def _read_hub(source: str, wanted: dict[str, str]) -> _Columns:
    name, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    with _datasets(offline=False) as datasets, tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.load_dataset(
                name, split="train", revision=revision or None, cache_dir=cache
            )
        except Exception as error:
            raise DataError(
                f"{source}: the hub does not give this data set "
                f"({type(error).__name__}); check the name and the network, or "
                "save it as a file and name that"
            ) from error
        _require_columns(source, table.column_names, wanted)
        return _columns(source, table, wanted)


def _columns(where: str, table: Any, wanted: dict[str, str]) -> _Columns:
    columns: _Columns = {}
    for role, name in wanted.items():
        values = list(table[name])
        accepted = (str,) if role in {"text", "text_pair"} else (str, int)
        _refuse_rows(
            where,
            f"column {name!r} must hold text",
            (
                value is not None
                and (not isinstance(value, accepted) or isinstance(value, bool))
                for value in values
            ),
        )
        columns[role] = values
    return columns


@contextlib.contextmanager
def _datasets(*, offline: bool) -> Iterator[Any]:
    """The ``datasets`` library, without a network unless asked, and quiet."""
    if offline:
        # Read when the library is first imported; a hub study must come first.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets  # noqa: PLC0415 (two seconds, and built-in text needs none)

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    # Its log lines quote the readers' messages, and those may quote a record.
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            # Its CSV reader leaves the closing of the file to the collector.
            warnings.simplefilter("ignore", ResourceWarning)
            yield datasets
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _as_features(datasets: Any, columns: dict[str, str]) -> Any:
    return datasets.Features(
        {name: datasets.Value(kind) for name, kind in columns.items()}
    )


def _utf8(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == _GZIP:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            raise DataError(f"{path}: not a whole gzip file") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 at byte offset {error.start}; convert the file"
        ) from None
    if "\0" in text:
        raise DataError(f"{path}: NUL character at position {text.index(chr(0))}")
    return text


def _check_csv(path: Path, text: str) -> list[str]:
    """Check that all rows are as wide as the header; answer the header."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    # Lines with nothing on them are no records (the reader below agrees).
    filled = filter(None, reader)
    number = 0
    try:
        header = next(filled, [])
        for number, row in enumerate(filled, start=1):
            if len(row) != len(header):
                raise DataError(
                    f"{path}: row {number} has {len(row)} fields, "
                    f"the header has {len(header)}"
                )
    except csv.Error:
        message = f"{path}: line {reader.line_num} is not CSV (check the quotes)"
        raise DataError(message) from None
    repeated = next((name for name in header if header.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{path}: the header names {repeated!r} twice")
    if number == 0:
        raise DataError(f"{path}: no records")
    return header


def _check_jsonl(path: Path, text: str) -> None:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise DataError(f"{path}: line {number} is not a JSON object")
    if not text.strip():
        raise DataError(f"{path}: no records")


def _require_columns(where: str, present: list[str], wanted: dict[str, str]) -> None:
    for role, name in wanted.items():
        if name not in present:
            raise DataError(
                f"{where}: no column {name!r} ({_key(role)}); {nearest(name, present)}"
            )


def _key(role: str) -> str:
    """Where the study names a column."""
    return "task.prompt" if role.startswith(_PROMPT) else f"data.{role}_column"


def _filled(where: str, column: str, values: Sequence[object]) -> tuple[str, ...]:
    blank = (value is None or not str(value).strip() for value in values)
    _refuse_rows(where, f"column {column!r} is empty", blank)
    return tuple(str(value) for value in values)


def _require_known(
    where: str,
    column: str,
    values: Sequence[object],
    known: tuple[str, ...],
    key: str,
) -> None:
    names = set(known)
    outside = (value is None or str(value) not in names for value in values)
    _refuse_rows(where, f"the value of column {column!r} is not in {key}", outside)


def _refuse_rows(where: str, problem: str, flags: Iterator[bool]) -> None:
    rows = [number for number, flag in enumerate(flags, start=1) if flag]
    if rows:
        shown = ", ".join(str(number) for number in rows[:_SHOWN_ROWS])
        more = " and more" if len(rows) > _SHOWN_ROWS else ""
        raise DataError(f"{where}: {problem} (rows {shown}{more})")
