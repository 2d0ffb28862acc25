"""What the commands of all benchmarks have in common: machine, options, output."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.output import show, write_json, write_markdown

__all__ = ["add_outputs", "machine", "publish"]

_PAPER_WIDTH = 132  # characters, where the output is not a terminal


def add_outputs(parser: argparse.ArgumentParser, *names: str) -> None:
    """Options that name files to write."""
    for name in names:
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")


def publish(found: dict[str, Any], asked: argparse.Namespace) -> None:
    """Show what was found, and write the files that were asked for."""
    console = Console()
    show(found, console if console.is_terminal else Console(width=_PAPER_WIDTH))
    if asked.json:
        write_json(found, asked.json)
    if asked.markdown:
        write_markdown(found, asked.markdown)


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system, for people."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_GB": pages / 1e9,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    description = Path("/proc/cpuinfo")
    if description.exists():
        for line in description.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"
