"""The command line: exit codes, words, JSON, and what starts without PyTorch."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import secfed
from protocols.errors import FaultyClientError, MisuseError, TooFewSurvivorsError
from secfed.cli import app
from secfed.cli.outlook import site_outlooks
from secfed.cli.output import SecfedGroup, remember_run
from secfed.cli.progress import LineProgress, LiveProgress
from secfed.cli.runs import AsJson, find_demo_study
from secfed.cli.traffic import upload_bytes
from secfed.errors import (
    BudgetExceededError,
    PolicyError,
    RoundAbortedError,
    SecfedError,
    StudyError,
    VerificationError,
)
from secfed.policy import load_policy
from secfed.privacy.accounting import sampled_gaussian
from secfed.privacy.budget import Budget
from secfed.strategies import STRATEGIES
from secfed.study import load_study

FIXTURE = Path(__file__).parent / "fixtures" / "comparison"
EXAMPLE = find_demo_study()
COMMANDS = (
    "demo",
    "run",
    "compare",
    "resume",
    "report",
    "plan",
    "amplification",
    "budget",
    "model",
    "strategies",
    "verify",
    "version",
)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def study_with(tmp_path, **replaced):
    """The example study with some lines replaced, beside the example's policy."""
    text = EXAMPLE.read_text("utf-8")
    for key, value in replaced.items():
        text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
        assert count, key
    path = tmp_path / "study.toml"
    path.write_text(text, "utf-8")
    shutil.copy(EXAMPLE.parent / "site.toml", tmp_path / "site.toml")
    return path


def app_raising(error, run_dir=None):
    """An application of our group whose one command ends in ``error``."""
    failing = typer.Typer(cls=SecfedGroup, add_completion=False)
    failing.callback()(lambda: None)

    def fail(ctx: typer.Context, as_json: AsJson = False) -> None:
        remember_run(ctx, run_dir or Path("nowhere"))
        raise error

    failing.command("fail")(fail)
    return failing


@pytest.fixture
def budget_run(tmp_path):
    path = tmp_path / "run" / "private" / "sites" / "north" / "budget.sqlite"
    path.parent.mkdir(parents=True)
    budget = Budget(path, "north").open("patients", "record", 8.0, 1e-5)
    budget.reserve("a" * 64, "run-1/ffa-lora", 1, sampled_gaussian(0.01, 1.0, 10))
    return tmp_path / "run"


# ----------------------------------------------------------------- the basics


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"Example: secfed {command}" in " ".join(result.stdout.split())
    assert "--json" in result.stdout


def test_the_help_lists_every_command_and_exit_code():
    result = call("--help")
    assert result.exit_code == 0
    for word in (*COMMANDS, "3 verification failed", "4 refused", "5 round aborted"):
        assert word in " ".join(result.stdout.split())


def test_commands_that_read_start_without_what_is_heavy():
    code = (
        "import sys\n"
        "from secfed.cli import app\n"
        f"calls = [['--help'], ['strategies'], ['report', {str(FIXTURE)!r}, '--out', "
        "sys.argv[1]], ['verify', '--help'], ['budget', '--help']]\n"
        "for call in calls:\n"
        "    app(call, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'peft', 'opacus', 'datasets', 'flwr'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, os.devnull], check=True, stdout=subprocess.DEVNULL
    )


def test_version():
    assert call("version").stdout == f"secfed {secfed.__version__}\n"
    assert json.loads(call("version", "--json").stdout) == {
        "secfed": secfed.__version__
    }


def test_strategies_are_all_listed_with_the_reason_of_a_refusal():
    text = call("strategies").stdout
    assert all(name in text for name in STRATEGIES)
    assert "refused under masking" in text
    listed = json.loads(call("strategies", "--json").stdout)["strategies"]
    assert {entry["name"]: entry["needs"] for entry in listed} == {
        name: strategy.needs for name, strategy in STRATEGIES.items()
    }


def test_strategies_of_a_study_say_what_each_would_send(packages):
    study = EXAMPLE
    listed = json.loads(call("strategies", study, "--json").stdout)["strategies"]
    up = {entry["name"]: entry.get("numbers_up") for entry in listed}
    # Four modules of 384 x 384 at rank 8, and a head of 21 chapters.
    head = 21 * 385
    assert up["ffa-lora"] == head + 4 * 8 * 384
    assert up["fedavg"] == head + 8 * 8 * 384
    assert up["flexlora"] == head + 4 * 384 * 384
    assert up["fed-sb"] == head + 4 * 8 * 8
    assert up["local"] == 0
    assert up["flora"] is None  # refused
    table = call("strategies", study).stdout
    assert f"{up['flexlora']:,}" in table


def test_no_colour_outside_a_terminal():
    for arguments in (["strategies"], ["verify", FIXTURE], ["run", "missing.toml"]):
        result = call(*arguments)
        assert "\x1b" not in result.stdout + result.stderr


# ------------------------------------------------------------ expected errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SecfedError("other"), 1),
        (StudyError("study.toml", "data.seed", "is missing"), 2),
        (VerificationError("changed"), 3),
        (PolicyError("refused"), 4),
        (BudgetExceededError("north", "full"), 4),
        (RoundAbortedError("shares", ["east"], "wrong"), 5),
        (FaultyClientError("east", "lied"), 5),
        (TooFewSurvivorsError(2, 3, "unmask"), 5),
    ],
)
def test_what_is_raised_decides_the_exit_code_and_the_words(error, code):
    failing = app_raising(error)
    result = CliRunner().invoke(failing, ["fail"])
    assert result.exit_code == code
    assert result.stderr == f"error: {error}\n"
    assert result.stdout == ""
    body = json.loads(CliRunner().invoke(failing, ["fail", "--json"]).stdout)
    assert body["error"]["exit_code"] == code
    assert body["error"]["message"] == str(error)
    assert body["error"]["type"] == type(error).__name__
    assert body["error"].get("blamed", []) == list(getattr(error, "blamed", ()))


@pytest.mark.parametrize("bug", [ZeroDivisionError("bug"), MisuseError("bug")])
def test_a_bug_keeps_its_traceback(bug):
    result = CliRunner().invoke(app_raising(bug), ["fail"])
    assert result.exit_code == 1
    assert result.exception is bug


@pytest.mark.parametrize("started", [True, False])
def test_interrupting_says_how_to_resume(tmp_path, started):
    if started:
        (tmp_path / "private").mkdir()
        (tmp_path / "private" / "run.json").write_text("{}", "utf-8")
    result = CliRunner().invoke(app_raising(KeyboardInterrupt(), tmp_path), ["fail"])
    assert result.exit_code == 130
    assert (f"secfed resume {tmp_path}" in result.stderr) is started
    assert ("nothing was spent" in result.stderr) is not started


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "missing.toml"], 2, "missing.toml"),
        (["compare", EXAMPLE, "--methods", "ffa-lora,fedavgg"], 2, "fedavg"),
        (["compare", EXAMPLE, "--methods", "flora"], 2, "stack"),
        (["compare", EXAMPLE, "--methods", "fedavg,fedavg"], 2, "--methods"),
        (["compare", EXAMPLE, "--seeds", "0,x"], 2, "--seeds"),
        (["compare", EXAMPLE, "--seeds", "-1"], 2, "--seeds"),
        (["run", EXAMPLE, "--method", "ffalora"], 2, "ffa-lora"),
        (["run", EXAMPLE, "--site-policy", "missing.toml"], 2, "missing.toml"),
        (["resume", FIXTURE], 2, "secfed run"),
        (["report", "missing"], 2, "no such directory"),
        (["budget", "missing"], 2, "no such file"),
        (["budget", FIXTURE], 2, "budget.sqlite"),
        (["budget", FIXTURE / "study.json"], 4, "not a budget"),
        (["verify", FIXTURE, "--trust", "12 34"], 2, "--trust"),
        (["verify", "missing"], 3, "no such directory"),
        (["strategy"], 2, "strategies"),
        (["report"], 2, "RUN"),
    ],
)
def test_bad_input_has_a_clear_message_and_code(arguments, code, words):
    result = call(*arguments)
    assert result.exit_code == code
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    "arguments",
    [["run", "missing.toml"], ["report", "missing"], ["run", "x", "--metod", "y"]],
)
def test_errors_are_json_where_json_is_wanted(arguments):
    result = call(*arguments, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["exit_code"] == 2
    assert result.stderr == ""


def test_a_study_without_a_policy_is_refused(tmp_path):
    study = study_with(tmp_path)
    (tmp_path / "site.toml").unlink()
    result = call("run", study, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "--site-policy" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("epsilon", "0.0"), ("rounds", "0"), ("delta", "2.0")]
)
def test_a_wrong_study_leaves_nothing_behind(tmp_path, key, value):
    study = study_with(tmp_path, **{key: value})
    result = call("compare", study, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert key in result.stderr
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------- reading


def test_report_writes_the_page(tmp_path):
    out = tmp_path / "page.html"
    result = call("report", FIXTURE, "--out", out, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"report": str(out)}
    assert out.read_text("utf-8").startswith("<!DOCTYPE html>")


def test_report_prints_markdown_and_writes_nothing(tmp_path):
    run = shutil.copytree(FIXTURE, tmp_path / "run")
    before = sorted(run.rglob("*"))
    result = call("report", run, "--markdown")
    assert result.exit_code == 0
    assert result.stdout.startswith("| arm |")
    assert sorted(run.rglob("*")) == before
    assert call("report", run, "--markdown", "--json").exit_code == 2


def test_a_report_that_cannot_be_written_says_where(tmp_path):
    out = tmp_path / "missing" / "page.html"
    result = call("report", FIXTURE, "--out", out)
    assert result.exit_code == 2
    assert str(out) in result.stderr


def test_verify_fails_and_names_the_check(tmp_path):
    run = shutil.copytree(FIXTURE, tmp_path / "run")
    result = call("verify", run)
    assert result.exit_code == 3
    assert "FAILED manifest" in " ".join(result.stdout.split())
    assert "UNPINNED" in result.stdout
    assert "'manifest'" in result.stderr
    as_json = call("verify", run, "--json")
    assert as_json.exit_code == 3
    body = json.loads(as_json.stdout)
    assert (body["passed"], body["pinned"]) == (False, "UNPINNED")


def test_budget_shows_what_was_reserved(budget_run):
    file = next(budget_run.rglob("budget.sqlite"))
    for place in (budget_run, file):
        (account,) = json.loads(call("budget", place, "--json").stdout)["budgets"]
        assert (account["site"], account["population"]) == ("north", "patients")
        assert 0 < account["epsilon_spent"] < 8
        assert account["charges"][0]["state"] == "reserved"
    result = call("budget", budget_run, "--history")
    assert result.exit_code == 0
    for word in ("north", "patients", "run-1/ffa-lora", "reserved", "8"):
        assert word in result.stdout
    assert "alarm" not in result.stdout


def test_budget_gives_alarms(budget_run):
    file = next(budget_run.rglob("budget.sqlite"))
    spent = Budget.read(file)[0].spent_epsilon
    for share, alarm in ((0.3, 0), (0.55, 50), (0.85, 80), (1.2, 100)):
        Budget(file, "north").open("patients", "record", spent / share, 1e-5)
        (account,) = json.loads(call("budget", file, "--json").stdout)["budgets"]
        assert account["alarm"] == alarm
        assert 100 * share <= account["percent"] <= 100 * share + 1
        shown = call("budget", "show", file).stdout
        assert (f"alarm, {alarm} % reached: north" in shown) == bool(alarm)


def test_reading_a_budget_changes_nothing(budget_run):
    file = next(budget_run.rglob("budget.sqlite"))
    before = Budget(file, "north", create=False).populations()
    call("budget", file)
    assert Budget(file, "north", create=False).populations() == before


# ----------------------------------------------------------------------- plan


@pytest.mark.slow
def test_plan_shows_each_site_and_spends_nothing(tmp_path):
    study = study_with(tmp_path, max_records="1600", expected_batch="64", rounds="2")
    text = re.sub(r"(?m)^round = 4$", "round = 1", study.read_text("utf-8"))
    study.write_text(text, "utf-8")
    result = call("plan", study, "--json")
    assert result.exit_code == 0
    planned = json.loads(result.stdout)
    assert [site["site"] for site in planned["sites"]] == list(load_study(study).sites)
    for site in planned["sites"]:
        assert site["verdict"] == "can run"
        assert 0 < site["epsilon_per_round"] < site["epsilon_total"] <= 8.0
        assert site["sampling_probability"] == pytest.approx(64 / site["nominal_units"])
    # 21 chapters x 385 numbers of the head, 4 modules x 8 x 384 of B, 2 bytes each,
    # because the noise hides 16 bits.
    assert planned["upload_bytes_per_round"] == 2 * (21 * 385 + 4 * 8 * 384)
    assert {path.name for path in tmp_path.iterdir()} == {"study.toml", "site.toml"}


def test_plan_names_who_is_too_small_and_who_refuses(tmp_path):
    study = study_with(tmp_path, max_records="500", expected_batch="120")
    policy = load_policy(tmp_path / "site.toml")
    strict = policy.model_copy(update={"max_epsilon": 1.0})
    outlooks = {o.site: o for o in site_outlooks(load_study(study), tmp_path, strict)}
    assert "too small" in {o.verdict for o in outlooks.values()}
    assert "refused" in {o.verdict for o in outlooks.values()}
    assert all("max_epsilon" in o.refusal for o in outlooks.values())
    result = call("plan", study)
    assert result.exit_code == 4
    small = next(o.site for o in outlooks.values() if o.verdict == "too small")
    assert small in result.stderr
    assert "too small" in result.stdout


def test_the_upload_of_a_model_that_is_not_here_is_unknown(tmp_path):
    study = study_with(tmp_path, package='"no_such_package"')
    assert upload_bytes(load_study(study), tmp_path, ()) is None


# ------------------------------------------------------------------- progress


METRICS = {
    "round": 1,
    "status": "completed",
    "accuracy": 0.5,
    "epsilon": {"a": 1.0, "b": 2.0},
    "dropouts": {"a": "shares"},
    "sums_equal": True,
    "seconds": 3.0,
}


def play(progress):
    progress.phase("loading the base model")
    progress.arm("ffa-lora", 1, 2)
    progress.round("ffa-lora", 1, 3)
    progress.phase("masked input")
    progress.site("[north]", 1, 4)
    progress.note("a left [early]")
    progress.finished_round(METRICS)
    progress.finished_round({"round": 2, "status": "interrupted"})


def test_progress_in_a_pipe_is_plain_lines(capsys):
    play(LineProgress(Console(file=sys.stdout, width=200)))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "  loading the base model",
        "arm 1/2: ffa-lora",
        "note: a left [early]",
        "ffa-lora round 1/3, accuracy 50.0 %, epsilon 2.00, a lost after shares, sum exact, 3.0 s",
        "ffa-lora round 2/3: interrupted; it counts as spent",
    ]


def test_progress_on_a_terminal_moves_and_keeps_the_lines(capsys):
    console = Console(file=sys.stdout, width=200, force_terminal=True, no_color=True)
    display = LiveProgress(console)
    with display.bars:
        play(display)
        rounds = display.bars.tasks[0]
        assert (rounds.completed, rounds.total) == (1, 6)
        assert rounds.description == "arm 1/2 ffa-lora, round 1/3"
        assert "[north]" in display.bars.tasks[1].description
    assert "ffa-lora round 1/3, accuracy 50.0 %" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_a_process_with_130(tmp_path):
    study = study_with(tmp_path)
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "secfed.cli", "compare", study, "--out", out],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    assert "run directory" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in words
    assert "interrupted" in words
