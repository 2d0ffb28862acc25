"""From a finished run to a request: a folder that two people can look at and sign."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import secfed
from secfed.canonical import canonical_json, file_sha256
from secfed.errors import PolicyError, RunDirectoryError, VerificationError
from secfed.gate.attack import read_attack_report, require_of_run
from secfed.gate.card import render_card
from secfed.gate.checking import Candidate, Evidence, list_release
from secfed.gate.contributions import RunRecord, contributions
from secfed.gate.documents import LEAST_APPROVALS, CardFacts, Request
from secfed.gate.layout import (
    ATTACK_REPORT,
    CARD,
    CONTRIBUTIONS,
    PAGE,
    REQUEST,
    RUN_MANIFEST,
    place_of,
)
from secfed.gate.page import render_page
from secfed.gate.requirements import facts_of, unmet
from secfed.manifest import MANIFEST_NAME, read_manifest
from secfed.signing import CoordinatorKey
from secfed.verify import verify_run
from secfed.verify.files import Bundle, check_study, read_plain
from secfed.verify.story import read_ledger

__all__ = ["Asked", "appearing", "make_request", "now", "run_contributions"]


@dataclass(frozen=True)
class Asked:
    """What a coordinator asks to release.

    Attributes:
        run: A finished run, or an arm of a comparison.
        key: The coordinator's.
        out: The candidate's folder; it must not exist.
        audit: ``audit.json`` or its folder; None: there is none.
        reason: Why requirements that are not met shall not stop the release.
        card: For the model card.
        approvals_needed: How many people have to sign.
    """

    run: Path
    key: CoordinatorKey
    out: Path
    audit: Path | None = None
    reason: str | None = None
    card: CardFacts = field(default_factory=CardFacts)
    approvals_needed: int = LEAST_APPROVALS


def make_request(asked: Asked) -> Request:
    """Write a candidate: the files to be released, and a signed request for them.

    1. The run verifies and is this coordinator's. 2. Its files are copied. 3. What is
    not met has to be waived with a reason. 4. Card and page are drawn. 5. The request
    is signed; the folder appears whole or not at all.

    Raises:
        VerificationError: The run does not verify, or the report is not of it.
        PolicyError: A requirement is not met and no reason was given, or a reason was
            given and everything is met.
        RunDirectoryError: ``out`` exists, or the run is another coordinator's.
    """
    # 1
    bundle = _own_run(asked.run, asked.key)
    with appearing(asked.out) as folder:
        # 2
        _copy_run(bundle, folder)
        study, _ = check_study(bundle)
        record = RunRecord.of(read_ledger(bundle)[0])
        _write_json(folder / CONTRIBUTIONS, contributions(study.canonical(), record))
        if asked.audit is not None:
            data = _audit(asked.audit)
            require_of_run(read_attack_report(data), study, record.plan)
            (folder / ATTACK_REPORT).write_bytes(data)
        # 3
        evidence = Evidence(folder, bundle.manifest)
        draft = _signed(asked, record, evidence, ())
        missing = unmet(Candidate(folder, draft, {}, study, record, evidence))
        _require_reason(missing, asked.reason)
        # 4
        draft = _signed(asked, record, evidence, tuple(missing))
        facts = facts_of(Candidate(folder, draft, {}, study, record, evidence))
        (folder / CARD).write_text(render_card(facts), "utf-8")
        (folder / PAGE).write_text(render_page(facts), "utf-8")
        # 5
        request = _signed(asked, record, evidence, tuple(missing))
        (folder / REQUEST).write_bytes(request.to_bytes())
    return request


def run_contributions(run: Path) -> dict[str, Any]:
    """The contribution record of a run whose ledger verifies.

    Raises:
        VerificationError: Manifest, study or ledger do not verify.
        RunDirectoryError: There is no finished run here.
    """
    bundle = _bundle(run)
    study, _ = check_study(bundle)
    return contributions(study.canonical(), RunRecord.of(read_ledger(bundle)[0]))


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A new folder that is there whole, or not at all.

    Raises:
        RunDirectoryError: Something is there already.
    """
    if out.exists() or out.is_symlink():
        raise RunDirectoryError(f"{out} exists; choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir(mode=0o755)
    try:
        yield partial
        for path in list_release(partial).values():
            _sync(path)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def now() -> str:
    """The time as documents write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _own_run(run: Path, key: CoordinatorKey) -> Bundle:
    report = verify_run(run)
    if failed := report.failures():
        raise VerificationError(
            f"{run} does not verify, so it is not released: {failed[0].name}: "
            f"{failed[0].reason}"
        )
    if report.kind != "run":
        raise RunDirectoryError(
            f"{run} is a {report.kind}; name one run of it, for example its arms/NAME"
        )
    bundle = _bundle(run)
    if bundle.manifest.coordinator_key != key.public_bytes:
        raise RunDirectoryError(f"{run}: the key is not the one that signed this run")
    return bundle


def _bundle(run: Path) -> Bundle:
    if not (run / MANIFEST_NAME).is_file():
        raise RunDirectoryError(f"{run}: no {MANIFEST_NAME}, so not a finished run")
    return Bundle(run, read_manifest(read_plain(run / MANIFEST_NAME, MANIFEST_NAME)))


def _copy_run(bundle: Bundle, folder: Path) -> None:
    places = {name: place_of(name) for name in bundle.manifest.files}
    for name, place in {**places, MANIFEST_NAME: RUN_MANIFEST}.items():
        if place is not None:
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.root / name, target, follow_symlinks=False)


def _audit(path: Path) -> bytes:
    file = path / "audit.json" if path.is_dir() else path
    try:
        return read_plain(file, str(file))
    except OSError as error:
        raise RunDirectoryError(f"{file}: {error.strerror}") from error


def _require_reason(missing: dict[str, str], reason: str | None) -> None:
    if missing and reason is None:
        listed = "".join(f"\n  - {name}: {why}" for name, why in missing.items())
        raise PolicyError(
            f"this run is not released:{listed}\nPut it right, or say with --waive why "
            "it shall be released all the same; the model card will begin with that"
        )
    if reason is not None and not missing:
        raise PolicyError("everything is met, so there is nothing to --waive")


def _signed(
    asked: Asked, record: RunRecord, evidence: Evidence, waived: tuple[str, ...]
) -> Request:
    files = {n: file_sha256(path) for n, path in list_release(evidence.root).items()}
    return Request.signed(
        asked.key,
        time=now(),
        secfed_version=secfed.__version__,
        study_digest=evidence.manifest.study_digest,
        ledger_head=record.head,
        approvals_needed=asked.approvals_needed,
        waived=list(waived),
        reason=asked.reason if waived else None,
        card=asked.card.model_dump(mode="json"),
        files=files,
    )


def _write_json(path: Path, value: object) -> None:
    path.write_bytes(canonical_json(value) + b"\n")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
