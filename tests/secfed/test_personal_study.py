"""Whole studies of rules that leave tensors at the sites, with real training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from small import small_policy, study_values

from secfed.runtime.arms import Arm
from secfed.runtime.local import run_arm
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared
from secfed.study import Study, load_study_dict
from secfed.types import LORA_A, LORA_B
from secfed.verify import verify_run

ROUNDS = 3


class Stop(NoProgress):
    """Presses Ctrl-C while a later round trains."""

    def __init__(self, at_round: int) -> None:
        self._at, self._now = at_round, 0

    def round(self, arm: str, number: int, total: int) -> None:
        self._now = number

    def site(self, site: str, done: int, total: int) -> None:
        if self._now == self._at and done == total:
            raise KeyboardInterrupt


def study_of(method: str) -> Study:
    values = study_values(ROUNDS)
    values["training"]["method"] = method
    values["training"]["learning_rate"][method] = 1.0
    values["simulation"]["seed"] = 4
    return load_study_dict(values, "small")


def play(prepared: Prepared, study: Study, run: Path, stop: int = 0) -> dict[str, Any]:
    private = run / "private"
    private.mkdir(parents=True, exist_ok=True)
    return run_arm(
        Arm(name=study.training.method, study=study),
        prepared,
        run,
        private,
        "run",
        small_policy(30.0, study.training.method),
        Stop(stop),
    )


def kept_files(run: Path, site: str, method: str) -> list[Path]:
    return sorted((run / "private" / "sites" / site / "kept" / method).iterdir())


@pytest.mark.parametrize(
    ("method", "own"), [("fedsa-lora", (LORA_B,)), ("local", ("",))]
)
def test_what_stays_is_at_the_sites_and_a_run_goes_on_from_it(
    prepared: Prepared, tmp_path: Path, method: str, own: tuple[str, ...]
) -> None:
    study = study_of(method)
    whole = play(prepared, study, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        play(prepared, study, tmp_path / "cut", stop=2)
    resumed = play(prepared, study, tmp_path / "cut")
    for run in (tmp_path / "whole", tmp_path / "cut"):
        report = verify_run(run)
        assert report.passed, report.failures()
    # 1. Every site kept its own factor, and they differ.
    last = [
        load_file(kept_files(tmp_path / "whole", s, method)[-1]) for s in study.sites
    ]
    assert all(name.endswith(own) for name in last[0])
    name = next(n for n in last[0] if n.endswith(LORA_B))
    assert not np.allclose(last[0][name], last[1][name])
    # 2. The coordinator's adapter holds the public start of what stays.
    released = load_file(
        tmp_path / "whole" / "adapters" / f"round-{ROUNDS:03d}.safetensors"
    )
    assert not released[name].any()
    assert (released[name.replace(LORA_B, LORA_A)] != 0).any()
    # 3. The interrupted round was spent and left out; the others ran.
    status = [line["status"] for line in metrics(tmp_path / "cut")]
    assert status == ["completed", "completed", "interrupted", "completed"]
    assert resumed["epsilon_max"] <= whole["epsilon_max"] <= study.privacy.epsilon


def test_sites_alone_send_no_byte_and_pay_as_in_any_round(
    prepared: Prepared, tmp_path: Path
) -> None:
    alone = play(prepared, study_of("local"), tmp_path / "local")
    together = play(prepared, study_of("fedsa-lora"), tmp_path / "fedsa")
    assert alone["bytes_up"] == 0 < together["bytes_up"]
    assert alone["epsilon_max"] == together["epsilon_max"] > 0
    first, *rest = metrics(tmp_path / "local")
    assert any(line["accuracy"] != first["accuracy"] for line in rest)


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]
