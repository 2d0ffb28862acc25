"""A site withdraws from a study: from now on, and with a statement of what remains.

A withdrawal is a file in the site's state folder. As long as it is there, the site
answers no order of that study. It undoes nothing: what was sent is in the sums, in
every adapter since, and in what was made of them. What remains true is the bound of
differential privacy on what all of it can say about one unit of this site.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from secfed.canonical import file_sha256, sha256_hex
from secfed.errors import PolicyError
from secfed.policy import SitePolicy, load_policy
from secfed.privacy import accounting
from secfed.privacy.budget import Budget
from secfed.privacy.chain import Charge
from secfed.runtime.directory import write_atomically
from secfed.runtime.keys import SiteKeys
from secfed.runtime.signed_records import EFFECT, read_record, signed
from secfed.study import Study

__all__ = ["Withdrawal", "record_path", "require_participating", "withdraw"]

_FOLDER: Final = "withdrawn"
_FINAL: Final = "final.safetensors"


@dataclass(frozen=True)
class Withdrawal:
    """What a site has spent in a study until it withdrew, as it signed it.

    Attributes:
        data: The signed file; nothing in it is secret.
        fields: What it says.
        new: False where the site had withdrawn before.
    """

    data: bytes
    fields: dict[str, Any]
    new: bool

    @property
    def sha256(self) -> str:
        """Of the signed file."""
        return sha256_hex(self.data)


def record_path(state_dir: Path, study: str) -> Path:
    """Where a site keeps its withdrawal from the study of this digest."""
    return state_dir / _FOLDER / f"{study}.json"


def require_participating(state_dir: Path, study: str) -> None:
    """Let a site answer orders of a study, unless it withdrew.

    Whatever stands at the place of the record counts as one.

    Raises:
        PolicyError: It withdrew.
    """
    path = record_path(state_dir, study)
    if path.exists() or path.is_symlink():
        raise PolicyError(f"{path}: this site withdrew from the study", ["withdrawn"])


def withdraw(
    study: Study, site: str, keys: SiteKeys, policy_file: Path, state_dir: Path
) -> Withdrawal:
    """Withdraw a site from a study, durably; a second time changes nothing.

    Args:
        study: Which one.
        site: The site's name.
        keys: Its keys; the identity signs.
        policy_file: Its policy, which says where its budgets are.
        state_dir: Its state folder.

    Raises:
        BudgetFileError: The budget is damaged, and nothing was withdrawn. Pull the
            kill switch, mend the budget, and withdraw then.
        VerificationError: A record is there and is damaged.
    """
    path = record_path(state_dir, study.digest())
    if path.exists():
        data = path.read_bytes()
        return Withdrawal(data, read_record(data, path), new=False)
    policy = load_policy(policy_file)
    charges = _charges(policy, study, site, state_dir)
    fields = {
        "kind": "withdrawal",
        "by": site,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": study.digest(),
        "effect": EFFECT,
        "runs": list(_runs(charges, state_dir)),
        "unit": study.privacy.unit,
        **_bound(study, charges),
    }
    data = signed(keys.identity.public_bytes, keys.sign_record, fields)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, data)
    return Withdrawal(data, read_record(data, path), new=True)


def _charges(
    policy: SitePolicy, study: Study, site: str, state_dir: Path
) -> tuple[Charge, ...]:
    """What the study has cost this site, in every run of it."""
    folder = Path(policy.budget_dir) if policy.budget_dir else state_dir / "sites"
    path = folder / site / "budget.sqlite"
    if not path.exists() and not path.with_name(f"{path.name}.log").exists():
        return ()
    return tuple(
        charge
        for account in Budget.read(path)
        for charge in account.charges
        if charge.study_digest == study.digest()
    )


def _runs(charges: Sequence[Charge], state_dir: Path) -> Iterable[dict[str, Any]]:
    """Each run, its paid rounds, and the last adapter of it that the site has."""
    for run in sorted({charge.run_id for charge in charges}):
        last = state_dir / "runs" / run.split("/")[0] / _FINAL
        yield {
            "run": run,
            "rounds": sorted({c.round for c in charges if c.run_id == run}),
            "final_adapter_sha256": file_sha256(last) if last.is_file() else None,
        }


def _bound(study: Study, charges: Sequence[Charge]) -> dict[str, float | None]:
    """Epsilon and delta of everything that the study was paid; None: NOT PRIVATE."""
    if study.simulation.seed is not None:
        return {"epsilon": None, "delta": None}
    delta = study.privacy.delta
    events = [charge.event for charge in charges]
    epsilon = accounting.epsilon(events, delta) if events else 0.0
    return {"epsilon": float(epsilon), "delta": float(delta)}
