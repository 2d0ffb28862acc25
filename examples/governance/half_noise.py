"""The ``secfed`` command with a fault put into it: half of the planned noise.

    python examples/governance/half_noise.py audit study.toml --parts A,B

Nothing in secfed can be told to do this; the fault is made here, in this process only.
Every word behind the file's name is what one types behind ``secfed``.
"""

from __future__ import annotations

from typing import Any, Final

from numpy.typing import NDArray

from secfed.cli import main
from secfed.privacy.plan import PrivacyPlan

FACTOR: Final = 0.5


def weaken(factor: float) -> None:
    """From now on training draws ``factor`` times the noise that every plan claims."""
    whole = PrivacyPlan.noise

    def weaker(self: PrivacyPlan, stream: Any, size: int) -> NDArray[Any]:
        return factor * whole(self, stream, size)

    setattr(PrivacyPlan, "noise", weaker)  # noqa: B010 - mypy forbids to assign it


if __name__ == "__main__":
    weaken(FACTOR)
    main()
