"""A small release around invented evidence: run, attack report, two people, bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evidence
import numpy as np
from safetensors.numpy import save

from secfed.canonical import canonical_json
from secfed.gate.candidate import Asked, make_request
from secfed.gate.documents import CardFacts
from secfed.gate.sealing import approve, make_bundle
from secfed.privacy import accounting
from secfed.signing import CoordinatorKey
from secfed.statement import round_event_json
from secfed.study import Study

ADA, BOB = CoordinatorKey(b"\x0a" * 32), CoordinatorKey(b"\x0b" * 32)
MODULE = "base_model.model.bert.encoder.layer.0.attention.self.query"
CONFIG = {
    "auto_mapping": None,
    "base_model_name_or_path": "model",
    "peft_type": "LORA",
    "r": 2,
    "task_type": "TOKEN_CLS",
}
CARD = CardFacts(base_model="someone/some-encoder", intended_use="Tests.")


def adapter(rank: int = 2, value: float = 0.5) -> bytes:
    tensors = {
        f"{MODULE}.lora_A.weight": np.full((rank, 8), value, np.float32),
        f"{MODULE}.lora_B.weight": np.full((8, rank), value, np.float32),
    }
    return save(tensors, metadata={"format": "pt"})


def finding(part: str, name: str, **changes: Any) -> dict[str, Any]:
    told = {"number": 1, "part": part, "name": name, "verdict": "ok", "text": "fine"}
    return told | {"values": {}} | changes


def audit(study: Study | None = None, **subject: Any) -> dict[str, Any]:
    """What ``secfed audit`` writes of the runs of ``evidence``."""
    study, plan = study or evidence.make_study(), evidence.make_plan()
    event = accounting.event_from_json(round_event_json(plan.to_json()))
    about = {
        "study": study.name,
        "study_digest": study.digest(),
        "site": "north",
        "method": "ffa-lora",
        "rounds": 3,
        "optimizer": "sgd",
        "unit": plan.unit,
        "noise_multiplier": plan.noise_multiplier,
        "sampling_probability": plan.sampling_probability,
        "claimed_epsilon": accounting.epsilon([event] * 3, plan.delta),
        "delta": plan.delta,
        "charged_parts": ["B"],
        "charged_rounds": 3,
        "charged_epsilon": 1.0,
        "budget": "in the audit's own folder (rehearsal)",
    }
    values = {"p": 0.6, "epsilon_one_run": 0.2, "epsilon_one_run_fdp": 0.3, "tpr": 0.1}
    return {
        "format": 1,
        "kind": "audit; not a release",
        "subject": about | subject,
        "refuted": False,
        "findings": [
            finding("A", "one contribution is at most C"),
            finding("B", "Dirac canaries", number=2, values=values),
        ],
        "caution": "Not refuted is not private.",
    }


def refuted(report: dict[str, Any]) -> dict[str, Any]:
    report["refuted"] = True
    report["findings"][1]["verdict"] = "REFUTED"
    return report


def write_audit(path: Path, report: dict[str, Any]) -> Path:
    path.write_bytes(canonical_json(report) + b"\n")
    return path


def write_run(run: Path, **changes: Any) -> Path:
    config = json.dumps(CONFIG).encode()
    evidence.write_run(run, **{"adapter": adapter(), "config": config, **changes})
    return run


def ask(run: Path, out: Path, report: dict[str, Any] | None, **changes: Any) -> Asked:
    path = None
    if report is not None:
        path = write_audit(out.with_name(f"{out.name}-audit.json"), report)
    told = {"audit": path, "card": CARD} | changes
    return Asked(run=run, key=evidence.KEY, out=out, **told)


def write_candidate(folder: Path, **changes: Any) -> Path:
    """A request for a healthy run, in ``folder/candidate``."""
    run = write_run(folder / "run")
    make_request(ask(run, folder / "candidate", audit(), **changes))
    return folder / "candidate"


def approve_twice(candidate: Path) -> None:
    approve(candidate, ADA, "Ada", "DPO")
    approve(candidate, BOB, "Bob", "Head of IT")


def write_release(folder: Path) -> Path:
    """A whole release, in ``folder/release``."""
    candidate = write_candidate(folder)
    approve_twice(candidate)
    make_bundle(candidate, evidence.KEY, folder / "release")
    return folder / "release"
