"""The story of ``make demo-governance``: what is typed, and what has to happen.

A word in braces stands for what an earlier step printed, like ``{anna}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deeds import add_row, cut_ledger, flip_byte, list_operators, write_records

__all__ = ["FAULTY", "PARTS", "SECFED", "Command", "Deed", "Part"]

SECFED: Final = "secfed"
FAULTY: Final = "half_noise.py"
"""The programs of the story: the real command, and the one with a fault."""


@dataclass(frozen=True)
class Command:
    """A command, as a person types it.

    Attributes:
        line: Its words; the first is ``SECFED`` or ``FAULTY``.
        look: What to look at in its output.
        code: The exit code that it must end with.
        finds: Words that its output must contain, whatever the line breaks.
        learns: What later steps use: a pattern with one group, by name.
        typed: What is typed when it asks.
    """

    line: str
    look: str
    code: int = 0
    finds: tuple[str, ...] = ()
    learns: Mapping[str, str] = field(default_factory=dict)
    typed: str = ""


@dataclass(frozen=True)
class Deed:
    """Something that is done to the files.

    Attributes:
        look: Why.
        do: Does it in a folder, with what was learned; says what it did.
    """

    look: str
    do: Callable[[Path, Mapping[str, str]], str]


@dataclass(frozen=True)
class Part:
    """A part of the story."""

    title: str
    steps: tuple[Command | Deed, ...]


_AUDIT: Final = "audit study.toml --parts A,B --canaries 4000"


def _check(study: str) -> str:
    return f"secfed policy check {study} --site site.toml"


def _approve(study: str, who: str, more: str = "") -> str:
    return f"secfed approve {study} --site site.toml --key {who}.key{more}"


def _learn_key(name: str) -> dict[str, str]:
    return {name: r"fingerprint: ([0-9a-f ]+)"}


_REFUSED: Final = Part(
    "A study is refused by policy, and why",
    (
        Deed("The hospitals' records, in one file of four sites.", write_records),
        Command(
            "secfed keys operator anna.key --unprotected",
            "Two people at the hospitals make a key each (unencrypted: a rehearsal).",
            learns=_learn_key("anna"),
        ),
        Command(
            "secfed keys operator ben.key --unprotected",
            "The second.",
            learns=_learn_key("ben"),
        ),
        Deed("The policy says whose signatures count.", list_operators),
        Command(
            _check("too-much.toml"),
            "Look at the rows that begin with refused: each has the rule and a reason.",
            code=4,
            finds=(
                "privacy.epsilon 12 is above max_epsilon 6.5",
                "training.method 'fedavg' is not in allowed_methods",
            ),
        ),
        Command(
            _approve("too-much.toml", "anna", " --yes"),
            "What a rule refuses cannot be approved: nothing is signed.",
            code=4,
            finds=("refused, and nothing was signed",),
        ),
    ),
)

_APPROVED: Final = Part(
    "Another study is approved by two people",
    (
        Command(
            _check("study.toml"),
            "One rule is left: nobody has approved it.",
            code=4,
            finds=("approved by 0 of 2 operators", "1 rule(s) refuse"),
        ),
        Command(
            _approve("study.toml", "anna"),
            "The page that an operator reads; with other digits nothing is signed.",
            code=1,
            finds=("What leaves this site", "does not leave", "nothing was signed"),
            learns={"short": r"digits of the digest \(([0-9a-f]+)\)"},
            typed="00000000",
        ),
        Command(
            _approve("study.toml", "anna"),
            "Anna types the digits of the digest. The last lines say who is missing.",
            finds=("signed: 1 of 2 operators",),
            typed="{short}",
        ),
        Command(
            "secfed run study.toml --out first",
            "One of two is not enough: refused before there is a run.",
            code=4,
            finds=("approved by 1 of 2 operators",),
        ),
        Command(
            _approve("study.toml", "ben"),
            "Ben reads the same page and signs.",
            finds=("signed: 2 of 2 operators",),
            typed="{short}",
        ),
    ),
)

_RUN: Final = Part(
    "It runs",
    (
        Command(
            "secfed run study.toml --out first",
            "Three rounds; epsilon grows to 4, and every sum is exact under its masks. "
            "At the end stand the alarm at 50 % and the key that an auditor is told.",
            finds=("sum exact",),
            learns={"coordinator": r"--trust ([0-9a-f]{64})"},
        ),
        Command(
            "secfed verify first --trust {coordinator}",
            "Every check has a number and a reason; four sites cosigned the ledger.",
            finds=("PINNED", "verified"),
        ),
        Command(
            "secfed budget budgets",
            "What each hospital has spent of 6.5, and the alarm at 50 %.",
            finds=("patients-2026", "alarm"),
        ),
    ),
)

_NEXT: Final = Part(
    "The next study on the same people is refused",
    (
        Command(
            _check("next.toml"),
            "Epsilon 6 is allowed by itself; 4 and 6 together are not.",
            code=4,
            finds=("6, at most 6.5", "does not hold it"),
        ),
        Command(
            _approve("next.toml", "anna", " --yes"),
            "Nor can it be approved.",
            code=4,
            finds=("nothing was signed", "does not hold it"),
        ),
        Deed("Somebody adds a row, so that the data are others.", add_row),
        Command(
            _check("next.toml"),
            "Another file, the same population: refused as before.",
            code=4,
            finds=("does not hold it",),
        ),
    ),
)

_AUDITED: Final = Part(
    "The audit: not refuted, and refuted with half of the noise",
    (
        Command(
            f"{SECFED} {_AUDIT} --run first --out audit",
            "A copy of the run with 4,000 canaries; it costs the hospitals what a run "
            "costs. Look at the p-value in part B, and at the last lines.",
            finds=("not refuted",),
        ),
        Command(
            f"{FAULTY} {_AUDIT} --out audit-half-noise",
            "The same command in a process whose noise is halved on purpose, by "
            "half_noise.py beside the story; nothing in secfed can be told to do that. "
            "Parts A and B both say REFUTED.",
            code=3,
            finds=(
                "REFUTED noise has the plan's law",
                "REFUTED Dirac canaries",
                "The claim is REFUTED",
            ),
        ),
    ),
)

_PINS: Final = "--trust {coordinator} --approver {ada} --approver {bob}"

_RELEASED: Final = Part(
    "A release: requested, approved by two people, bundled, verified",
    (
        Command(
            "secfed release request first --out candidate",
            "Without an attack report there is no candidate.",
            code=4,
            finds=("attack report",),
        ),
        Command(
            "secfed release request first --audit audit --out candidate "
            '--license apache-2.0 --intended-use "A rehearsal."',
            "With it there is one. Its digest binds every file.",
            finds=("candidate",),
        ),
        Command(
            "secfed release key ada.key",
            "Two people who did not run the study.",
            learns=_learn_key("ada"),
        ),
        Command("secfed release key bob.key", "The second.", learns=_learn_key("bob")),
        Command(
            "secfed release approve candidate --key ada.key --name Ada --role DPO",
            "Ada signs what she has looked at.",
            finds=("approved",),
        ),
        Command(
            "secfed release bundle candidate --out release "
            "--key first/private/coordinator.key",
            "One person is not enough.",
            code=4,
        ),
        Command(
            "secfed release approve candidate --key bob.key --name Bob "
            '--role "Head of IT"',
            "The second person signs.",
            finds=("approved",),
        ),
        Command(
            "secfed release bundle candidate --out release "
            "--key first/private/coordinator.key",
            "Now it is released: a folder that plain PEFT loads.",
            finds=("release: release",),
        ),
        Command(
            f"secfed verify release {_PINS}",
            "What an auditor types, offline: three keys, and every check again.",
            finds=("PINNED", "verified"),
        ),
    ),
)

_FLIPPED: Final = Part(
    "One byte of the adapter is flipped",
    (
        Deed("The smallest change there is.", flip_byte),
        Command(
            f"secfed verify release {_PINS}",
            "The check that fails names the file.",
            code=3,
            finds=("FAILED", "adapter_model.safetensors"),
        ),
        Deed("And back again.", flip_byte),
        Command(
            f"secfed verify release {_PINS}",
            "It verifies as before.",
            finds=("verified",),
        ),
    ),
)

_ROLLED_BACK: Final = Part(
    "A coordinator's ledger is rolled back, and the witnesses notice",
    (
        Deed(
            "As if the coordinator's machine were restored from a backup.", cut_ledger
        ),
        Command(
            "secfed resume rolled-back",
            "The coordinator goes on from its old ledger. Every site remembers a "
            "longer one, says so, and does not cosign; without cosignatures nothing is "
            "released. (The sites are in this process, each with its own memory; on "
            "machines of their own they keep the same.)",
            code=3,
            finds=(
                "does not cosign the ledger: ledger entry 5: rolled back",
                "this site has cosigned 6 entries",
                "0 sites cosigned the ledger",
            ),
        ),
    ),
)

PARTS: Final = (
    _REFUSED,
    _APPROVED,
    _RUN,
    _NEXT,
    _AUDITED,
    _RELEASED,
    _FLIPPED,
    _ROLLED_BACK,
)
