"""Reads what a report shows from a run directory, or from one arm's directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfed import canonical
from secfed.errors import RunDirectoryError, VerificationError
from secfed.ledger import signer_of
from secfed.report.measures import score_part
from secfed.report.results import HEAD_ONLY, NON_PRIVATE, Comparison, Source
from secfed.signing import fingerprint

__all__ = ["RunRecord", "below", "inside", "promises", "read_object", "read_run"]

_COMPARISON = "comparison.json"
_METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class RunRecord:
    """The files of a run that a report is built from.

    Attributes:
        directory: Where they were read.
        comparison: The results; of one arm when the directory is one arm's.
        statements: Arm name to the arm's privacy statement.
        study: The canonical study, empty when the file is missing.
        fingerprint: Of the coordinator's key, as the ledger's first entry names
            it. It is what the directory says of itself and proves nothing. Not
            from the manifest: the report is one of the files that it names.
        manifest: The parsed manifest, unchecked; empty when there is none yet.
    """

    directory: Path
    comparison: Comparison
    statements: Mapping[str, Mapping[str, Any]]
    study: Mapping[str, Any]
    fingerprint: str | None
    manifest: Mapping[str, Any]

    @property
    def is_single_arm(self) -> bool:
        """Whether the directory is one arm's, made by ``secfed run``."""
        return not (self.directory / _COMPARISON).is_file()

    def study_value(self, table: str, key: str) -> Any:
        """A value of the study, None when it is not known."""
        section = self.study.get(table)
        return section.get(key) if isinstance(section, Mapping) else None


def below(value: object, key: str) -> object:
    """A value one level down, None where there is no such level."""
    return value.get(key) if isinstance(value, Mapping) else None


def promises(record: RunRecord) -> list[object]:
    """What the statements promise each site's people, with the runs that are named."""
    found: list[object] = []
    for statement in record.statements.values():
        elsewhere = below(statement.get("composition"), "elsewhere")
        for held in (statement.get("sites"), elsewhere):
            if isinstance(held, Mapping):
                found += [below(own, "with_named_runs") or own for own in held.values()]
    return found


def read_run(directory: str | Path) -> RunRecord:
    """Read a run directory.

    Raises:
        RunDirectoryError: It is not a run directory, or a file in it is not
            what its name says.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise RunDirectoryError(
            f"{folder}: no such directory; give the directory that `secfed demo`, "
            "`compare` or `run` wrote"
        )
    study = read_object(folder / "study.json", required=False)
    if (folder / _COMPARISON).is_file():
        value = read_object(folder / _COMPARISON)
        comparison = Comparison.from_json(value, str(folder / _COMPARISON))
        statements = {
            arm.name: read_object(
                inside(folder, arm.run) / "statement.json", required=False
            )
            for arm in comparison.arms
            if arm.run
        }
    elif (folder / _METRICS).is_file():
        statement = read_object(folder / "statement.json", required=False)
        value = _single_arm(folder, study, statement)
        comparison = Comparison.from_json(value, str(folder))
        statements = {comparison.arms[0].name: statement}
    else:
        raise RunDirectoryError(
            f"{folder}: neither {_COMPARISON} nor {_METRICS} is there; the run has "
            f"not finished a round, or this is not a run directory. "
            f"`secfed resume {folder}` continues an interrupted run"
        )
    arms = [inside(folder, arm.run) for arm in comparison.arms if arm.run]
    return RunRecord(
        directory=folder,
        comparison=comparison,
        statements={name: found for name, found in statements.items() if found},
        study=study,
        manifest=read_object(folder / "manifest.json", required=False),
        fingerprint=next(filter(None, map(_fingerprint, arms)), None),
    )


def _fingerprint(arm_dir: Path) -> str | None:
    path = arm_dir / "ledger.jsonl"
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            line = file.readline().removesuffix(b"\n")
        return fingerprint(signer_of([line]))
    except (OSError, VerificationError) as error:
        raise RunDirectoryError(
            f"{path}: the first entry cannot be read: {error}"
        ) from error


def inside(folder: Path, relative: str) -> Path:
    """A path that the run names, if it stays in the run directory."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RunDirectoryError(
            f"{folder / _COMPARISON}: {relative!r} leads out of the run directory"
        )
    return path


def _single_arm(
    folder: Path, study: Mapping[str, Any], statement: Mapping[str, Any]
) -> dict[str, Any]:
    """The directory of one arm in the form of a comparison."""
    rounds = _read_lines(folder / _METRICS)
    training = study.get("training")
    names = study.get("study")
    simulation = study.get("simulation")
    method = training.get("method") if isinstance(training, Mapping) else None
    last: Mapping[str, Any] = rounds[-1] if rounds else {}
    epsilon: dict[str, float] = {}
    for line in rounds:
        spent = Source(line, str(folder / _METRICS)).numbers("epsilon") or {}
        epsilon |= {site: max(eps, epsilon.get(site, 0)) for site, eps in spent.items()}
    if "evaluation" in statement:
        # Metrics end with the last round; evaluations cost, too.
        for site, section in statement["sites"].items():
            stated = Source(section, str(folder / "statement.json")).number("epsilon")
            if stated is not None:
                epsilon[site] = max(stated, epsilon.get(site, 0))
    name = str(method or folder.name)
    arm = {
        "name": name,
        "method": name,
        "kind": "private" if epsilon else NON_PRIVATE,
        "seed": 0,
        "run": ".",
        "rounds": rounds,
        "final": score_part(last),
        "epsilon": epsilon or None,
        "epsilon_max": max(epsilon.values(), default=None),
        **{key: _total(rounds, key) for key in ("bytes_up", "bytes_down", "seconds")},
        "trainable": None,
    }
    if name == HEAD_ONLY and epsilon:
        arm["kind"] = "baseline"
    return {
        "format": 1,
        "title": names.get("title") if isinstance(names, Mapping) else folder.name,
        "study_digest": canonical.digest(study) if study else None,
        "task": study.get("task"),
        "arms": [arm],
        "untrained": score_part(rounds[0]) if rounds else None,
        "dropouts": [
            {
                "arm": name,
                "round": line.get("round"),
                "site": site,
                "phase": phase,
                "sum_exact": line.get("sums_equal"),
            }
            for line in rounds
            for kind in ("dropouts", "silent")
            for site, phase in (line.get(kind) or {}).items()
        ],
        "simulation_seed": simulation.get("seed")
        if isinstance(simulation, Mapping)
        else None,
    }


def _total(rounds: Sequence[Mapping[str, Any]], key: str) -> float | None:
    known = [line[key] for line in rounds if isinstance(line.get(key), int | float)]
    return sum(known) if known else None


def read_object(path: Path, *, required: bool = True) -> dict[str, Any]:
    """A JSON object; empty where the file may be missing and is.

    Raises:
        RunDirectoryError: The file cannot be read or holds something else.
    """
    if not required and not path.is_file():
        return {}
    try:
        value = canonical.parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{path}: holds {type(value).__name__}, not an object")
    return value


def _read_lines(path: Path) -> list[dict[str, Any]]:
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            value = canonical.parse_json(line)
        except ValueError as error:
            raise RunDirectoryError(f"{path}: line {number}: {error}") from error
        if not isinstance(value, dict):
            raise RunDirectoryError(f"{path}: line {number} is not an object")
        found.append(value)
    return found
