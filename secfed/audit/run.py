"""An audit from a study to its report, on a folder that is never a release."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from secfed.audit.conformance import check_conformance
from secfed.audit.data_canaries import DataSettings, check_data
from secfed.audit.dirac import DiracSettings, check_dirac, claim_of
from secfed.audit.findings import AuditReport, Findings
from secfed.audit.rehearsal import Rehearsal, copy_of
from secfed.canonical import canonical_json
from secfed.data import load_sites
from secfed.data.own import load_own
from secfed.errors import PolicyError, RunDirectoryError, StudyError
from secfed.governance import SiteApprovals, StudyManifest
from secfed.policy import SitePolicy
from secfed.privacy import accounting
from secfed.runtime.directory import write_atomically
from secfed.runtime.progress import Progress
from secfed.runtime.setup import Prepared, prepare_data
from secfed.study import Study
from secfed.study.reading import nearest

__all__ = ["AuditRequest", "require_own_folder", "run_audit"]

_OF_A_RUN: Final = (
    "private/run.json",
    "private/serve.json",
    "ledger.jsonl",
    "manifest.json",
    "statement.json",
)

_NO_PAIRS: Final = (
    "an audit's canaries and invented records have no states for a mentor; audit the "
    "same study without mutual, whose sums are bounded and noised by the same functions"
)


@dataclass(frozen=True)
class AuditRequest:
    """What is audited, and how thoroughly.

    Attributes:
        study: As the sites approved it.
        base_dir: Folder that its paths start from.
        policy: Of the sites.
        folder: Of the audit; new or empty.
        site: The audited site; None: the study's first.
        own: Only this site's records are here.
        parts: Of A, B and C.
        rounds: At most those of the study; None: all of them.
        dirac: Settings of part B.
        data: Settings of part C.
        run: A finished run whose ledger is replayed.
    """

    study: Study
    base_dir: Path
    policy: SitePolicy
    folder: Path
    site: str | None = None
    own: bool = False
    parts: Collection[str] = ("A", "B", "C")
    rounds: int | None = None
    dirac: DiracSettings = field(default_factory=DiracSettings)
    data: DataSettings = field(default_factory=DataSettings)
    run: Path | None = None


def run_audit(request: AuditRequest, progress: Progress) -> AuditReport:
    """Run the wanted parts and write ``audit.json`` into the audit's folder.

    1. refuse a folder that belongs to a run; 2. prepare the copy; 3. the parts, in
    order; 4. the report.

    Raises:
        RunDirectoryError: The folder is a run's, or not empty.
        PolicyError, BudgetExceededError: A site refuses; the message says when.
        SecfedError: The study, its data or its model cannot be used.
    """
    # 1
    require_own_folder(request.folder)
    site = request.site or request.study.sites[0]
    if site not in request.study.sites:
        problem = f"unknown site {site!r}; {nearest(site, request.study.sites)}"
        raise StudyError(request.study.name, "--site", problem)
    if request.study.mentor_adapter is not None:
        raise StudyError(request.study.name, "distillation.mutual", _NO_PAIRS)
    # 2
    request = replace(request, policy=_asking(request))
    prepared = _prepare(request, site, progress)
    rehearsal = Rehearsal(
        study=copy_of(request.study, request.rounds),
        prepared=prepared,
        policy=request.policy,
        folder=request.folder / "private",
        site=site,
        progress=progress,
    )
    # 3
    findings = Findings()
    if "A" in request.parts:
        progress.phase("conformance: invented records through the training functions")
        check_conformance(rehearsal, findings, request.run)
    charged = [part for part in "BC" if part in request.parts]
    curve = claim_of(rehearsal) if charged else None
    if curve is not None and "B" in charged:
        progress.phase("Dirac canaries in a copy of the run")
        check_dirac(rehearsal, findings, request.dirac, curve)
    if curve is not None and "C" in charged:
        progress.phase("data canaries in a copy of the run")
        check_data(rehearsal, findings, request.data, curve)
    # 4
    report = AuditReport(_subject(request, rehearsal, charged), tuple(findings.done))
    path = request.folder / "audit.json"
    write_atomically(path, canonical_json(report.to_json()) + b"\n")
    return report


def require_own_folder(folder: Path) -> None:
    """Refuse a folder that is not new, or that lies in a run.

    Raises:
        RunDirectoryError: Its results could be taken for a release, or spoil one.
    """
    place = folder.resolve()
    for above in (place, *place.parents):
        if any((above / name).exists() for name in _OF_A_RUN):
            raise RunDirectoryError(
                f"{folder}: {above} is a run that would be released, and an audit "
                "writes canaries; choose another --out"
            )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunDirectoryError(f"{folder}: not a new folder; choose another --out")


def _asking(request: AuditRequest) -> SitePolicy:
    """The policy; where people must sign, whoever approved the study approved its copy.

    The copy has another digest, and differs in what cannot change the guarantee only.
    """
    policy, study = request.policy, request.study
    if policy.approvals is None:
        return policy
    consent = policy.consent or SiteApprovals(policy, StudyManifest(study)).require
    return policy.asking(lambda _copy: consent(study), policy.approvals)


def _prepare(request: AuditRequest, site: str, progress: Progress) -> Prepared:
    study, base = request.study, request.base_dir
    data = load_own(study, base, site) if request.own else load_sites(study, base)
    prepared = prepare_data(study, base, data, request.policy, progress)
    if not prepared.records:
        raise PolicyError(f"{site}: holds no records that could be audited")
    return prepared


def _subject(
    request: AuditRequest, rehearsal: Rehearsal, charged: Collection[str]
) -> dict[str, Any]:
    plan = rehearsal.plan
    event = plan.round_event()
    rounds = rehearsal.rounds
    cost = accounting.epsilon([event] * rounds * max(len(charged), 1), plan.delta)
    return {
        "study": request.study.name,
        "study_digest": request.study.digest(),
        "site": rehearsal.site,
        "method": request.study.training.method,
        "rounds": rounds,
        "optimizer": "sgd (a copy; the optimizer is post-processing)",
        "unit": plan.unit,
        "noise_multiplier": plan.noise_multiplier,
        "sampling_probability": plan.sampling_probability,
        "claimed_epsilon": accounting.epsilon([event] * rounds, plan.delta),
        "delta": plan.delta,
        "charged_parts": list(charged),
        "charged_rounds": rounds * len(charged),
        "charged_epsilon": cost if charged else 0.0,
        # Not the folder: an audit.json leaves in a release.
        "budget": "the sites' own"
        if request.policy.budget_dir
        else "in the audit's own folder (rehearsal)",
    }
