"""A coordinator and two sites that hold nothing, as processes; what they were told.

Argument: a folder. Prints one JSON value: who joined, the coordinator's port, the
switches of this process and those that Flower's processes were started with.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
from test_flower_processes import JOIN_SECONDS, Nodes, asked

from secfed.runtime.envelope import Post
from secfed.runtime.flower.children import SWITCHES

NAMES = ("north", "south")


def main(folder: Path) -> dict[str, Any]:
    nodes = Nodes(folder)
    told: dict[str, Any] = {"port": nodes.port}

    def run(post: Post) -> None:
        nodes.start(*NAMES)
        told["joined"] = sorted(asked(post, "adapter", NAMES, JOIN_SECONDS))
        told["started"] = {
            f"{process.cmdline()[2]} {process.pid}": _switches(process.environ())
            for process in psutil.Process().children(recursive=True)
            if "-m" in process.cmdline()
        }

    try:
        nodes.coordinate(NAMES, run)
    finally:
        nodes.end()
    return told | {"own": _switches(dict(os.environ))}


def _switches(environment: dict[str, str]) -> dict[str, str | None]:
    return {name: environment.get(name) for name in SWITCHES}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))  # noqa: T201 - its result
