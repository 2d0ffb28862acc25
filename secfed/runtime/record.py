"""What one arm leaves on disk, and how it continues after a crash.

A round is committed by its ledger entry, which is written last: first the
adapter, then the metrics line, then the entry. Whatever a crash leaves of an
uncommitted round is removed by ``recover``; if any site had reserved it, the
round counts as spent, is recorded as interrupted, and is not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors.numpy import load, save
from securesystemslib.signer import Signer

import secfed
from secfed.adapters import load_adapter, save_adapter
from secfed.attestations import written_keys
from secfed.canonical import canonical_json, file_sha256, sha256_hex
from secfed.earlier_runs import EarlierRun, tuning_ledger
from secfed.entries import (
    EvaluationEntry,
    EvaluationInterruptedEntry,
    InterruptedEntry,
    Notice,
    PlanEntry,
    ReleaseEntry,
    RoundEntry,
    RunCosts,
    StudyEntry,
    TuningEntry,
)
from secfed.errors import RunDirectoryError
from secfed.ledger import LEDGER_NAME, Entry, Ledger
from secfed.manifest import write_manifest
from secfed.privacy import accounting
from secfed.release import save_release
from secfed.report.measures import score_part
from secfed.runtime.accounts import Accounts, Charged
from secfed.runtime.arms import Arm
from secfed.runtime.cosigning import Cosigning
from secfed.runtime.directory import append_line, read_lines, write_atomically
from secfed.runtime.encoding import ring_bits_for
from secfed.runtime.evaluations import EvaluationResult
from secfed.runtime.progress import Progress
from secfed.runtime.provenance import context_of
from secfed.runtime.rounds import RoundResult
from secfed.runtime.sessions import smallest_sum
from secfed.runtime.setup import Prepared
from secfed.signing import CoordinatorKey
from secfed.statement import build_statement
from secfed.strategies.base import ServerState
from secfed.teacher_ledger import TEACHER_LEDGER
from secfed.types import Adapter, Tensors

__all__ = ["ArmRecord", "empty_line"]

_ROUND_KINDS = ("round", "round-interrupted")
_EVALUATION_KINDS = ("evaluation", "evaluation-interrupted")


class ArmRecord:
    """The open files of one arm while it runs, and its coordinator's key.

    Args:
        arm: The arm.
        prepared: Base model, start and public plans.
        arm_dir: Where the evidence is written.
        run_id: The run and arm that budgets are charged for.
        accounts: What is known of the sites' budgets.
        key: The coordinator's signing key.
        also: Who signs every entry beside it.
    """

    def __init__(
        self,
        arm: Arm,
        prepared: Prepared,
        arm_dir: Path,
        run_id: str,
        accounts: Accounts,
        key: CoordinatorKey,
        also: Sequence[Signer] = (),
    ) -> None:
        self.arm = arm
        self.run_id = run_id
        self.next_round = 1
        self.accounts = accounts
        self._prepared = prepared
        self._directory = arm_dir
        self._metrics = arm_dir / "metrics.jsonl"
        (arm_dir / "adapters").mkdir(parents=True, exist_ok=True)
        self._key = key
        self._also = written_keys(also)
        self._ledger = Ledger(arm_dir / LEDGER_NAME, key, also)

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

    def named_heads(self, site: str) -> set[str]:
        """What the ledger names of one site's budget."""
        named = (e.body.get("budget_heads", {}) for e in self._ledger.entries())
        return {heads[site] for heads in named if site in heads}

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
        self._require_same(self._ledger.entries())
        self._tell_tuning()
        entries = self._ledger.entries()
        if self.arm.private and not self.released:
            self.accounts.require_known(self.named_heads)
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
            progress.event("round-interrupted", round=self.next_round - 1)
            progress.note(
                f"round {self.next_round - 1} of {self.arm.name} was interrupted: it "
                "counts as spent and is not repeated"
            )
        for number in self.due_evaluations():
            if self.accounts.evaluation_charges(number):
                reason = "the process ended during the evaluation"
                self.evaluation_interrupted(number, reason)
                progress.note(
                    f"the evaluation after round {number} of {self.arm.name} was "
                    "interrupted: it counts as spent and is not repeated"
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

    def note(self, due: Callable[[Sequence[Entry], int], Sequence[Notice]]) -> None:
        """Append what is due between rounds: who withdrew, whose key is revoked."""
        found = due(self._ledger.entries(), self.next_round)
        if not self.released:
            for body in found:
                self._ledger.append(body.kind, body.to_body(), _now())

    def due_evaluations(self) -> tuple[int, ...]:
        """After which of the rounds so far an evaluation is still missing."""
        study = self.arm.study
        if study.evaluation is None or not self.arm.private or self.released:
            return ()
        done = {e.body["round"] for e in self._entries(_EVALUATION_KINDS)}
        due = study.evaluation.due(study.training.rounds)
        return tuple(n for n in due if n < self.next_round and n not in done)

    def commit_evaluation(
        self, number: int, adapter_round: int, played: EvaluationResult
    ) -> None:
        """Make the sums of an evaluation durable: one ledger entry.

        Args:
            number: The round that it follows.
            adapter_round: The round whose adapter was evaluated.
            played: What the session gave.
        """
        charges, result = self.accounts.evaluation_charges(number), played.result
        # A site that was never charged did not begin.
        dropouts = {s: p for s, p in result.dropouts.items() if s in charges}
        body = EvaluationEntry(
            round=number,
            attempt=1,
            participants=tuple(sorted({*result.survivors, *dropouts})),
            survivors=result.survivors,
            dropouts=dropouts,
            adapter_sha256=file_sha256(self._adapter_path(adapter_round)),
            sums=dict(result.metrics),
            spent=_events(charges),
            epsilon=self.accounts.epsilon(number, evaluated=True),
            budget_heads=_known_heads(charges),
        )
        self._ledger.append("evaluation", body.to_body(), _now())

    def evaluation_interrupted(self, number: int, reason: str) -> None:
        """Record an evaluation without sums; what was reserved stays spent."""
        charges = self.accounts.evaluation_charges(number)
        body = EvaluationInterruptedEntry(
            round=number,
            attempt=1,
            participants=tuple(sorted(charges)),
            spent=_events(charges),
            epsilon=self.accounts.epsilon(number, evaluated=True),
            budget_heads=_known_heads(charges),
            reason=reason,
        )
        self._ledger.append("evaluation-interrupted", body.to_body(), _now())

    def _entries(self, kinds: tuple[str, ...]) -> list[Entry]:
        return [entry for entry in self._ledger.entries() if entry.kind in kinds]

    def epsilon(self, number: int) -> dict[str, float]:
        """Epsilon of this arm so far for each site that reserved round ``number``."""
        return self.accounts.epsilon(number) if self.arm.private else {}

    def release(self, adapter: Adapter) -> None:
        """Write the statement, the adapter for plain PEFT, and the last entry."""
        entries = self._ledger.entries()
        started = [e.parsed() for e in entries if e.kind in _ROUND_KINDS]
        evaluated = [e.parsed() for e in self._entries(_EVALUATION_KINDS)]
        statement = build_statement(
            self.arm.study.canonical(),
            entries[1].parsed(),  # type: ignore[arg-type]
            started,  # type: ignore[arg-type]
            context_of(
                self.arm, self._prepared, self.accounts.earlier, self._lines()[-1]
            ),
            evaluated,  # type: ignore[arg-type]
            [run.costs for run in self._prepared.tuning],
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

    def cosigning(self, progress: Progress) -> Cosigning:
        """The ledger's tree head, and how sites are asked to cosign it."""
        return Cosigning(
            self._ledger, self._key.public_bytes, self._directory, progress
        )

    def seal(self) -> None:
        """Name and sign every file of the arm; the last write."""
        write_manifest(self._directory, self.arm.study.digest(), self._key)

    def summary(self, trainable: int) -> dict[str, Any]:
        """The arm's object of ``comparison.json``; ``trainable`` numbers at a site."""
        lines = self._lines()
        last = lines[-1]
        epsilon: dict[str, float] = {}
        for line in lines:
            epsilon |= line["epsilon"]
        for entry in self._entries(_EVALUATION_KINDS):
            for site, spent in entry.body["epsilon"].items():
                epsilon[site] = max(spent, epsilon.get(site, 0.0))
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
        study = self.arm.study
        if self.arm.private:
            self.accounts.require_funds(study.training.rounds)
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
                also_signed_by=self._also,
            )
            self._ledger.append("study", body.to_body(), _now())
        plan = PlanEntry(
            private=self.arm.private,
            sites={
                name: plan.to_json() if self.arm.private else None
                for name, plan in self.accounts.plans.items()
            },
            identities=self._identities(),
            threshold=smallest_sum(study),
            max_colluders=study.secagg.colluders,
            ring_bits=ring_bits_for(
                study, self._prepared.plans, adapter, private=self.arm.private
            ),
            mode=study.secagg.mode,
            suite=study.secagg.suite_number,
            initial_adapter_sha256=file_sha256(self._adapter_path(0)),
            teacher=self._keep_teacher(),
            witnesses=self.accounts.witnesses,
            deployed=True if self.accounts.elsewhere else None,
        )
        self._ledger.append("plan", plan.to_body(), _now())

    def _identities(self) -> dict[str, str]:
        return {name: key.hex() for name, key in self.accounts.identities.items()}

    def _keep_teacher(self) -> RunCosts | None:
        """A private teacher's ledger beside our own, and what it cost."""
        teacher = self._prepared.teacher
        if teacher is None:
            return None
        self._keep(TEACHER_LEDGER, teacher)
        return teacher.costs

    def _tell_tuning(self) -> None:
        """The runs by which the settings were chosen: their ledgers, and their cost."""
        told = len(self._entries((TuningEntry.kind,)))
        for index, run in enumerate(self._prepared.tuning[told:], start=told):
            self._keep(tuning_ledger(index), run)
            body = TuningEntry(costs=run.costs)
            self._ledger.append(body.kind, body.to_body(), _now())

    def _keep(self, name: str, run: EarlierRun) -> None:
        """A copy of an earlier run's ledger beside our own."""
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, run.data)

    def _charges(self, number: int) -> Mapping[str, Charged]:
        return self.accounts.charges(number) if self.arm.private else {}

    def _reserved(self, number: int) -> dict[str, dict[str, Any]]:
        """Each site's event of one round of this arm, as its budget holds it."""
        return _events(self._charges(number))

    def _heads(self, number: int) -> dict[str, str]:
        """What each site's budget was after it reserved one round of this arm."""
        return _known_heads(self._charges(number))

    def _require_same(self, entries: Sequence[Entry]) -> None:
        """The ledger is of this study, and of these keys of its sites."""
        if entries[0].body["study_digest"] != self.arm.study.digest():
            raise RunDirectoryError(
                f"{self._directory}: the ledger belongs to another study"
            )
        if entries[1].body["identities"] != self._identities():
            raise RunDirectoryError(
                f"{self._directory}: the run was begun with other keys of its sites; "
                "new keys are for a new run"
            )

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


def _events(charges: Mapping[str, Charged]) -> dict[str, dict[str, Any]]:
    return {
        name: dict(accounting.event_to_json(held.event))
        for name, held in charges.items()
    }


def _known_heads(charges: Mapping[str, Charged]) -> dict[str, str]:
    return {n: held.head for n, held in charges.items() if held.head is not None}


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
