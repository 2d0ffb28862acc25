"""Where everything lies in a release.

::

    adapter_model.safetensors   the adapter, which plain PEFT loads from this folder
    adapter_config.json         its settings
    README.md                   the model card, in the hub's format
    statement.json              the privacy statement of the run
    statement.html              the same for people, with what the gate found
    attack_report.json          what ``secfed audit`` wrote (not there if waived)
    contributions.json          what each site gave
    request.json                all of the above by digest, signed by the coordinator
    approvals/<key>.json        one for each person, over the request's digest
    evidence/                   the run's other files, under the run's own manifest
    release.json                every file by digest, signed by the coordinator

What stands under ``evidence/`` is the run's manifest and every file that it names but
weights and pages: the proof grows with the run's evidence, without a change here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = [
    "ADAPTER",
    "APPROVALS",
    "ATTACK_REPORT",
    "CARD",
    "CONFIG",
    "CONTRIBUTIONS",
    "EVIDENCE",
    "PAGE",
    "RELEASE",
    "REQUEST",
    "RUN_MANIFEST",
    "STATEMENT",
    "is_release",
    "is_requested",
    "place_of",
]

ADAPTER: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
CARD: Final = "README.md"
STATEMENT: Final = "statement.json"
PAGE: Final = "statement.html"
ATTACK_REPORT: Final = "attack_report.json"
CONTRIBUTIONS: Final = "contributions.json"
REQUEST: Final = "request.json"
RELEASE: Final = "release.json"
APPROVALS: Final = "approvals"
EVIDENCE: Final = "evidence"
RUN_MANIFEST: Final = f"{EVIDENCE}/manifest.json"

_MOVED: Final = {
    f"adapter/{ADAPTER}": ADAPTER,
    f"adapter/{CONFIG}": CONFIG,
    STATEMENT: STATEMENT,
}
_LEFT_OUT: Final = (".safetensors", ".html")


def place_of(name: str) -> str | None:
    """Where a file of a run lies in a release; None where it does not travel.

    >>> place_of("adapter/adapter_config.json"), place_of("ledger.jsonl")
    ('adapter_config.json', 'evidence/ledger.jsonl')
    """
    if name in _MOVED:
        return _MOVED[name]
    return None if name.endswith(_LEFT_OUT) else f"{EVIDENCE}/{name}"


def is_requested(name: str) -> bool:
    """Whether the request names this file; what comes after it, it cannot name."""
    return name not in {REQUEST, RELEASE} and not name.startswith(f"{APPROVALS}/")


def is_release(root: Path) -> bool:
    """Whether this folder is a release or a candidate for one."""
    return any((root / name).is_file() for name in (RELEASE, REQUEST))
