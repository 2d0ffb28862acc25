"""``secfed amplification``: tables, curves, a run beside them, and refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from secfed.amplification import AXES, RULES, InitialLaw, expected_each_round
from secfed.cli import amplification as module
from secfed.cli import app
from secfed.cli.noise_outlook import noise_outlook
from secfed.cli.runs import find_demo_study
from secfed.errors import ModelError
from secfed.model_files import adapted_shapes, find_model
from secfed.report.noise_curves import _DARK, _LIGHT
from secfed.study import load_study
from secfed.study.sections import AdapterSection, ModelSection

SITES = ("north-general", "harbour-maternity", "hillside-oncology", "city-trauma")
HIDDEN, WIDE, LAYERS = 16, 24, 3


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def values_of(*arguments):
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def save_model(folder):
    """A header like an encoder's, with numbers that nobody reads."""
    folder.mkdir()
    shapes = {"embeddings.word_embeddings.weight": (50, HIDDEN)}
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            shapes[f"{name}.attention.self.{part}.weight"] = (HIDDEN, HIDDEN)
            shapes[f"{name}.attention.self.{part}.bias"] = (HIDDEN,)
        shapes[f"{name}.intermediate.dense.weight"] = (WIDE, HIDDEN)
        shapes[f"{name}.output.dense.weight"] = (HIDDEN, WIDE)
    shapes["pooler.dense.weight"] = (HIDDEN, HIDDEN)
    tensors = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")


def write_study(folder, **replaced):
    """The example study on the small model; its sites' sizes are declared."""
    text = find_demo_study().read_text("utf-8")
    lines = {
        "package": None,
        "subfolder": 'path = "model"',
        "r": "r = 4",
        "steps_per_round": "steps_per_round = 2",
        "expected_batch": "expected_batch = 16",
    }
    lines |= {key: f"{key} = {value}" for key, value in replaced.items()}
    for key, line in lines.items():
        text, count = re.subn(rf"(?m)^{key} = .*\n", f"{line}\n" if line else "", text)
        assert count == 1, key
    units = "".join(f"{site} = 80\n" for site in SITES)
    text = text.replace("[secagg]", f"[privacy.nominal_units]\n{units}[secagg]", 1)
    path = folder / "study.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    save_model(folder / "model")
    return write_study(folder)


@pytest.fixture(scope="module")
def outlook(study):
    return noise_outlook(load_study(study), study.parent)


@pytest.fixture
def run(study, outlook, tmp_path):
    """A run of one arm, whose second round lost a site; measured as expected."""
    loaded = load_study(study)
    survivors = [SITES, SITES[:3], *[SITES] * (loaded.training.rounds - 2)]
    rule = RULES[loaded.training.method]
    alive = [[site in there for site in SITES] for there in survivors]
    energies = expected_each_round(rule, outlook.setting(rule), alive)
    rounds = [{"round": 0, "status": "completed", "survivors": [], "noise": None}]
    for number, (there, energy) in enumerate(
        zip(survivors, energies, strict=True), start=1
    ):
        noise = {
            "measured": energy.total,
            "closed_form": 2 * energy.total,
            "quadratic": 0.0,
            "quadratic_share": 0.0,
            "aggregation_gap": 0.0,
            "signal": 1.0,
        }
        rounds.append(
            {
                "round": number,
                "status": "completed",
                "survivors": list(there),
                "epsilon": dict.fromkeys(there, 1.0),
                "noise": noise,
            }
        )
    folder = tmp_path / "run"
    folder.mkdir()
    lines = "".join(f"{json.dumps(line)}\n" for line in rounds)
    (folder / "metrics.jsonl").write_text(lines, "utf-8")
    (folder / "study.json").write_text(json.dumps(loaded.canonical()), "utf-8")
    return folder


# --------------------------------------------------------------------- the table


def test_help_has_examples_and_the_axes_of_the_curves():
    result = call("amplification", "--help")
    assert result.exit_code == 0
    assert "Example: secfed amplification" in " ".join(result.stdout.split())
    assert "--json" in result.stdout
    assert typing.get_args(module._Axis) == AXES
    assert module._Initial == InitialLaw


def test_the_table_holds_the_methods_that_have_a_step_size(study):
    result = call("amplification", study)
    assert result.exit_code == 0
    for name in ("fedavg", "ffa-lora", "ffb-lora", "rolora"):
        assert re.search(rf"(?m)^ {name} ", result.stdout), name
    assert "Not shown: fedsa-lora" in result.stdout
    assert "hetlora: its weights are norms of the noisy products" in result.stdout
    assert "Less noise is not more accuracy" in result.stdout


def test_the_numbers_are_those_of_the_formula(study, outlook):
    found = values_of("amplification", study, "--modules")
    loaded = load_study(study)
    training, adapter = loaded.training, loaded.adapter
    assert len(found["modules"]) == 2 * adapter.layers
    assert found["noise_multipliers"] == dict(outlook.sigmas)
    # FFA-LoRA by hand: w2 s**2 d |A0|**2, summed over modules and rounds.
    (sigma,) = set(outlook.sigmas.values())
    rate = training.learning_rate["ffa-lora"]
    std = np.sqrt(training.steps_per_round) * rate * sigma / training.expected_batch
    scaling = adapter.lora_alpha / adapter.r
    one = scaling**2 * std**2 / len(SITES) * HIDDEN * adapter.r / 3
    ffa = found["methods"]["ffa-lora"]
    assert ffa["modules"][found["modules"][0]["name"]]["total"] == pytest.approx(
        one * training.rounds
    )
    assert ffa["per_round"][0]["total"] == pytest.approx(4 * one)
    assert ffa["all_rounds"]["total"] == pytest.approx(4 * one * training.rounds)
    assert ffa["amplification"] == ffa["over_ffa_lora"] == pytest.approx(1)
    # Fedavg has a third of the rate: its ratio at the same noise is another one.
    fedavg = found["methods"]["fedavg"]
    assert fedavg["amplification"] > 1
    assert fedavg["over_ffa_lora"] == pytest.approx(fedavg["amplification"] / 9)


def test_one_step_size_shows_every_method(study):
    found = values_of("amplification", study, "--rate", "0.5")
    assert found["methods"].keys() == RULES.keys()
    assert {one["step_size"] for one in found["methods"].values()} == {0.5}
    for one in found["methods"].values():
        assert one["over_ffa_lora"] == pytest.approx(one["amplification"])
    flexlora = found["methods"]["flexlora"]
    assert flexlora["all_rounds"] is None
    assert len(flexlora["per_round"]) == 1
    text = call("amplification", study, "--rate", "0.5", "--modules").stdout
    assert "flexlora: first round and before truncation" in text
    assert "encoder.layer.2.attention.self.query" in text


def test_b_and_the_law_of_a_are_arguments(study):
    plain = values_of("amplification", study)["methods"]
    longer = values_of("amplification", study, "--norm-b", "2")["methods"]
    assert plain["fedavg"]["all_rounds"]["linear_a"] == 0
    assert longer["fedavg"]["all_rounds"]["linear_a"] > 0
    assert longer["ffa-lora"] == plain["ffa-lora"]
    orthonormal = values_of("amplification", study, "--init", "orthonormal")["methods"]
    assert orthonormal["ffa-lora"]["all_rounds"]["total"] == pytest.approx(
        3 * plain["ffa-lora"]["all_rounds"]["total"]
    )


def test_a_whole_site_needs_no_step_size(study):
    other = study.parent / "whole"
    other.mkdir()
    (other / "model").symlink_to(study.parent / "model")
    path = write_study(other, unit='"site"', optimizer='"adam"')
    found = values_of("amplification", path)
    assert found["methods"].keys() == RULES.keys()
    assert {one["step_size"] for one in found["methods"].values()} == {None}


# ---------------------------------------------------------------------- a curve


def test_a_curve_is_printed_and_drawn(study, tmp_path):
    path = tmp_path / "noise.svg"
    arguments = ("--curves", "sites", "--values", "1,2,4", "--methods", "fedavg,rolora")
    result = call("amplification", study, *arguments, "--svg", path)
    assert result.exit_code == 0, result.output
    assert "equal sites of the same sigma" in result.stdout
    root = ET.fromstring(path.read_text("utf-8"))  # noqa: S314 - our own
    texts = {"".join(node.itertext()).strip() for node in root.iter()}
    assert {"fedavg", "rolora", "1", "2", "4"} <= texts
    again = tmp_path / "again.svg"
    assert call("amplification", study, *arguments, "--svg", again).exit_code == 0
    assert again.read_bytes() == path.read_bytes()


def test_no_column_is_cut_where_there_are_many(study):
    many = ("amplification", study, "--rate", "0.5")
    text = call(*many, "--curves", "rank", "--values", "1,2").stdout
    text += call(*many, "--modules").stdout
    assert "\u2026" not in text
    words = text.split()
    assert all(name in words for name in RULES)


def test_a_curve_as_json_passes_through_the_study(study):
    found = values_of("amplification", study, "--curves", "steps", "--values", "2")
    whole = values_of("amplification", study)["methods"]
    assert found["curve"]["axis"] == "steps"
    for name, parts in found["curve"]["methods"].items():
        assert parts["total"] == pytest.approx([whole[name]["all_rounds"]["total"]])


def test_the_colours_of_a_file_are_those_of_the_report():
    page = find_report_style().read_text("utf-8")
    for theme in (_LIGHT, _DARK):
        for colour in theme.split("; "):
            assert colour.strip(";") in page, colour


def find_report_style():
    import secfed.report  # noqa: PLC0415

    return type(find_demo_study())(secfed.report.__file__).parent / "report.css"


# ----------------------------------------------------------------------- a run


def test_a_run_is_compared_without_its_study(run):
    result = call("amplification", "--run", run)
    assert result.exit_code == 0, result.output
    assert "study alone" not in result.stdout
    (arm,) = values_of("amplification", "--run", run)["arms"]
    assert arm["method"] == "ffa-lora"
    assert arm["closed_form"] == pytest.approx(2 * arm["measured"])
    assert arm["expected"] is None
    assert [one["survivors"] for one in arm["rounds"]] == [4, 3, 4, 4, 4]


def test_a_run_is_compared_with_its_study(study, run):
    (arm,) = values_of("amplification", study, "--run", run)["arms"]
    # Also in the round that lost a site, whose noise is larger.
    for one in arm["rounds"]:
        assert one["expected"] == pytest.approx(one["measured"])
    measured = [one["measured"] for one in arm["rounds"]]
    assert measured[1] == pytest.approx(measured[0] * 4 / 3)
    text = call("amplification", study, "--run", run).stdout
    assert "measured / study alone" in text
    assert "1.000" in text
    assert "0.500" in text


def test_a_rule_without_parts_or_closed_form_is_shown_with_dashes(run):
    stored = (run / "metrics.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in stored.splitlines()]
    missing = ("closed_form", "quadratic", "quadratic_share", "aggregation_gap")
    for line in lines[1:]:
        line["noise"] |= dict.fromkeys(missing)
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (run / "metrics.jsonl").write_text(text, "utf-8")
    other = json.loads((run / "study.json").read_text("utf-8"))
    other["training"]["method"] = "hetlora"
    other["training"]["learning_rate"]["hetlora"] = 1.0
    (run / "study.json").write_text(json.dumps(other), "utf-8")
    # It may be named with --run, though there is nothing to expect of it.
    result = call("amplification", "--run", run, "--methods", "hetlora")
    assert result.exit_code == 0, result.output
    rows = re.findall(r"(?m)^ +\d +(\d) +(\S+) +- +- +- *$", result.stdout)
    assert [survivors for survivors, _ in rows] == ["4", "3", "4", "4", "4"]
    assert all(float(measured) > 0 for _, measured in rows)
    assert "hetlora: no closed form; its weights are norms" in result.stdout
    (arm,) = values_of("amplification", "--run", run)["arms"]
    assert arm["measured"] > 0
    assert arm["closed_form"] is None


def test_an_optimizer_at_the_coordinator_has_no_closed_form(study):
    other = study.parent / "momentum"
    other.mkdir()
    text = study.read_text("utf-8").replace(
        "[training]",
        '[training]\nserver_optimizer = "fedavgm"\nserver_learning_rate = 1.0',
    )
    (other / "study.toml").write_text(text, "utf-8")
    result = call("amplification", other / "study.toml")
    assert result.exit_code == 2
    assert "no closed form" in result.stderr


def test_a_run_of_another_study_is_refused(study, run):
    other = json.loads((run / "study.json").read_text("utf-8"))
    other["training"]["rounds"] = 4
    (run / "study.json").write_text(json.dumps(other), "utf-8")
    result = call("amplification", study, "--run", run)
    assert result.exit_code == 2
    assert "another study" in result.stderr


def test_a_run_without_measured_noise_is_refused(run, tmp_path):
    assert call("amplification", "--run", run, "--methods", "fedavg").exit_code == 2
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    (run / "metrics.jsonl").write_text(f"{lines[0]}\n", "utf-8")
    result = call("amplification", "--run", run)
    assert result.exit_code == 2
    assert "no measured noise" in result.stderr
    assert call("amplification", "--run", tmp_path / "nowhere").exit_code == 2


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name a STUDY"),
        (("STUDY", "--svg", "x.svg"), "needs --curves"),
        (("STUDY", "--values", "1"), "needs --curves"),
        (("STUDY", "--curves", "sites", "--values", "one"), "one"),
        (("STUDY", "--curves", "rank", "--values", "17"), "rank 17"),
        (("STUDY", "--curves", "colour"), "colour"),
        (("STUDY", "--run", ".", "--curves", "rank"), "goes without"),
        (("STUDY", "--rate", "0"), "positive"),
        (("STUDY", "--norm-b", "-1"), "negative"),
        (("STUDY", "--methods", "fedavgg"), "did you mean 'fedavg'"),
        (("STUDY", "--methods", "hetlora"), "norms of the noisy products"),
        (("STUDY", "--methods", ","), "at least one"),
        (("STUDY", "--methods", "flexlora"), "--rate"),
        (
            ("STUDY", "--rate", "1", "--methods", "flexlora", "--curves", "rank"),
            "flexlora",
        ),
        (("STUDY", "--rate", "1", "--curves", "rank", "--svg", "x.svg"), "at most 6"),
        (("STUDY", "--curves", "sites", "--svg", "/nowhere/x.svg"), "cannot be"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(study, arguments, words):
    given = [study if word == "STUDY" else word for word in arguments]
    result = call("amplification", *given)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_adam_has_no_closed_form(study):
    other = study.parent / "adam"
    other.mkdir()
    path = write_study(other, optimizer='"adam"')
    result = call("amplification", path)
    assert result.exit_code == 2
    assert "no closed form" in result.stderr


def test_a_missing_model_is_said(study, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(study.read_text("utf-8"), "utf-8")
    result = call("amplification", path)
    assert result.exit_code == 2
    assert "no model.safetensors there" in result.stderr


def test_it_runs_without_torch(study):
    code = (
        "import sys\n"
        "from secfed.cli import app\n"
        "app(['amplification', sys.argv[1]], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'peft', 'opacus', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(study)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# ------------------------------------------------------------- the model's shapes


def section(**changes):
    values = {"r": 4, "lora_alpha": 8.0, "target_modules": ("query", "output.dense")}
    return AdapterSection.model_validate(values | changes)


def test_shapes_are_those_of_the_adapted_layers(study):
    folder = find_model(ModelSection(path="model", sha256="0" * 64), study.parent)
    found = adapted_shapes(folder, section(layers=2))
    assert [(one.name, one.d, one.k) for one in found] == [
        ("encoder.layer.1.attention.self.query", HIDDEN, HIDDEN),
        ("encoder.layer.1.output.dense", HIDDEN, WIDE),
        ("encoder.layer.2.attention.self.query", HIDDEN, HIDDEN),
        ("encoder.layer.2.output.dense", HIDDEN, WIDE),
    ]
    assert len(adapted_shapes(folder, section())) == 2 * LAYERS
    # "dense" is three layers of each block here, and never the pooler.
    wide = adapted_shapes(folder, section(target_modules=("dense",)))
    assert {one.name.split(".")[0] for one in wide} == {"encoder"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": 4}, "only 3 layers"),
        ({"target_modules": ("query", "q_proj")}, "no layer is called q_proj"),
        ({"r": 17}, "smaller side"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(study, changes, words):
    with pytest.raises(ModelError, match=words):
        adapted_shapes(study.parent / "model", section(**changes))


def test_an_unreadable_header_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not a header")
    with pytest.raises(ModelError, match="cannot be read"):
        adapted_shapes(tmp_path, section())
    save_file({"wte.weight": np.zeros((2, 2))}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="no layers that secfed knows"):
        adapted_shapes(tmp_path, section())
