"""Small run directories with real evidence around fake adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from protocols.keys import SigningKey
from secfed.canonical import canonical_json, file_sha256, sha256_hex
from secfed.checkpoints import Checkpoint, Cosigner, witness_key
from secfed.entries import (
    EvaluationInterruptedEntry,
    InterruptedEntry,
    PlanEntry,
    ReleaseEntry,
    RoundEntry,
    RunCosts,
    StudyEntry,
    TuningEntry,
)
from secfed.ledger import CHECKPOINT_NAME, Ledger
from secfed.manifest import write_manifest
from secfed.privacy import accounting
from secfed.privacy.plan import PrivacyPlan, Unit
from secfed.signing import CoordinatorKey
from secfed.statement import StatementContext, build_statement, round_event_json
from secfed.study import Study, load_study_dict

TIME = "2026-03-01T12:00:00Z"
SITES = ("north", "south", "west")
KEY = CoordinatorKey(b"\x01" * 32)
OTHER_KEY = CoordinatorKey(b"\x02" * 32)
IDENTITIES = {site: SigningKey(site.encode().ljust(32, b".")) for site in SITES}
RUN_ID = "0123456789abcdef/ffa-lora"
DELTA = 1e-5

STUDY: dict[str, Any] = {
    "format": 1,
    "study": {"name": "tiny", "title": "Three sites"},
    "data": {
        "source": "records.csv",
        "text_column": "text",
        "label_column": "label",
        "labels": ["a", "b"],
        "site_column": "hospital",
        "partition": {"kind": "natural", "sites": list(SITES)},
        "holdout": {"fraction": 0.2},
    },
    "model": {"path": "model", "sha256": "ab" * 32},
    "adapter": {"r": 2, "lora_alpha": 4.0},
    "training": {
        "method": "ffa-lora",
        "rounds": 3,
        "steps_per_round": 2,
        "expected_batch": 50,
        "head_learning_rate": 0.01,
        "learning_rate": {"ffa-lora": 0.001, "fedavg": 0.001},
    },
    "privacy": {
        "epsilon": 8.0,
        "delta": DELTA,
        "unit": "record",
        "nominal_units": dict.fromkeys(SITES, 1000),
    },
}

Body = dict[str, Any]
Change = Callable[[int, Body], Body]


def make_study(
    seed: int | None = None, method: str = "ffa-lora", unit: str = "record"
) -> Study:
    values = copy.deepcopy(STUDY)
    values["privacy"]["unit"] = unit
    values["training"]["method"] = method
    if seed is not None:
        values["simulation"] = {"seed": seed}
    return load_study_dict(values, "tiny")


def make_plan(unit: Unit = "record") -> PrivacyPlan:
    whole = unit == "site"
    return PrivacyPlan(
        unit=unit,
        max_records_per_unit=1,
        neighbouring="add-remove",
        clip_norm=1.0,
        noise_multiplier=1.5 if whole else 1.0,
        sampling_probability=1.0 if whole else 0.05,
        expected_batch=1 if whole else 50,
        steps_per_round=1 if whole else 2,
        rounds=3,
        delta=DELTA,
        nominal_units=1000,
    )


def study_entry(
    study: Study | None = None, key: CoordinatorKey = KEY, **values: Any
) -> StudyEntry:
    study = study or make_study()
    fields = {
        "study_digest": study.digest(),
        "name": study.name,
        "method": study.training.method,
        "model_sha256": study.model.sha256,
        "simulation_seed": study.simulation.seed,
        "coordinator_key": key.public_bytes.hex(),
        "secfed_version": "0.1.0",
        "run_id": RUN_ID,
    }
    return StudyEntry(**fields | values)


def plan_entry(private: bool = True, unit: Unit = "record") -> PlanEntry:
    plan = make_plan(unit).to_json() if private else None
    return PlanEntry(
        private=private,
        sites=dict.fromkeys(SITES, plan),
        identities={site: IDENTITIES[site].public_bytes.hex() for site in SITES},
        threshold=2,
        max_colluders=1,
        ring_bits=32,
        mode="malicious",
        suite=2,
        initial_adapter_sha256=sha256_hex(b"adapter 0"),
    )


def round_entries(
    private: bool = True, unit: Unit = "record"
) -> list[RoundEntry | InterruptedEntry]:
    """Round 1 whole, round 2 interrupted, round 3 with a dropout."""
    event = round_event_json(make_plan(unit).to_json())
    spent = dict.fromkeys(SITES, event) if private else {}
    totals = [
        accounting.epsilon([accounting.event_from_json(event)] * count, DELTA)
        for count in (1, 2, 3)
    ]
    return [
        RoundEntry(
            round=1,
            attempt=1,
            participants=SITES,
            survivors=SITES,
            dropouts={},
            aggregate_sha256=sha256_hex(b"sum 1"),
            adapter_sha256=sha256_hex(b"adapter 1"),
            spent=spent,
            epsilon=dict.fromkeys(spent, totals[0]),
        ),
        InterruptedEntry(
            round=2,
            attempt=1,
            participants=SITES,
            spent=spent,
            epsilon=dict.fromkeys(spent, totals[1]),
            reason="interrupted",
        ),
        RoundEntry(
            round=3,
            attempt=1,
            participants=SITES,
            survivors=("north", "west"),
            dropouts={"south": "shares"},
            aggregate_sha256=sha256_hex(b"sum 3"),
            adapter_sha256=sha256_hex(b"adapter 3"),
            spent=spent,
            epsilon=dict.fromkeys(spent, totals[2]),
        ),
    ]


def metrics_lines(private: bool = True, unit: Unit = "record") -> list[Body]:
    lines: list[Body] = [{"round": 0, "status": "completed", "accuracy": 0.5}]
    for entry in round_entries(private, unit):
        completed = isinstance(entry, RoundEntry)
        line: Body = {"round": entry.round, "epsilon": entry.epsilon}
        line["status"] = "completed" if completed else "interrupted"
        if isinstance(entry, RoundEntry):
            line |= {"survivors": list(entry.survivors), "dropouts": entry.dropouts}
            line["accuracy"] = 0.5 + entry.round / 10
        lines.append(line)
    return lines


def write_run(
    run: Path,
    *,
    key: CoordinatorKey = KEY,
    private: bool = True,
    seed: int | None = None,
    method: str = "ffa-lora",
    unit: Unit = "record",
    study: Study | None = None,
    plan: PlanEntry | None = None,
    change: Change = lambda index, body: body,
    statement: Change = lambda index, body: body,
    witnesses: Sequence[str] = SITES,
    adapter: bytes = b"final adapter",
    config: bytes = b'{"r":2}',
    tuning: Sequence[RunCosts] = (),
) -> None:
    """Write an arm as a runtime would; ``change`` rewrites ledger bodies first.

    ``statement`` rewrites the statement (index -1) before it is recorded.
    """
    study = study or make_study(seed, method, unit)
    (run / "adapters").mkdir(parents=True)
    (run / "adapter").mkdir()
    for number in (0, 1, 3):
        path = run / "adapters" / f"round-{number:03d}.safetensors"
        path.write_bytes(f"adapter {number}".encode())
    model = run / "adapter" / "adapter_model.safetensors"
    model.write_bytes(adapter)
    settings = run / "adapter" / "adapter_config.json"
    settings.write_bytes(config)
    (run / "study.json").write_bytes(canonical_json(study.canonical()))
    lines = [canonical_json(line) + b"\n" for line in metrics_lines(private, unit)]
    (run / "metrics.jsonl").write_bytes(b"".join(lines))
    (run / "report.html").write_bytes(b"<html></html>")
    plan = plan or plan_entry(private, unit)
    rounds = round_entries(private, unit)
    context = StatementContext(scored=metrics_lines(private, unit)[-1])
    said = build_statement(study.canonical(), plan, rounds, context, (), tuning)
    (run / "statement.json").write_bytes(canonical_json(statement(-1, said)))
    entries = [
        study_entry(study, key, simulation_seed=seed),
        plan,
        *[TuningEntry(costs=costs) for costs in tuning],
        *rounds,
        ReleaseEntry(
            adapter_sha256=file_sha256(model),
            config_sha256=file_sha256(settings),
            statement_sha256=file_sha256(run / "statement.json"),
            rounds_completed=2,
            rounds_interrupted=1,
        ),
    ]
    with Ledger(run / "ledger.jsonl", key) as ledger:
        for index, entry in enumerate(entries):
            ledger.append(entry.kind, change(index, entry.to_body()), TIME)
        write_checkpoint(run, ledger, witnesses)
    write_manifest(run, study.digest(), key)


def entries_of(path: Path) -> list[tuple[str, Body]]:
    """Kind and body of every entry of a ledger that ``KEY`` signed."""
    with Ledger(path, KEY) as ledger:
        return [(entry.kind, dict(entry.body)) for entry in ledger.entries()]


def write_entries(path: Path, entries: Sequence[tuple[str, Body]]) -> None:
    """A ledger of these entries, in the place of another if there is one."""
    path.unlink(missing_ok=True)
    with Ledger(path, KEY) as ledger:
        for kind, body in entries:
            ledger.append(kind, body, TIME)


def scored(entries: Sequence[tuple[str, Body]]) -> tuple[str, Body]:
    """An evaluation after round 3 that spent at each site what a round does."""
    entry = EvaluationInterruptedEntry(
        round=3,
        attempt=1,
        participants=SITES,
        spent={site: dict(entries[2][1]["spent"][site]) for site in SITES},
        epsilon=dict.fromkeys(SITES, 1.0),
        reason="too few sites agreed to evaluate",
    )
    return entry.kind, entry.to_body()


def write_checkpoint(run: Path, ledger: Ledger, witnesses: Sequence[str] = SITES):
    """Cosigned by sites that look at nothing."""
    note = ledger.checkpoint()
    checkpoint = Checkpoint.parse(note.text)
    lines = [cosigner(site).cosign(checkpoint, 1_800_000_000) for site in witnesses]
    whole = note.with_signatures(lines)
    (run / CHECKPOINT_NAME).write_bytes(whole.to_bytes())


def cosigner(site: str) -> Cosigner:
    identity = IDENTITIES[site]
    return Cosigner(witness_key(site, identity.public_bytes), identity.sign)


def write_comparison(
    run: Path, key: CoordinatorKey = KEY, study: Study | None = None
) -> None:
    """Two arms; ``study`` is what the comparison says, and not what its arms do."""
    study = study or make_study()
    arms = []
    for method in ("ffa-lora", "fedavg"):
        write_run(run / "arms" / method, method=method, key=key)
        arms.append(
            {"name": method, "run": f"arms/{method}", "rounds": metrics_lines()}
        )
    comparison = {"format": 1, "study_digest": study.digest(), "arms": arms}
    (run / "comparison.json").write_bytes(canonical_json(comparison))
    (run / "study.json").write_bytes(canonical_json(study.canonical()))
    (run / "report.html").write_bytes(b"<html></html>")
    (run / "private").mkdir(mode=0o700)
    (run / "private" / "coordinator.key").write_bytes(b"secret")
    write_manifest(run, study.digest(), key)
