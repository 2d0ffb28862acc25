"""Real processes on loopback, with TLS and node authentication: what must survive.

Long ones are marked ``deployment`` (`make test-deployment`). The study is small and
seeded (`--rehearsal`), so that the local runtime gives the same adapters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty import toml_of
from parties import Parties, set_up
from small import EXAMPLE, study_values

from secfed.canonical import file_sha256
from secfed.privacy.budget import Budget
from secfed.verify import verify_run

SEED, ROUNDS = 29, 2
WAIT_SECONDS = 1500
OPTIONS = (
    *("--rehearsal", "--joining", "400"),
    *("--training", "300", "--phase", "100"),
)


@pytest.fixture
def parties(packages: None, tmp_path: Path) -> Iterator[Parties]:
    values = study_values(ROUNDS)
    values["simulation"] = {"seed": SEED}
    study = tmp_path / "study.toml"
    study.write_text(toml_of(values), "utf-8")
    policy = tmp_path / "site.toml"
    text = (EXAMPLE / "site.toml").read_text("utf-8")
    policy.write_text(text.replace("min_units = 50", "min_units = 10"), "utf-8")
    made = set_up(tmp_path / "parties", study, policy, OPTIONS)
    yield made
    made.stop()


def assert_verified(run: Path) -> None:
    report = verify_run(run)
    assert report.passed, [check for check in report.checks if not check.passed]


def status(parties: Parties) -> dict[str, Any]:
    path = parties.run / "private" / "status.json"
    return json.loads(path.read_bytes()) if path.is_file() else {}


def wait_for(parties: Parties, seen: Callable[[dict[str, Any]], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        if parties.processes["coordinator"].poll() is not None:
            pytest.fail(parties.log("coordinator"))
        if seen(status(parties)):
            return
        time.sleep(0.1)
    pytest.fail(f"it never came: {status(parties)}")


def start(parties: Parties) -> None:
    parties.start_coordinator()
    for site in parties.study.sites:
        parties.start_site(site)


def finish(parties: Parties) -> int:
    code = parties.processes["coordinator"].wait(WAIT_SECONDS)
    if code not in (0, 5):
        pytest.fail(parties.log("coordinator"))
    return code


def metrics(parties: Parties) -> list[dict[str, Any]]:
    path = parties.run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def charged(parties: Parties, site: str) -> list[int]:
    path = parties.folder / site / "state" / "sites" / site / "budget.sqlite"
    return [charge.round for charge in Budget.read(path)[0].charges]


@pytest.mark.deployment
def test_a_site_killed_in_a_round_and_the_adapters_of_the_local_runtime(
    parties: Parties, tmp_path: Path
) -> None:
    # The killed site's shares are in the round; the local runtime plays the same.
    from secfed.policy import load_policy  # noqa: PLC0415
    from secfed.runtime.local import run_study  # noqa: PLC0415
    from secfed.runtime.progress import NoProgress  # noqa: PLC0415
    from secfed.study import load_study  # noqa: PLC0415

    victim = parties.study.sites[1]
    start(parties)
    wait_for(parties, lambda s: s.get("round") == 2 and s["phase"] == "local training")
    parties.kill(victim)
    assert finish(parties) == 0
    assert_verified(parties.run)
    last = metrics(parties)[-1]
    assert victim not in last["survivors"]
    assert last["dropouts"][victim] == "shares"
    study = load_study(parties.coordinator / "study.toml")
    changed = study.simulation.model_copy(
        update={"dropouts": _dropout(2, victim, "shares")}
    )
    policy = load_policy(parties.folder / victim / "site.toml")
    local = tmp_path / "local"
    run_study(
        study.model_copy(update={"simulation": changed}),
        EXAMPLE,
        local,
        policy,
        NoProgress(),
    )
    for number in range(ROUNDS + 1):
        name = f"adapters/round-{number:03d}.safetensors"
        assert file_sha256(parties.run / name) == file_sha256(local / name)


def _dropout(number: int, site: str, phase: str) -> tuple[Any, ...]:
    from secfed.study.sections import Dropout  # noqa: PLC0415

    return (Dropout.model_construct(round=number, site=site, phase=phase),)


@pytest.mark.deployment
def test_half_the_sites_gone_aborts_and_a_resume_spends_nothing_twice(
    parties: Parties,
) -> None:
    gone = parties.study.sites[2:]
    start(parties)
    wait_for(parties, lambda s: s.get("round") == 1 and s["phase"] == "local training")
    for site in gone:
        parties.kill(site)
    assert finish(parties) == 5
    assert "the adapter of the round before stands" in parties.log("coordinator")
    for site in gone:
        parties.start_site(site)
    parties.start_coordinator(resume=True)
    assert finish(parties) == 0
    assert [line["status"] for line in metrics(parties)[1:]] == [
        "interrupted",
        "completed",
    ]
    assert all(charged(parties, site) == [1, 2] for site in parties.study.sites)
    assert_verified(parties.run)


@pytest.mark.deployment
def test_a_killed_coordinator_resumes_with_the_same_sites(parties: Parties) -> None:
    start(parties)
    wait_for(parties, lambda s: s.get("round") == 2)
    parties.kill("coordinator")
    parties.start_coordinator(resume=True)
    assert finish(parties) == 0
    assert all(set(charged(parties, s)) <= {1, 2} for s in parties.study.sites)
    assert all(
        len(set(charged(parties, s))) == len(charged(parties, s))
        for s in parties.study.sites
    )
    assert_verified(parties.run)
