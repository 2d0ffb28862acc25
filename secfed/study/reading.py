"""From a TOML file to a checked table, with errors a newcomer can act on."""

from __future__ import annotations

import difflib
import textwrap
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from secfed.errors import StudyError

__all__ = ["ContradictionError", "Table", "checked", "nearest", "read_toml"]

_T = TypeVar("_T", bound="Table")


class Table(BaseModel):
    """A TOML table: frozen, no unknown keys, no silent conversion, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )


class ContradictionError(ValueError):
    """A value is well formed but does not fit the others.

    Args:
        key: The dotted key below the table whose validator raises this.
        message: What is wrong and what to do next.
    """

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(message)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the closest known name, or else lists all of them.

    >>> nearest("epsilom", ["delta", "epsilon"])
    "did you mean 'epsilon'?"
    >>> nearest("zzz", ["delta", "epsilon"])
    'known: delta, epsilon'
    """
    names = list(known)
    folded = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    return f"known: {', '.join(names)}" if names else "no key is known here"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        StudyError: The file is missing, not UTF-8 or not TOML; the message
            names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StudyError(path, "", f"cannot be read: {reason}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StudyError(
            path,
            "",
            f"line {line} is not UTF-8 (byte offset {error.start}); "
            "save the file as UTF-8",
        ) from error
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise StudyError(path, "", f"not TOML: {error}") from error


def checked(model: type[_T], values: Mapping[str, object], where: str | Path) -> _T:
    """Validate ``values`` as ``model``.

    Raises:
        StudyError: Names the first key that is wrong; further findings follow
            in the message, one a line.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        details = error.errors(include_url=False)
    # Unknown keys come first: a misspelt key also shows up as a missing one,
    # and the misspelling is the cause.
    details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
    findings = [_finding(model, detail) for detail in details]
    key, message = findings[0]
    more = "".join(f"\n  {key}: {message}" for key, message in findings[1:])
    raise StudyError(where, key, message + more)


def _finding(model: type[BaseModel], detail: ErrorDetails) -> tuple[str, str]:
    location, context = detail["loc"], detail.get("ctx", {})
    key = _dotted(location)
    match detail["type"]:
        case "extra_forbidden":
            known = _fields_at(model, location[:-1])
            return key, f"unknown key; {nearest(str(location[-1]), known)}"
        case "missing":
            return key, "this key is required"
        case "literal_error" if isinstance(detail["input"], str):
            return key, f"unknown value {detail['input']!r}; " + nearest(
                detail["input"], _literals(str(context.get("expected", "")))
            )
        case "value_error":
            cause = context.get("error")
            if isinstance(cause, ContradictionError):
                return ".".join(part for part in (key, cause.key) if part), str(cause)
            return key, str(cause)
        case _:
            return key, f"{_plain(detail['msg'])} (got {_shortened(detail['input'])})"


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        elif part != "[key]":
            text += f".{part}" if text else part
    return text


def _plain(message: str) -> str:
    # pydantic names Python types; a study's author knows TOML's.
    for python, toml in (
        ("Input should be a valid dictionary or instance of", "must be the table"),
        ("Input should be a valid dictionary", "must be a table"),
        ("Input should be a valid tuple", "must be a list"),
        ("Input should be", "must be"),
    ):
        if message.startswith(python):
            return toml + message.removeprefix(python)
    return message


def _shortened(value: object) -> str:
    return textwrap.shorten(repr(value), width=60, placeholder="...")


def _literals(expected: str) -> list[str]:
    return [name.strip("'") for name in expected.replace(" or ", ", ").split(", ")]


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            inner = _table_within(model.model_fields[part].annotation)
            if inner is not None:
                model = inner
    return list(model.model_fields)


def _table_within(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = _table_within(argument)
        if found is not None:
            return found
    return None
