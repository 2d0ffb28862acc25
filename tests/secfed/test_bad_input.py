"""What cannot work is said before anything is spent, and where to mend it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import EXAMPLE, UNITS, small_policy, study_values

from secfed.adapters import attach_adapter
from secfed.errors import (
    DataError,
    ModelError,
    PlanError,
    SecfedError,
    StudyError,
    TrainingError,
)
from secfed.models import load_base_model
from secfed.runtime.local import run_study
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared
from secfed.study import Study, load_study_dict
from secfed.training import preflight
from secfed.types import Adapter

Values = dict[str, Any]


def put(path: str, value: object) -> Callable[[Values], None]:
    def change(values: Values) -> None:
        *tables, key = path.split(".")
        for table in tables:
            values = values[table]
        values[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (put("privacy.epsilon", 0.0), StudyError, "privacy.epsilon"),
        (put("privacy.epsilon", -1.0), StudyError, "privacy.epsilon"),
        (put("privacy.delta", 1.5), StudyError, "privacy.delta"),
        (put("privacy.delta", 1 / UNITS), PlanError, f"not below 1/{UNITS}"),
        (put("privacy.epsilon", 1e-7), PlanError, "needs more than"),
        (put("training.expected_batch", UNITS + 1), PlanError, "use a smaller batch"),
        (put("training.class_weights", {"Neoplasm": 2.0}), StudyError, "'Neoplasms'"),
        (put("adapter.target_modules", ["gate"]), ModelError, "target_modules"),
        (put("adapter.target_modules", ["query", "gate"]), ModelError, "called gate"),
        (put("adapter.layers", 99), ModelError, "only 6 layers"),
        (put("model.sha256", "0" * 64), SecfedError, "0000"),
    ],
)
def test_a_study_that_cannot_work_spends_nothing(
    change: Callable[[Values], None],
    kind: type[SecfedError],
    words: str,
    packages: None,
    tmp_path: Path,
) -> None:
    values = study_values()
    change(values)
    with pytest.raises(kind) as caught:
        run_study(
            load_study_dict(values, "study.toml"),
            EXAMPLE,
            tmp_path / "run",
            small_policy(),
            NoProgress(),
        )
    assert words in str(caught.value)
    assert not list(tmp_path.rglob("budget.sqlite*"))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "gout", "site": "x"}, "no column 'label'"),
        ({"label": "a", "site": "x"}, "no column 'text'"),
        ({"text": "gout", "label": "c", "site": "x"}, "not in data.labels (rows 1, 2"),
        ({"text": " ", "label": "a", "site": "x"}, "column 'text' is empty"),
        ({"text": "gout", "label": "a", "site": "w"}, "not in data.partition.sites"),
    ],
)
def test_records_outside_the_schema_spend_nothing(
    record: dict[str, str], words: str, packages: None, tmp_path: Path
) -> None:
    lines = "".join(json.dumps(record) + "\n" for _ in range(3))
    (tmp_path / "records.jsonl").write_text(lines, encoding="utf-8")
    sites = ["x", "y", "z"]
    values = study_values()
    values["data"] = {
        "source": "records.jsonl",
        "text_column": "text",
        "label_column": "label",
        "site_column": "site",
        "labels": ["a", "b"],
        "partition": {"kind": "natural", "sites": sites},
        "holdout": {"fraction": 0.3},
    }
    values["privacy"]["nominal_units"] = dict.fromkeys(sites, UNITS)
    study = load_study_dict(values, "study.toml")
    policy = small_policy().model_copy(update={"budget_dir": str(tmp_path / "budget")})
    with pytest.raises(DataError) as caught:
        run_study(study, tmp_path, tmp_path / "run", policy, NoProgress())
    assert words in str(caught.value)
    assert "gout" not in str(caught.value)
    assert not list(tmp_path.rglob("budget.sqlite*"))


def test_an_adapter_that_is_not_float32_is_refused(
    prepared: Prepared, busy: Adapter
) -> None:
    name = "head.bias"
    for kind in (np.float16, np.float64):
        tensors = {**busy.tensors, name: busy.tensors[name].astype(kind)}
        with pytest.raises(ModelError, match=rf"head\.bias: torch\.{kind.__name__}"):
            prepared.model.write(tensors)


def test_a_base_of_mixed_types_is_refused(packages: None, study: Study) -> None:
    base = load_base_model(study.model, EXAMPLE, 21)
    model = attach_adapter(base, study.adapter)
    model.set_trainable(tuple(model.named()))
    preflight(model)
    model.upper[0].output.dense.bfloat16()
    with pytest.raises(
        TrainingError, match=r"output\.dense\.weight in torch\.bfloat16"
    ):
        preflight(model)
