"""Verify a run directory offline: no model, no PyTorch, no trust in its author.

A run directory that verifies agrees with itself and was signed by the holder of
one key. Whose key that is says the fingerprint: give it as ``trust``, from
elsewhere than the directory, or the report is UNPINNED. What a verified ledger
does not prove: that a site really added the noise it recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from secfed.errors import VerificationError
from secfed.signing import fingerprint, parse_fingerprint
from secfed.verify import claims, heads
from secfed.verify.bound import check_records
from secfed.verify.checks import Check, Checklist, VerificationReport
from secfed.verify.comparison import ARMS, check_arms, check_comparison
from secfed.verify.files import Bundle, check_files, check_study, is_directory
from secfed.verify.grid import CELLS, check_cells, check_composed, check_grid
from secfed.verify.story import read_ledger, tell

__all__ = ["Check", "Pins", "VerificationReport", "check_run", "verify_run"]


@dataclass(frozen=True)
class Pins:
    """What the auditor knows from elsewhere than the directory.

    Attributes:
        coordinator: Fingerprint of the coordinator's key, in groups or not.
        witnesses: Fingerprints of the sites' keys, by site.
        seen: Checkpoints of the ledger that were kept elsewhere.
        records: Signed records that the ledger has to bind, their salts beside them.
    """

    coordinator: str | None = None
    witnesses: Mapping[str, str] = field(default_factory=dict)
    seen: tuple[Path, ...] = ()
    records: tuple[Path, ...] = ()

    @classmethod
    def read(
        cls,
        trust: str | None,
        witnesses: Mapping[str, str] | None,
        seen: Sequence[str | Path],
        records: Sequence[str | Path] = (),
    ) -> Self:
        """From arguments as ``verify_run`` takes them.

        Raises:
            ValueError: A witness's fingerprint is none.
        """
        known = {s: parse_fingerprint(pin) for s, pin in (witnesses or {}).items()}
        return cls(trust, known, tuple(map(Path, seen)), tuple(map(Path, records)))


def verify_run(
    path: str | Path,
    trust: str | None = None,
    *,
    witnesses: Mapping[str, str] | None = None,
    seen: Sequence[str | Path] = (),
    records: Sequence[str | Path] = (),
) -> VerificationReport:
    """Check a run, a comparison with its arms, or a grid with its cells.

    Never raises because of what the directory holds; every finding is a check.

    Args:
        path: The run directory.
        trust: The fingerprint of the coordinator whose signature is expected,
            in groups or not. None gives an UNPINNED report.
        witnesses: Fingerprints of sites' keys, in groups or not, by site; each of them
            has to have cosigned the ledger of every run with that key.
        seen: Checkpoint files that were kept elsewhere; the ledger has to extend each.
        records: Records of incidents and withdrawals, each with its salt beside it;
            the ledger has to bind each.

    Returns:
        The report; ``passed`` is the answer.
    """
    root = Path(path)
    pins = Pins.read(trust, witnesses, seen, records)
    checklist = Checklist()
    if not checklist.ask("directory", lambda: _check_directory(root)):
        return VerificationReport(
            path=str(path),
            kind="unknown",
            fingerprint=None,
            pinned=False,
            checks=tuple(checklist.done),
        )
    if is_directory(root / CELLS):
        return _verify_grid(root, pins, checklist)
    if is_directory(root / ARMS):
        return _verify_comparison(root, pins, checklist)
    return _verify_single(root, pins, checklist)


def _check_directory(root: Path) -> str:
    if not root.exists():
        raise VerificationError(f"{root}: there is no such directory")
    if not root.is_dir():
        raise VerificationError(f"{root}: not a directory; give the run's directory")
    return "it exists"


def _report(
    root: Path,
    kind: str,
    checklist: Checklist,
    signer: tuple[Bundle | None, bool],
    arms: tuple[VerificationReport, ...] = (),
) -> VerificationReport:
    bundle, pinned = signer
    return VerificationReport(
        path=str(root),
        kind=kind,
        fingerprint=fingerprint(bundle.manifest.coordinator_key) if bundle else None,
        pinned=pinned,
        checks=tuple(checklist.done),
        arms=arms,
    )


def _verify_single(root: Path, pins: Pins, checklist: Checklist) -> VerificationReport:
    signer = check_files(root, pins.coordinator, checklist)
    if signer[0] is not None:
        check_run(signer[0], checklist, pins)
    return _report(root, "run", checklist, signer)


def check_run(bundle: Bundle, checklist: Checklist, pins: Pins) -> None:
    """Make the checks of a single run: its ledger, and what follows from it."""
    manifest = bundle.manifest
    study = checklist.read("study", lambda: check_study(bundle))
    entries = checklist.read("ledger", lambda: read_ledger(bundle))
    if study is None or entries is None:
        return
    story = checklist.read(
        "order of entries", lambda: tell(entries, manifest.coordinator_key, study)
    )
    if story is None:
        return
    head = checklist.read("tree head", lambda: heads.read_head(bundle, story))
    if head is None:
        checklist.ask("witnesses", lambda: "", needs="there is no tree head")
    else:
        cosigned = partial(heads.check_witnesses, head, story, study, pins.witnesses)
        checklist.ask("witnesses", cosigned)
    if pins.seen:
        checklist.ask("seen before", lambda: heads.check_seen(bundle, story, pins.seen))
    if pins.records:
        checklist.ask("records", lambda: check_records(story, pins.records))
    checklist.ask("plan and steps", lambda: claims.check_plan(story, study))
    if study.teacher is not None or story.plan.teacher is not None:
        checklist.ask("teacher", lambda: claims.check_teacher(bundle, story, study))
    if study.tuning is not None:
        checklist.ask("tuning", lambda: claims.check_tuning(bundle, story, study))
    checklist.ask("adapters", lambda: claims.check_adapters(story, manifest))
    checklist.ask("epsilon", lambda: claims.check_epsilon(story, study))
    checklist.ask("statement", lambda: claims.check_statement(bundle, story, study))
    checklist.ask("metrics", lambda: claims.check_metrics(bundle, story))


def _verify_comparison(
    root: Path, pins: Pins, checklist: Checklist
) -> VerificationReport:
    signer = check_files(root, pins.coordinator, checklist)
    bundle = signer[0]
    if bundle is not None:
        study = checklist.read("study", lambda: check_study(bundle))
        listed = checklist.read("comparison", lambda: check_comparison(bundle))
        if study is not None and listed is not None:
            checklist.ask("arms", lambda: check_arms(bundle, study, listed))
    arms = tuple(_verify_arm(child, pins) for child in sorted((root / ARMS).iterdir()))
    return _report(root, "comparison", checklist, signer, arms)


def _verify_grid(root: Path, pins: Pins, checklist: Checklist) -> VerificationReport:
    signer = check_files(root, pins.coordinator, checklist)
    bundle = signer[0]
    if bundle is not None:
        study = checklist.read("study", lambda: check_study(bundle))
        if study is not None:
            cells = checklist.read("grid", lambda: check_grid(bundle, study))
            if cells is not None:
                checklist.ask("cells", lambda: check_cells(bundle, cells))
                checklist.ask("composed", lambda: check_composed(bundle, study))
    children = sorted((root / CELLS).iterdir())
    found = tuple(_verify_cell(child, pins) for child in children)
    return _report(root, "grid", checklist, signer, found)


def _verify_cell(root: Path, pins: Pins) -> VerificationReport:
    checklist = Checklist()
    if not checklist.ask("directory", lambda: _check_inner(root, CELLS)):
        return _report(root, "unknown", checklist, (None, False))
    if not is_directory(root / ARMS):
        checklist.ask("arms", lambda: "", needs=f"{root.name} has no {ARMS}/")
        return _report(root, "unknown", checklist, (None, False))
    return _verify_comparison(root, pins, checklist)


def _verify_arm(root: Path, pins: Pins) -> VerificationReport:
    checklist = Checklist()
    if not checklist.ask("directory", lambda: _check_inner(root, ARMS)):
        return _report(root, "unknown", checklist, (None, False))
    return _verify_single(root, pins, checklist)


def _check_inner(root: Path, folder: str) -> str:
    if not is_directory(root):
        raise VerificationError(f"{folder}/{root.name}: not a directory")
    return "it exists"
