"""What a statement says that no ledger knows: versions, digests, the self-test."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

import secfed
from secfed.models import PACKAGES, BaseModel
from secfed.runtime.arms import Arm
from secfed.runtime.setup import Prepared
from secfed.statement import StatementContext

__all__ = ["context_of"]

_PACKAGES: Final = ("torch", "opacus", "peft", "transformers", "dp-accounting")


def context_of(
    arm: Arm,
    prepared: Prepared,
    earlier: Mapping[str, float] | None,
    scored: Mapping[str, Any],
) -> StatementContext:
    """What is known of an arm besides its ledger.

    Args:
        arm: The arm.
        prepared: Its base model.
        earlier: Each site's epsilon of other runs on the same people; None: not told.
        scored: The last line of its metrics.
    """
    return StatementContext(
        self_test={"independence": _independence(arm)},
        earlier_epsilon=earlier if arm.private else None,
        provenance={
            "secfed": secfed.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
            "base model sha256": prepared.base.digest,
            **_quantised(prepared.base),
        },
        scored=scored,
    )


def _independence(arm: Arm) -> str:
    if not arm.private:
        return "not run"
    if arm.study.privacy.unit == "site":
        return "not needed: the round's update is clipped, not single gradients"
    return "passed before the first step of every round"


def _quantised(base: BaseModel) -> dict[str, str]:
    """What the frozen weights became, where they are kept in few bits."""
    if base.quantisation is None or base.rounded_digest is None:
        return {}
    package = PACKAGES[base.quantisation]
    return {
        package: version(package),
        "base quantisation": base.quantisation,
        "base as it multiplies sha256": base.rounded_digest,
    }
