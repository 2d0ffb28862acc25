"""From a real run and a real audit to a release that plain PEFT loads, by commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import released
import torch
from causal import causal_policy, causal_study, make_model, write_texts
from plain_peft import fresh_logits
from typer.testing import CliRunner

from secfed.adapters import attach_adapter, initial_adapter, load_adapter
from secfed.audit.dirac import DiracSettings
from secfed.audit.run import AuditRequest, run_audit
from secfed.cli import app
from secfed.models.decoder import load_causal_model
from secfed.runtime.local import run_study
from secfed.runtime.progress import NoProgress
from secfed.study import Study

SECFED = CliRunner()


def call(*args: object, code: int = 0) -> Any:
    """A command's JSON; fails where it ends otherwise."""
    result = SECFED.invoke(app, [*map(str, args), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def words(*args: object, code: int = 0) -> str:
    result = SECFED.invoke(app, [*map(str, args)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def train_and_attack(folder: Path) -> Study:
    digest = make_model(folder / "model", "gpt2")
    write_texts(folder)
    # A seed makes the audit's answer the same each time.
    study = causal_study("gpt2", digest, simulation__seed=5, model__dtype="float32")
    policy = causal_policy(study)
    run_study(study, folder, folder / "run", policy, NoProgress())
    request = AuditRequest(
        study=study,
        base_dir=folder,
        policy=policy,
        folder=folder / "audit",
        parts=("B",),
        dirac=DiracSettings(canaries=40, repetitions=0),
    )
    run_audit(request, NoProgress())
    return study


@pytest.mark.slow
def test_a_release_from_a_run_by_commands(tmp_path: Path) -> None:
    study = train_and_attack(tmp_path)
    run, candidate, out = (tmp_path / name for name in ("run", "candidate", "release"))
    # The gate
    asked = (
        "release",
        "request",
        run,
        "--audit",
        tmp_path / "audit",
        "--out",
        candidate,
    )
    refusal = call(*asked, code=4)
    assert "NOT PRIVATE" in refusal["error"]["message"]
    made = call(*asked, "--waive", "Invented texts.", "--license", "apache-2.0")
    assert (made["waived"], made["approvals_needed"]) == (["privacy"], 2)
    key = run / "private" / "coordinator.key"
    bundle = ("release", "bundle", candidate, "--key", key, "--out", out)
    call(*bundle, code=4)
    people = []
    for name in ("ada", "bob"):
        own = tmp_path / f"{name}.key"
        people.append(call("release", "key", own)["fingerprint"])
        signs = ("release", "approve", candidate, "--key", own, "--name", name)
        call(*signs, "--role", "DPO", "--digest", "00", code=3)
        call(*signs, "--role", "DPO", "--digest", made["digest"])
        call(*signs, "--role", "DPO", code=4)
    assert "candidate" in words("release", "show", candidate)
    signer = call(*bundle)["signed_by"]
    pins = [arg for person in people for arg in ("--approver", person)]
    report = call("verify", out, "--trust", signer, *pins)
    assert (report["kind"], report["passed"], report["pinned"]) == (
        "release",
        True,
        "PINNED",
    )
    told = words("verify", out, "--trust", signer, *pins)
    assert "WAIVED: NOT PRIVATE" in told
    assert "verified" in told
    assert 'license: "apache-2.0"' in (out / "README.md").read_text("utf-8")
    given = call("contributions", run)
    assert given == json.loads((out / "contributions.json").read_bytes())
    assert "no score" not in words("contributions", run)
    # Plain PEFT, in a fresh process that knows nothing of secfed
    base = load_causal_model(study.model, tmp_path)
    model = attach_adapter(base, study.adapter)
    start = initial_adapter(model, study.adapter)
    ids = np.random.default_rng(0).integers(1, 200, (3, 9))
    mask = np.ones_like(ids)
    theirs = fresh_logits(tmp_path / "model", out, "CausalLM", ids, mask, tmp_path)
    model.write(load_adapter(run / "adapters" / "round-002.safetensors", start).tensors)
    ours, before = logits(model, ids, mask), None
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    model.write(start.tensors)
    before = logits(model, ids, mask)
    assert np.abs(before - ours).max() > 10 * np.abs(theirs - ours).max()
    # One byte
    path = out / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert "adapter_model.safetensors" in words("verify", out, code=3)


def logits(model: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        found = model.network(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        )
    return np.asarray(found.logits)


def test_a_release_is_verified_without_torch(tmp_path: Path) -> None:
    release = released.write_release(tmp_path)
    code = (
        "import sys\n"
        "from secfed.cli import app\n"
        "app(['verify', sys.argv[1]], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'peft', 'opacus', 'flwr', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(release)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "UNPINNED" in found.stdout


def test_commands_say_what_to_do(tmp_path: Path) -> None:
    for name in ("key", "request", "approve", "bundle", "show"):
        told = words("release", name, "--help")
        assert "Example: secfed " in told
        assert f"release {name} " in told
    missing = words("release", "show", tmp_path, code=2)
    assert "neither a candidate nor a release" in missing
    run = released.write_run(tmp_path / "run")
    no_key = words("release", "request", run, "--out", tmp_path / "c", code=2)
    assert "secfed release key" in no_key
    bad = ("release", "request", run, "--out", tmp_path / "c", "--license", "Not One")
    (run / "private").mkdir()
    key = run / "private" / "coordinator.key"
    key.write_text((b"\x01" * 32).hex() + "\n")
    key.chmod(0o600)
    words(*bad, code=2)
    assert "belongs to a release" in words(
        "verify", run, "--approver", "ab" * 32, code=2
    )
    assert "attack report" in words(
        "release", "request", run, "--out", tmp_path / "c", code=4
    )
