"""A study of which the sites are elsewhere: from its first round to its release.

The run directory is the coordinator's: ledger, metrics, adapters, statement, report,
manifest, and under ``private/`` what it asked of whom. Budgets, receipts, records and
identity keys are the sites' and never come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer

from secfed.errors import StudyError
from secfed.runtime.arms import Arm
from secfed.runtime.deployed import Deadlines, RemoteSites
from secfed.runtime.envelope import Post
from secfed.runtime.loop import run_rounds
from secfed.runtime.notices import Notices
from secfed.runtime.progress import Progress
from secfed.runtime.record import ArmRecord
from secfed.runtime.remote_accounts import RemoteAccounts
from secfed.runtime.roster import Roster
from secfed.runtime.setup import Prepared
from secfed.runtime.watching import watched
from secfed.signing import CoordinatorKey
from secfed.strategies import check_maskable, check_ranks, strategy_of
from secfed.strategies.base import Strategy
from secfed.study import Study

__all__ = ["ASKED_NAME", "check_deployable", "serve_rounds"]

ASKED_NAME = "asked.jsonl"


def check_deployable(study: Study, *, rehearsal: bool) -> Strategy:
    """The study's rule, if the study can run with sites on other machines.

    Args:
        study: The study.
        rehearsal: Whether a simulation seed is allowed, on public text.

    Raises:
        StudyError: It names a simulation seed, or a rule that a deployment lacks.
    """
    where = f"study {study.name}"
    if study.simulation.seed is not None and not rehearsal:
        raise StudyError(
            where,
            "simulation.seed",
            "a seed that is known makes noise and masks known: NOT PRIVATE. Remove it; "
            "to rehearse with public text, give --rehearsal at every party",
        )
    strategy = check_maskable(strategy_of(study))
    check_ranks(strategy, study.adapter.ranks)
    if strategy.personal or strategy.needs == "nothing":
        raise StudyError(
            where,
            "training.method",
            f"{strategy.name} leaves models at the sites, and a deployment cannot "
            "score them yet; run it with `secfed run`",
        )
    if study.ledger is not None and study.ledger.cosignatures != "ed25519":
        raise StudyError(
            where,
            "ledger.cosignatures",
            "a roster pins each site's Ed25519 identity only, and sites cosign with "
            "that in a deployment; run it with `secfed run`",
        )
    return strategy


def serve_rounds(
    roster: Roster,
    prepared: Prepared,
    run_dir: Path,
    run_id: str,
    key: CoordinatorKey,
    post: Post,
    deadlines: Deadlines,
    progress: Progress,
    *,
    rehearsal: bool = False,
    also: Sequence[Signer] = (),
) -> dict[str, Any]:
    """Run what is missing of a study, then give the sites the final adapter.

    Args:
        roster: Who takes part.
        prepared: The public test set and the model; no site's records.
        run_dir: The coordinator's run directory.
        run_id: 16 hexadecimal digits; sites charge their budgets under it.
        key: The coordinator's signing key, which the roster names.
        post: Carries messages.
        deadlines: How long sites are waited for.
        progress: Told about phases and sites.
        rehearsal: Whether a simulation seed is allowed.
        also: Who signs every entry of the ledger beside the coordinator.

    Returns:
        The arm as in ``comparison.json``.

    Raises:
        TooFewSitesError, RoundAbortedError: The run can be resumed.
        SecfedError: What else went wrong.
    """
    study = roster.study
    strategy = check_deployable(study, rehearsal=rehearsal)
    arm = Arm(study.training.method, study)
    charged = f"{run_id}/{arm.name}"
    (run_dir / "private").mkdir(parents=True, exist_ok=True, mode=0o700)
    accounts = RemoteAccounts(
        run_dir / "private" / ASKED_NAME,
        prepared.plans,
        prepared.evaluations,
        roster.identities,
        study.privacy.delta,
    )
    with (
        watched(run_dir, study, run_id, progress, role="coordinator") as logged,
        ArmRecord(arm, prepared, run_dir, charged, accounts, key, also) as record,
    ):
        for site in roster.revoked:
            logged.event("key-revoked", site=site)
        sites = RemoteSites(
            arm,
            prepared,
            accounts,
            key,
            charged,
            post,
            deadlines,
            logged,
            Notices(roster, run_dir / "private"),
        )
        result = run_rounds(record, prepared, strategy, sites, run_dir, logged)
    last = max((run_dir / "adapters").glob("round-*.safetensors"))
    missing = set(sites.present()) - set(sites.send_final(last.read_bytes()))
    if missing:
        progress.note(f"without the final adapter: {', '.join(sorted(missing))}")
    return result
