"""Everything secfed raises on purpose.

Each class carries the process exit code that the command line answers with
(``exit_code``), so that a script can tell a refusal from a mistake:

===  ==========================================
  1  anything else
  2  usage, study, data or model file
  3  verification failed
  4  refused by policy or budget
  5  a round was aborted
===  ==========================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = [
    "BudgetExceededError",
    "BundleError",
    "CellsFailedError",
    "CodecError",
    "DataError",
    "LedgerError",
    "MatrixError",
    "ModelError",
    "PlanError",
    "PolicyError",
    "ProfileError",
    "RoundAbortedError",
    "RunDirectoryError",
    "SecfedError",
    "StaleOfferError",
    "StudyError",
    "TooFewSitesError",
    "TooFewWitnessesError",
    "TrainingError",
    "VerificationError",
]


class SecfedError(Exception):
    """Base of all secfed errors; the text says what, where and what to do next."""

    exit_code = 1


class StudyError(SecfedError):
    """A study or site file is missing, malformed or contradicts itself."""

    exit_code = 2

    def __init__(self, path: str | Path, key: str, message: str) -> None:
        self.path = str(path)
        self.key = key
        where = f"{self.path}: {key}" if key else self.path
        super().__init__(f"{where}: {message}")


class DataError(SecfedError):
    """A site's records cannot be read or do not fit the study's schema."""

    exit_code = 2


class ModelError(SecfedError):
    """The base model is missing, has another digest, or cannot be adapted."""

    exit_code = 2


class PlanError(SecfedError):
    """No privacy plan exists for what was asked (epsilon, delta, sizes)."""

    exit_code = 2


class ProfileError(SecfedError):
    """Sites' profiles are missing, do not fit a study, or leave it no time or room."""

    exit_code = 2


class BundleError(SecfedError):
    """A bundle for machines without a network cannot be made."""

    exit_code = 2


class RunDirectoryError(SecfedError):
    """A run directory belongs to another study or cannot be continued."""

    exit_code = 2


class CellsFailedError(SecfedError):
    """Cells of a grid failed; the others are finished and reported.

    Args:
        path: The grid's directory.
        reasons: Of every failed cell, by name.
        total: How many cells there are.
    """

    def __init__(
        self, path: str | Path, reasons: Mapping[str, str], total: int
    ) -> None:
        self.reasons = dict(reasons)
        listed = "".join(f"\n  {name}: {why}" for name, why in reasons.items())
        super().__init__(
            f"{path}: {len(reasons)} of {total} cells failed, the others are reported; "
            f"`secfed resume {path}` tries them again:{listed}"
        )


class CodecError(SecfedError):
    """An update cannot be encoded: NaN, infinity, shape or headroom."""


class MatrixError(SecfedError):
    """Matrices cannot be computed with: NaN, infinity, shapes, ranks or widths."""


class TrainingError(SecfedError):
    """A check of the private training step failed; nothing left the site."""


class PolicyError(SecfedError):
    """A site's own policy does not allow what the study asks.

    Args:
        message: What refuses, and what to do next.
        rules: The keys of the rules that refuse, where rules do.
    """

    exit_code = 4

    def __init__(self, message: str, rules: Sequence[str] = ()) -> None:
        self.rules = tuple(rules)
        super().__init__(message)


class BudgetExceededError(SecfedError):
    """A round would spend more than the site's privacy budget holds."""

    exit_code = 4

    def __init__(self, site: str, message: str) -> None:
        self.site = site
        super().__init__(f"{site}: {message}")


class RoundAbortedError(SecfedError):
    """A round of secure aggregation ended without a sum.

    Args:
        phase: The protocol phase in which it ended.
        blamed: Who deviated; empty when nobody cheated but too few were left.
        message: What happened and what to do next.
    """

    exit_code = 5

    def __init__(self, phase: str, blamed: Sequence[str], message: str) -> None:
        self.phase = phase
        self.blamed = tuple(blamed)
        super().__init__(f"round aborted in phase {phase}: {message}")


class TooFewSitesError(SecfedError):
    """Too few sites answered before a round; nobody was asked to spend anything."""

    exit_code = 5


class VerificationError(SecfedError):
    """Evidence does not verify."""

    exit_code = 3


class LedgerError(VerificationError):
    """A ledger entry is missing, altered, reordered or wrongly signed."""

    def __init__(self, entry: int, message: str) -> None:
        self.entry = entry
        super().__init__(f"ledger entry {entry}: {message}")


class StaleOfferError(VerificationError):
    """A log was offered to a witness from another entry on than its memory ends."""

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(f"this witness has cosigned {size} entries; offer from there")


class TooFewWitnessesError(VerificationError):
    """Too few sites cosigned the ledger; nothing is released."""
