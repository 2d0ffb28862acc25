"""A small study on people's records in a file, a policy, and operators' keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tomli_w
from typer.testing import CliRunner

from secfed.cli import app
from secfed.governance import StudyManifest
from secfed.signing import CoordinatorKey
from secfed.study import Study, load_study_dict

SITES = ("north", "east", "south")
PEOPLE = 60
MODEL = "ab" * 32
ANNA, BERT, CLEO = (CoordinatorKey(bytes([n]) * 32) for n in (1, 2, 3))


def study_values(**tables: dict[str, Any]) -> dict[str, Any]:
    """The study's tables; ``tables`` are merged into them."""
    values: dict[str, Any] = {
        "format": 1,
        "study": {"name": "wards", "title": "Which ward?"},
        "data": {
            "source": "records.csv",
            "text_column": "text",
            "label_column": "ward",
            "unit_column": "patient",
            "site_column": "hospital",
            "labels": ["a", "b"],
            "partition": {"kind": "natural", "sites": list(SITES)},
            "holdout": {"fraction": 0.1},
        },
        "model": {"path": "model", "sha256": MODEL},
        "adapter": {"r": 2, "lora_alpha": 4.0},
        "training": {
            "method": "ffa-lora",
            "rounds": 2,
            "steps_per_round": 1,
            "expected_batch": 10,
            "head_learning_rate": 0.1,
            "learning_rate": {"ffa-lora": 0.1},
        },
        "privacy": {
            "epsilon": 3.0,
            "delta": 1e-4,
            "unit": "person",
            "nominal_units": dict.fromkeys(SITES, 50),
        },
    }
    for table, own in tables.items():
        values[table] = {**values.get(table, {}), **own}
    return values


def study_of(**tables: dict[str, Any]) -> Study:
    return load_study_dict(study_values(**tables), "wards")


def manifest_of(**tables: dict[str, Any]) -> StudyManifest:
    return StudyManifest(study_of(**tables))


def policy_values(**changes: Any) -> dict[str, Any]:
    values = {
        "format": 1,
        "population": "patients-2026",
        "max_epsilon": 5.0,
        "delta": 1e-4,
        "allowed_methods": ["ffa-lora"],
        "allowed_model_sha256": [MODEL],
        "budget_dir": "budgets",
    }
    return values | changes


def write_records(folder: Path) -> None:
    lines = ["text,ward,patient,hospital"]
    for site in SITES:
        lines += [f"word{n} of {site},{'ab'[n % 2]},{n},{site}" for n in range(PEOPLE)]
    (folder / "records.csv").write_text("\n".join(lines) + "\n", "utf-8")


def write_study(folder: Path, name: str = "study.toml", **tables: Any) -> Path:
    path = folder / name
    path.write_text(tomli_w.dumps(study_values(**tables)), "utf-8")
    return path


def write_policy(folder: Path, **changes: Any) -> Path:
    path = folder / "site.toml"
    path.write_text(tomli_w.dumps(policy_values(**changes)), "utf-8")
    return path


def write_key(path: Path, secret: int) -> Path:
    path.write_text((bytes([secret]) * 32).hex() + "\n", "ascii")
    path.chmod(0o600)
    return path


def call(*arguments: object, typed: str | None = None) -> Any:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, words, input=typed)


def answer(*arguments: object) -> Any:
    """What a command prints with ``--json``."""
    result = call(*arguments, "--json")
    return json.loads(result.stdout)
