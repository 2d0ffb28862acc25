"""A site without records or model: it answers every order with the order's own body.

Arguments: folder with the keys, address, authority, file that ends it when it exists.
"""

from __future__ import annotations

import sys
from pathlib import Path

from secfed.runtime.envelope import Sealed
from secfed.runtime.flower.site import Connection, work


def answer(phase: str, sealed: Sealed) -> Sealed:
    return Sealed(phase.encode(), sealed.body, b"signed")


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    folder, address, authority, end = sys.argv[1:]
    key = (Path(folder) / "keys" / "node.key").read_bytes()
    link = Connection(address, Path(authority), key)
    work(link, answer, Path(folder) / "flower", Path(end).exists, say)
