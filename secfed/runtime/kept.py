"""What a site keeps of its own between rounds, for rules that leave tensors there.

Some rules send one factor and leave the other at the site. What stays is noised like
what is sent, but it is the site's own: it lies in the site's private folder and
enters no message.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import load, save

from secfed.errors import RunDirectoryError
from secfed.runtime.directory import write_atomically
from secfed.types import Tensors

__all__ = ["KeptTensors"]

_NAME: Final = re.compile(r"round-(\d{3,})\.safetensors")


class KeptTensors:
    """One site's tensors by round, each written before the round's message leaves.

    Args:
        folder: In the site's private folder; made when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, round_number: int, tensors: Tensors) -> None:
        """Keep the tensors of a round; nothing is written where there are none."""
        if not tensors:
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = save({n: np.ascontiguousarray(v) for n, v in tensors.items()})
        write_atomically(self._folder / f"round-{round_number:03d}.safetensors", data)

    def before(self, round_number: int) -> Tensors:
        """What was kept last before this round; empty if nothing was.

        Raises:
            RunDirectoryError: The file is damaged.
        """
        earlier = {r: p for r, p in self._files().items() if r < round_number}
        if not earlier:
            return {}
        path = earlier[max(earlier)]
        try:
            return dict(load(path.read_bytes()))
        except Exception as error:  # safetensors raises its own Rust exception type
            raise RunDirectoryError(f"{path}: not readable: {error}") from error

    def _files(self) -> dict[int, Path]:
        if not self._folder.is_dir():
            return {}
        found = {p: _NAME.fullmatch(p.name) for p in self._folder.iterdir()}
        return {int(match[1]): path for path, match in found.items() if match}

    def __repr__(self) -> str:
        return "KeptTensors(<private>)"
