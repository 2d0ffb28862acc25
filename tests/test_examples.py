"""The examples run as their own words say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from protocols.secagg.params import PHASES

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "protocol_by_hand.py"


def by_hand(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )


def sums(output):
    return re.findall(r"^(?:plain|recovered) sum +(\[.*\])$", output, re.MULTILINE)


@pytest.mark.parametrize("phase", PHASES)
def test_the_recovered_sum_is_the_plain_one(phase):
    done = by_hand("--sites", "5", "--drop", f"hospital-3@{phase}")
    assert done.returncode == 0, done.stderr
    plain, recovered = sums(done.stdout)
    assert plain == recovered
    assert f"fell silent: hospital-3 ({phase})" in done.stdout


@pytest.mark.parametrize(
    ("cheat", "rule"),
    [("both-shares", "SA-009"), ("swap-key", "SA-014"), ("split-view", "SA-014")],
)
def test_a_cheating_server_is_named_and_opens_nothing(cheat, rule):
    done = by_hand("--cheat", cheat)
    assert done.returncode == 1
    assert re.search(rf"refuses\. It blames the server: .*\({rule}\)", done.stdout)
    assert not sums(done.stdout)


def test_too_many_dropouts_open_nothing():
    done = by_hand("--sites", "4", *(f"--drop=hospital-{i}@unmask" for i in (1, 2)))
    assert done.returncode == 1
    assert "2 clients are left in phase unmask, 3 are needed" in done.stdout


@pytest.mark.parametrize(
    "wrong", [["--drop", "hospital-9@unmask"], ["--sites", "2"], ["--cheat", "all"]]
)
def test_wrong_arguments_say_what_is_right(wrong):
    done = by_hand(*wrong)
    assert done.returncode == 2
    assert (
        "hospital-1" in done.stderr or "3 to 9" in done.stderr or "swap" in done.stderr
    )
