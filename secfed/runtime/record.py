"""What one arm leaves on disk, and how it continues after a crash.

A round is committed by its ledger entry, which is written last: first the
adapter, then the metrics line, then the entry. Whatever a crash leaves of an
uncommitted round is removed by ``recover``; if any site had reserved it, the
round counts as spent, is recorded as interrupted, and is not repeated.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors.numpy import load, save

import secfed
from protocols.secagg.params import default_threshold
from secfed.adapters import load_adapter, save_adapter
from secfed.canonical import canonical_json, file_sha256, sha256_hex
from secfed.client import BudgetGuard, Site
from secfed.entries import (
    InterruptedEntry,
    PlanEntry,
    ReleaseEntry,
    RoundEntry,
    StudyEntry,
)
from secfed.errors import BudgetExceededError, RunDirectoryError
from secfed.ledger import Ledger
from secfed.manifest import write_manifest
from secfed.models import PACKAGES
from secfed.policy import SitePolicy
from secfed.privacy import accounting
from secfed.privacy.budget import Budget, Charge
from secfed.release import save_release
from secfed.report.measures import score_part
from secfed.report.results import NON_PRIVATE, POOLED
from secfed.runtime.directory import append_line, read_lines, write_atomically
from secfed.runtime.encoding import ring_bits_for
from secfed.runtime.kept import KeptTensors
from secfed.runtime.progress import Progress
from secfed.runtime.receipts import keep_receipt, read_receipts
from secfed.runtime.rounds import RoundResult
from secfed.runtime.setup import Prepared, open_budget, site_identities
from secfed.signing import load_or_create
from secfed.statement import StatementContext, build_statement
from secfed.strategies.base import ServerState
from secfed.study import Study
from secfed.types import Adapter, Tensors

__all__ = ["Arm", "ArmRecord", "empty_line"]

_ROUND_KINDS = ("round", "round-interrupted")


@dataclass(frozen=True)
class Arm:
    """One line of a comparison: a study with its method, private or not."""

    name: str
    study: Study
    kind: str = "private"  # "private", "baseline", "non-private" or "pooled"
    seed: int = 0

    @property
    def private(self) -> bool:
        """Whether its sites train under a plan and a budget."""
        return self.kind not in {NON_PRIVATE, POOLED}


class ArmRecord:
    """The open files, keys, sites and budgets of one arm while it runs."""

    def __init__(
        self,
        arm: Arm,
        prepared: Prepared,
        arm_dir: Path,
        private_dir: Path,
        run_id: str,
        policy: SitePolicy,
    ) -> None:
        self.arm = arm
        self.run_id = f"{run_id}/{arm.name}"
        self.next_round = 1
        self._prepared = prepared
        self._directory = arm_dir
        self._private = private_dir
        self._metrics = arm_dir / "metrics.jsonl"
        (arm_dir / "adapters").mkdir(parents=True, exist_ok=True)
        self._key = load_or_create(private_dir / "coordinator.key")
        identities = site_identities(arm.study, private_dir)
        self.sites = {
            name: Site(
                name=name,
                identity=identities[name],
                records=prepared.records[name],
                plan=prepared.plans[name],
                policy=policy,
            )
            for name in arm.study.sites
        }
        self.budgets = {
            name: open_budget(
                arm.study, policy, private_dir, name, prepared.fingerprints[name]
            )
            for name in self.sites
        }
        own = private_dir / "sites"
        self.kept = {
            name: KeptTensors(own / name / "kept" / arm.name) for name in self.sites
        }
        self._earlier = {
            name: self._earlier_epsilon(budget) for name, budget in self.budgets.items()
        }
        self._ledger = Ledger(arm_dir / "ledger.jsonl", self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ledger.close()

    @property
    def released(self) -> bool:
        """Whether the release entry is written."""
        entries = self._ledger.entries()
        return bool(entries) and entries[-1].kind == "release"

    def guard(self, site: str) -> BudgetGuard:
        """Who asks before one site trains: its budget, and what we know of it."""
        return BudgetGuard(
            self.budgets[site],
            self.run_id,
            self._known_heads(site),
            partial(keep_receipt, self._private, site),
        )

    def recover(
        self, start: ServerState, scores: Mapping[str, Any], progress: Progress
    ) -> ServerState:
        """Begin the ledger, or settle what an interruption left and continue.

        Returns:
            The state from which ``next_round`` starts.

        Raises:
            BudgetExceededError: A site cannot afford all rounds of the study.
            BudgetFileError: A site's budget does not hold what the ledger names.
            RunDirectoryError: The files do not fit the ledger.
        """
        if len(self._ledger.entries()) <= 1:
            self._begin(start.adapter, scores)
        entries = self._ledger.entries()
        if entries[0].body["study_digest"] != self.arm.study.digest():
            raise RunDirectoryError(
                f"{self._directory}: the ledger belongs to another study"
            )
        if self.arm.private and not self.released:
            for name, budget in self.budgets.items():
                budget.require_known(self._known_heads(name))
        rounds = [entry for entry in entries if entry.kind in _ROUND_KINDS]
        self._drop_uncommitted({int(entry.body["round"]) for entry in rounds})
        state = start
        for entry in rounds:
            number = int(entry.body["round"])
            self.next_round = number + 1
            if entry.kind == "round":
                path = self._adapter_path(number)
                if (
                    not path.is_file()
                    or file_sha256(path) != entry.body["adapter_sha256"]
                ):
                    raise RunDirectoryError(
                        f"{path}: missing or not the adapter that the ledger names"
                    )
                adapter = load_adapter(path, start.adapter)
                state = ServerState(adapter, number, self._memory(number))
        if not self.released and self._reserved(self.next_round):
            self.interrupted(self.next_round, "the process ended during the round")
            progress.note(
                f"round {self.next_round - 1} of {self.arm.name} was interrupted: it "
                "counts as spent and is not repeated"
            )
        return state

    def commit(
        self, state: ServerState, played: RoundResult, metrics: Mapping[str, Any]
    ) -> None:
        """Make a finished round durable: adapter, metrics, then the ledger entry."""
        number = int(metrics["round"])
        path = self._adapter_path(number)
        save_adapter(state.adapter, path)
        if state.memory:
            write_atomically(self._memory_path(number), save(dict(state.memory)))
        append_line(self._metrics, metrics)
        spent = self._reserved(number)
        body = RoundEntry(
            round=number,
            attempt=1,
            participants=tuple(
                sorted({*played.result.survivors, *metrics["dropouts"]})
            ),
            survivors=played.result.survivors,
            dropouts=metrics["dropouts"],
            aggregate_sha256=sha256_hex(played.result.total.tobytes()),
            adapter_sha256=file_sha256(path),
            spent=spent,
            epsilon=metrics["epsilon"],
            budget_heads=self._heads(number),
        )
        self._ledger.append("round", body.to_body(), _now())
        self.next_round = number + 1

    def interrupted(self, number: int, reason: str) -> None:
        """Record a started round without a sum; what was reserved stays spent."""
        spent = self._reserved(number)
        epsilon = self.epsilon(number)
        scores = score_part(self._lines()[-1])
        append_line(
            self._metrics,
            empty_line(number, "interrupted", scores) | {"epsilon": epsilon},
        )
        body = InterruptedEntry(
            round=number,
            attempt=1,
            participants=tuple(sorted(spent)),
            spent=spent,
            epsilon=epsilon,
            budget_heads=self._heads(number),
            reason=reason,
        )
        self._ledger.append("round-interrupted", body.to_body(), _now())
        self.next_round = number + 1

    def epsilon(self, number: int) -> dict[str, float]:
        """Epsilon of this arm so far for each site that reserved round ``number``."""
        delta = self.arm.study.privacy.delta
        held = {
            name: [r for r in budget.history() if r.run_id == self.run_id]
            for name, budget in self.budgets.items()
        }
        return {
            name: accounting.epsilon([r.event for r in rounds], delta)
            for name, rounds in held.items()
            if any(r.round == number for r in rounds)
        }

    def release(self, adapter: Adapter) -> None:
        """Write the statement, the adapter for plain PEFT, and the last entry."""
        entries = self._ledger.entries()
        started = [e.parsed() for e in entries if e.kind in _ROUND_KINDS]
        statement = build_statement(
            self.arm.study.canonical(),
            entries[1].parsed(),  # type: ignore[arg-type]
            started,  # type: ignore[arg-type]
            self._context(),
        )
        path = self._directory / "statement.json"
        write_atomically(path, canonical_json(statement) + b"\n")
        folder = self._directory / "adapter"
        section = self.arm.study.model
        name = section.package or Path(str(section.path)).name
        save_release(self._prepared.model, adapter, name, folder)
        body = ReleaseEntry(
            adapter_sha256=file_sha256(folder / "adapter_model.safetensors"),
            config_sha256=file_sha256(folder / "adapter_config.json"),
            statement_sha256=file_sha256(path),
            rounds_completed=sum(e.kind == "round" for e in entries),
            rounds_interrupted=sum(e.kind == "round-interrupted" for e in entries),
        )
        self._ledger.append("release", body.to_body(), _now())

    def seal(self) -> None:
        """Name and sign every file of the arm; the last write."""
        head = self._ledger.entries()[-1].digest
        write_manifest(self._directory, self.arm.study.digest(), head, self._key)

    def summary(self, trainable: int) -> dict[str, Any]:
        """The arm's object of ``comparison.json``; ``trainable`` numbers at a site."""
        lines = self._lines()
        last = lines[-1]
        epsilon: dict[str, float] = {}
        for line in lines:
            epsilon |= line["epsilon"]
        return {
            "name": self.arm.name,
            "method": self.arm.study.training.method,
            "kind": self.arm.kind,
            "seed": self.arm.seed,
            "run": f"arms/{self.arm.name}",
            "rounds": lines,
            "final": score_part(last),
            "epsilon": epsilon or None,
            "epsilon_max": max(epsilon.values(), default=None),
            "bytes_up": sum(line["bytes_up"] for line in lines),
            "bytes_down": sum(line["bytes_down"] for line in lines),
            "seconds": sum(line["seconds"] for line in lines),
            "trainable": trainable,
        }

    # ---------------------------------------------------------------- inside

    def _begin(self, adapter: Adapter, scores: Mapping[str, Any]) -> None:
        """Round 0: refuse what no site can afford, then write the first entries."""
        self._require_budgets()
        study = self.arm.study
        write_atomically(
            self._directory / "study.json", canonical_json(study.canonical()) + b"\n"
        )
        save_adapter(adapter, self._adapter_path(0))
        self._metrics.unlink(missing_ok=True)
        append_line(self._metrics, empty_line(0, "completed", scores))
        if not self._ledger.entries():
            body = StudyEntry(
                study_digest=study.digest(),
                name=study.name,
                method=study.training.method,
                model_sha256=self._prepared.base.digest,
                simulation_seed=study.simulation.seed,
                coordinator_key=self._key.public_bytes.hex(),
                secfed_version=secfed.__version__,
                run_id=self.run_id,
            )
            self._ledger.append("study", body.to_body(), _now())
        colluders = study.secagg.colluders
        plan = PlanEntry(
            private=self.arm.private,
            sites={
                name: site.plan.to_json() if self.arm.private else None
                for name, site in self.sites.items()
            },
            identities={
                name: site.identity.public_bytes.hex()
                for name, site in self.sites.items()
            },
            threshold=study.secagg.threshold
            or default_threshold(len(self.sites), colluders),
            max_colluders=colluders,
            ring_bits=ring_bits_for(
                study, self._prepared.plans, adapter, private=self.arm.private
            ),
            mode=study.secagg.mode,
            suite=study.secagg.suite_number,
            initial_adapter_sha256=file_sha256(self._adapter_path(0)),
        )
        self._ledger.append("plan", plan.to_body(), _now())

    def _require_budgets(self) -> None:
        if not self.arm.private:
            return
        rounds = self.arm.study.training.rounds
        for name, budget in self.budgets.items():
            if not budget.can_afford([self.sites[name].plan.round_event()] * rounds):
                raise BudgetExceededError(
                    name,
                    f"the study's {rounds} rounds do not fit the budget: epsilon "
                    f"{budget.spent_epsilon():.3f} is spent already. Raise max_epsilon "
                    "in site.toml if the site agrees, or lower the study's epsilon; "
                    "nothing was spent",
                )

    def _charges(self, number: int) -> dict[str, Charge]:
        """Each site's last charge of one round of this arm."""
        return {
            name: held
            for name, budget in self.budgets.items()
            for held in budget.history()
            if held.run_id == self.run_id and held.round == number
        }

    def _reserved(self, number: int) -> dict[str, dict[str, Any]]:
        """Each site's event of one round of this arm, as its budget holds it."""
        return {
            name: dict(accounting.event_to_json(held.event))
            for name, held in self._charges(number).items()
        }

    def _heads(self, number: int) -> dict[str, str]:
        """What each site's budget was after it reserved one round of this arm."""
        return {name: held.head for name, held in self._charges(number).items()}

    def _known_heads(self, site: str) -> set[str]:
        """What the ledger and this run's receipts know of one site's budget."""
        named = (e.body.get("budget_heads", {}) for e in self._ledger.entries())
        of_ledger = {heads[site] for heads in named if site in heads}
        return of_ledger | {r.head for r in read_receipts(self._private, site)}

    def _earlier_epsilon(self, budget: Budget) -> float:
        events = [r.cost for r in budget.history() if r.run_id != self.run_id]
        delta = self.arm.study.privacy.delta
        return accounting.epsilon(events, delta) if events else 0.0

    def _drop_uncommitted(self, committed: set[int]) -> None:
        lines = self._lines()
        kept = [line for line in lines if line["round"] in {0, *committed}]
        data = b"".join(canonical_json(line) + b"\n" for line in kept)
        write_atomically(self._metrics, data)
        known = {self._adapter_path(number).name for number in {0, *committed}}
        for folder in ("adapters", "memory"):
            for path in (self._directory / folder).glob("*"):
                if path.name not in known:
                    path.unlink()

    def _lines(self) -> list[dict[str, Any]]:
        return read_lines(self._metrics)

    def _adapter_path(self, number: int) -> Path:
        return self._directory / "adapters" / f"round-{number:03d}.safetensors"

    def _memory_path(self, number: int) -> Path:
        return self._directory / "memory" / f"round-{number:03d}.safetensors"

    def _memory(self, number: int) -> Tensors:
        path = self._memory_path(number)
        return load(path.read_bytes()) if path.is_file() else {}

    def _independence(self) -> str:
        if not self.arm.private:
            return "not run"
        if self.arm.study.privacy.unit == "site":
            return "not needed: the round's update is clipped, not single gradients"
        return "passed before the first step of every round"

    def _context(self) -> StatementContext:
        packages = ("torch", "opacus", "peft", "transformers", "dp-accounting")
        return StatementContext(
            self_test={"independence": self._independence()},
            earlier_epsilon=self._earlier if self.arm.private else None,
            provenance={
                "secfed": secfed.__version__,
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
                "base model sha256": self._prepared.base.digest,
                **self._quantised(),
            },
        )

    def _quantised(self) -> dict[str, str]:
        """What the frozen weights became, where they are kept in few bits."""
        base = self._prepared.base
        if base.quantisation is None or base.rounded_digest is None:
            return {}
        package = PACKAGES[base.quantisation]
        return {
            package: version(package),
            "base quantisation": base.quantisation,
            "base as it multiplies sha256": base.rounded_digest,
        }


def empty_line(number: int, status: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """A metrics line in which nothing was summed."""
    return {
        "round": number,
        "status": status,
        **scores,
        "survivors": [],
        "dropouts": {},
        "silent": {},
        "sums_equal": None,
        "saturated": 0,
        "bytes_up": 0,
        "bytes_down": 0,
        "seconds": 0.0,
        "epsilon": {},
        "noise": None,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
