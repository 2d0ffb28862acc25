"""The shipped distillation table: its division of texts, its studies, its lines."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secfed.model_files import WEIGHTS
from secfed.policy import check

FOLDER = Path(__file__).parents[1] / "examples" / "distillation"
SHARED = FOLDER.parents[1].parent / "shared" / "data"
NAMES = ("divided_texts", "full_training", "distillation_table", "step_search")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))


def write_parts(folder: Path) -> None:
    """What ``divide`` writes, made up."""
    folder.mkdir(parents=True)
    for part, count in (("public", 6), ("search", 4), ("sites", 20), ("holdout", 5)):
        rows = [f"{part} {number}\t{number % 2}" for number in range(count)]
        text = "\n".join(["sentence\tlabel", *rows]) + "\n"
        (folder / f"{part}.tsv").write_text(text, encoding="utf-8")


def options_for(scripts: dict[str, ModuleType], *argv: str) -> Any:
    return scripts["distillation_table"].options_of(argv)


def test_a_study_differs_from_the_shipped_one_as_the_row_says(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    table = scripts["distillation_table"]
    for name in table.DATASETS:
        write_parts(tmp_path / name)
        (tmp_path / name / "teacher").mkdir()
        (tmp_path / name / "teacher" / WEIGHTS).write_bytes(b"weights")
    options = options_for(scripts, "--out", str(tmp_path), "--weight", "0.25")
    for name in table.DATASETS:
        plain = table.study_of(options, name, rank=2, kd=False)
        taught = table.study_of(options, name, rank=2, kd=True)
        assert plain.teacher is None
        assert taught.distillation is not None
        assert taught.distillation.weight == 0.25
        assert plain.adapter.r == 2
        assert plain.score == table.SCORES[name]
        both = table.study_of(options, name, rank=2, kd=True, mutual=True)
        assert both.mentor_adapter == plain.adapter
        assert both.teacher == taught.teacher
        without = taught.model_copy(update={"distillation": None})
        assert without.digest() == plain.digest()
        for study in (plain, taught, both):
            check(table.policy_of(study, name), study, 1000)


def test_another_student_is_named_by_its_folder(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    table = scripts["distillation_table"]
    write_parts(tmp_path / "cola")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / WEIGHTS).write_bytes(b"weights")
    argv = ("--out", str(tmp_path), "--student", str(tmp_path / "bert"))
    study = table.study_of(options_for(scripts, *argv), "cola", rank=8, kd=False)
    assert study.model.path == str(tmp_path / "bert")
    assert study.model.package is None
    assert study.adapter.target_modules == ("q_lin", "v_lin")


def test_the_mutual_row_is_run_when_it_is_asked_for(
    scripts: dict[str, ModuleType],
) -> None:
    table, row = scripts["distillation_table"], "federated-lora-mutual"
    assert row in table.ROWS
    assert row not in options_for(scripts, "--out", "x").rows
    assert options_for(scripts, "--out", "x", "--rows", row).rows == [row]


def test_a_named_teacher_says_what_trained_it(
    scripts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options_for(scripts, "--out", "x", "--teacher", "cola", "y")
    assert "which public data" in capsys.readouterr().err


def test_the_table_labels_what_is_not_private(scripts: dict[str, ModuleType]) -> None:
    def cell(row: str, dataset: str, seed: int, score: float, rank: int = 0) -> Any:
        private = rank > 0
        return {
            "row": row,
            "dataset": dataset,
            "rank": rank,
            "seed": seed,
            "score": score,
            "trainable": 12_345 if row != "constant" else 0,
            "epsilon": 7.98 if private else None,
        }

    lines = list(
        scripts["distillation_table"].table(
            [
                cell("federated-lora-kd", "cola", 0, 0.2, 8),
                cell("federated-lora-kd", "cola", 1, 0.3, 8),
                cell("federated-lora-kd", "sst2", 0, 0.8, 8),
                cell("federated-full", "sst2", 0, 0.91),
                cell("constant", "sst2", 0, 0.509),
            ]
        )
    )
    assert lines[0].endswith("| cola, matthews | sst2, accuracy |")
    assert lines[2] == "| always the same answer |  |  |  |  |  |  | 50.9 |"
    assert "NOT PRIVATE, unmasked |  | 12,345 |  |  | 91.0 |" in lines[3]
    assert "| private, masked | 8 | 12,345 | 7.98 | 25.0 ± 5.0 | 80.0 |" in lines[4]
    for row, (_, where, protection) in scripts["distillation_table"].ROWS.items():
        if "full" in row:
            assert protection == "NOT PRIVATE, unmasked", where


def test_a_kept_cell_is_not_run_again(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    kept = {"row": "central-lora", "score": 0.5}
    (tmp_path / "cola").mkdir()
    (tmp_path / "cola" / "central-lora-r8-s3.json").write_text(json.dumps(kept))
    options = options_for(scripts, "--out", str(tmp_path))
    table = scripts["distillation_table"]
    assert table.cell_of(options, "central-lora", "cola", 8, 3) == kept


class OneLayer:
    """A student whose texts are numbers, to see what FedAvg makes of it."""

    def __init__(self) -> None:
        self.network = nn.Linear(1, 2, bias=False)
        nn.init.zeros_(self.network.weight)

    def ids(self, texts: Any) -> list[float]:
        return [float(text) for text in texts]

    def logits(self, ids: Any) -> torch.Tensor:
        found: torch.Tensor = self.network(torch.tensor(ids)[:, None])
        return found

    def weights(self) -> dict[str, torch.Tensor]:
        return {n: t.detach().clone() for n, t in self.network.state_dict().items()}


def test_federated_full_training_is_the_weighted_mean_of_the_sites(
    scripts: dict[str, ModuleType],
) -> None:
    full, texts = scripts["full_training"], scripts["divided_texts"]
    sites = [
        texts.Labelled(("1", "2", "3"), (1, 1, 1)),
        texts.Labelled(("1",), (0,)),
    ]
    recipe = full.Recipe(epochs=1, batch=8, learning_rate=0.1)
    together, alone = OneLayer(), [OneLayer(), OneLayer()]
    full.train_everywhere(together, sites, recipe, 0)
    for number, (own, held) in enumerate(zip(alone, sites, strict=True)):
        full.train_fully(own, held, recipe, number)
    expected = 0.75 * alone[0].network.weight + 0.25 * alone[1].network.weight
    torch.testing.assert_close(together.network.weight, expected)
    assert together.network.weight.abs().min() > 0


def test_a_teachers_word_pulls_full_training_to_it(
    scripts: dict[str, ModuleType],
) -> None:
    full, texts = scripts["full_training"], scripts["divided_texts"]
    held = texts.Labelled(("1", "2"), (1, 1))
    recipe = full.Recipe(1, 8, 0.1, weight=1.0, temperature=2.0)
    plain, taught = OneLayer(), OneLayer()
    full.train_fully(plain, held, recipe, 0)
    full.train_fully(taught, held, recipe, 0, np.array([[5, -5]] * 2, np.float32))
    assert plain.network.weight[1] > 0 > taught.network.weight[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cola", "sst2"])
def test_no_text_is_on_two_sides(
    scripts: dict[str, ModuleType], name: str, tmp_path: Path
) -> None:
    if not (SHARED / f"glue_{name}").is_dir():
        pytest.skip(f"the texts are not there: ../shared/data/glue_{name}")
    texts = scripts["divided_texts"]
    texts.divide(name, tmp_path, 0.4)
    parts = [
        texts.read_labelled(tmp_path / f"{part}.tsv", ("0", "1"), sys.maxsize)
        for part in ("public", "search", "sites", "holdout")
    ]
    public, search, sites, hold = (set(part.texts) for part in parts)
    everything = public | search | sites
    assert len(everything) == len(public) + len(search) + len(sites)
    assert not everything & hold
    assert len(parts[2].texts) >= 4000
    assert len(parts[0].texts) >= 3000
    assert 0.35 < len(public) / len(everything) < 0.45
    assert 0.08 < len(search) / len(everything) < 0.12


def test_steps_are_searched_on_public_records_and_by_row(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    table, search = scripts["distillation_table"], scripts["step_search"]
    write_parts(tmp_path / "sst2")
    options = options_for(scripts, "--out", str(tmp_path))
    study = table.study_of(
        options, "sst2", rank=8, kd=False, steps=(0.5, 7.0), scored_on="search"
    )
    assert str(study.data.holdout.source).endswith("/search.tsv")
    assert set(study.training.learning_rate.values()) == {0.5}
    assert study.training.head_learning_rate == 7.0
    for (dataset, row), steps in table.STEPS.items():
        assert row in search.SEARCHED
        assert steps in search.PAIRS[dataset]


def test_a_search_shows_every_pair(scripts: dict[str, ModuleType]) -> None:
    found = [
        {"dataset": "sst2", "row": row, "steps": steps, "score": score}
        for row, steps, score in (
            ("federated-lora", [3.0, 60.0], 0.77),
            ("federated-lora-kd", [3.0, 60.0], 0.555),
            ("federated-lora", [0.3, 1.0], 0.691),
        )
    ]
    lines = list(scripts["step_search"].table(found))
    assert lines[0].endswith("| head | LoRA, federated | LoRA-KD, federated |")
    assert lines[2:] == [
        "| sst2 | 3 | 60 | 77.0 | 55.5 |",
        "| sst2 | 0.3 | 1 | 69.1 |  |",
    ]
