"""What the story does between the commands: records, a changed byte, a cut ledger.

Each deed works in the story's folder and says in one sentence what it did.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from secfed.data.icd10cm import load_icd10cm

__all__ = ["add_row", "cut_ledger", "flip_byte", "list_operators", "write_records"]

RECORDS: Final = "records.csv"
ADAPTER: Final = Path("release", "adapter_model.safetensors")
KEPT_ENTRIES: Final = 4
"""The study, the plan and two rounds; the third round and the release are cut off."""
_PERSONS: Final = 2000


def write_records(folder: Path, _known: Mapping[str, str]) -> str:
    """Public diagnosis wordings, dealt to the sites; each is one made-up patient."""
    section = _study(folder)["data"]
    labels, sites = section["labels"], section["partition"]["sites"]
    table = load_icd10cm()
    named = zip(table.texts, (table.label_names[n] for n in table.labels), strict=True)
    rows = [(text, label) for text, label in named if label in labels]
    chosen = rows[:: len(rows) // _PERSONS][:_PERSONS]
    with (folder / RECORDS).open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("text", "chapter", "patient", "hospital"))
        for number, row in enumerate(chosen):
            site = sites[number % len(sites)]
            lines.writerow((*row, f"patient-{number:04}", site))
    return f"wrote {RECORDS}: {len(chosen)} made-up patients, {_digest(folder)}"


def list_operators(folder: Path, known: Mapping[str, str]) -> str:
    """Put the fingerprints of Anna and Ben into the sites' policy."""
    path = folder / "site.toml"
    text = path.read_text("utf-8")
    for name in ("anna", "ben"):
        text = text.replace(name[0] * 64, known[name])
    path.write_text(text, "utf-8")
    return "put the fingerprints of Anna and Ben into site.toml, as its operators"


def add_row(folder: Path, _known: Mapping[str, str]) -> str:
    """One more patient at the first site: the file is another one."""
    before, section = _digest(folder), _study(folder)["data"]
    row = (
        "Neoplasm of another patient",
        section["labels"][0],
        "patient-new",
        section["partition"]["sites"][0],
    )
    with (folder / RECORDS).open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(row)
    return f"added one row to {RECORDS}: {before}, now {_digest(folder)}"


def flip_byte(folder: Path, _known: Mapping[str, str]) -> str:
    """Change the lowest bit of the adapter's last byte; a second time: back again."""
    path = folder / ADAPTER
    data = bytearray(path.read_bytes())
    before = data[-1]
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    return f"byte {len(data) - 1} of {ADAPTER}: {before:#04x} is {data[-1]:#04x} now"


def cut_ledger(folder: Path, _known: Mapping[str, str]) -> str:
    """Copy the run; in the copy the coordinator's ledger ends two entries earlier.

    What the sites keep, below ``private/sites``, is left as it is.
    """
    run, copy = folder / "first", folder / "rolled-back"
    shutil.copytree(run, copy)
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "ledger.jsonl").write_bytes(b"".join(lines[:KEPT_ENTRIES]))
    return (
        f"copied first to rolled-back, and kept {KEPT_ENTRIES} of {len(lines)} entries"
    )


def _study(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "study.toml").read_text("utf-8"))


def _digest(folder: Path) -> str:
    found = hashlib.sha256((folder / RECORDS).read_bytes()).hexdigest()
    return f"SHA-256 {found[:16]}..."
