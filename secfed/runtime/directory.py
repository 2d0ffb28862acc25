"""What a run keeps on disk besides its evidence, and how it is read back.

``private/run.json`` remembers how the run was started, so that ``resume`` needs
only the directory. Nothing under ``private/`` is evidence or ever leaves.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secfed.canonical import canonical_json
from secfed.errors import RunDirectoryError
from secfed.policy import SitePolicy
from secfed.study import Study, load_study_dict

__all__ = [
    "RunRecord",
    "append_line",
    "create_run",
    "open_run",
    "read_lines",
    "write_atomically",
]

_RUN_ID_BYTES = 8


@dataclass(frozen=True)
class RunRecord:
    """How a run was started."""

    run_id: str
    kind: str  # "run", "simulation", "compare" or "grid"
    base_dir: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    policy: Mapping[str, Any]


def create_run(
    run_dir: Path,
    study: Study,
    base_dir: Path,
    policy: SitePolicy,
    *,
    kind: str,
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> RunRecord:
    """Start a run directory, or continue the one of exactly the same study.

    Raises:
        RunDirectoryError: The directory holds something else.
    """
    record_path = run_dir / "private" / "run.json"
    if record_path.exists():
        held, record, _ = open_run(run_dir)
        same = (record.kind, record.methods, record.seeds) == (
            kind,
            tuple(methods),
            tuple(seeds),
        )
        if held.digest() != study.digest() or not same:
            raise RunDirectoryError(
                f"{run_dir} belongs to another study or comparison "
                f"({held.name}, {record.kind}); choose another --out"
            )
        return record
    if run_dir.exists() and any(run_dir.iterdir()):
        raise RunDirectoryError(
            f"{run_dir} is not empty and not a run directory; choose another --out"
        )
    (run_dir / "private").mkdir(parents=True, mode=0o700)
    record = RunRecord(
        run_id=secrets.token_hex(_RUN_ID_BYTES),
        kind=kind,
        base_dir=str(base_dir.resolve()),
        methods=tuple(methods),
        seeds=tuple(seeds),
        policy=policy.model_dump(mode="json"),
    )
    write_atomically(run_dir / "study.json", canonical_json(study.canonical()) + b"\n")
    write_atomically(record_path, canonical_json(_plain(record)) + b"\n")
    return record


def open_run(run_dir: Path) -> tuple[Study, RunRecord, SitePolicy]:
    """Read back how a run was started.

    Raises:
        RunDirectoryError: There is no run here, or its record is damaged.
        StudyError: ``study.json`` is not a study.
    """
    path = run_dir / "private" / "run.json"
    if not path.is_file():
        raise RunDirectoryError(
            f"{run_dir}: no private/run.json, so this is not a run that can be "
            "continued; start one with `secfed run` or `secfed compare`"
        )
    try:
        values = json.loads(path.read_bytes())
        record = RunRecord(
            run_id=str(values["run_id"]),
            kind=str(values["kind"]),
            base_dir=str(values["base_dir"]),
            methods=tuple(values["methods"]),
            seeds=tuple(values["seeds"]),
            policy=values["policy"],
        )
        policy = SitePolicy.model_validate_json(json.dumps(record.policy))
        study_values = json.loads((run_dir / "study.json").read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(
            f"{run_dir}: the run's record is damaged: {error}"
        ) from error
    study = load_study_dict(study_values, run_dir / "study.json")
    return study, record, policy


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing, and wait until the disk has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one canonical JSON line."""
    with path.open("ab") as file:
        file.write(canonical_json(value) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; an incomplete last line is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


def _plain(record: RunRecord) -> dict[str, Any]:
    values = asdict(record)
    values["methods"], values["seeds"] = list(record.methods), list(record.seeds)
    return values
