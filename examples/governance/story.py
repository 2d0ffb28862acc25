"""The story of ``make demo-governance``: refused, approved, spent, released, attacked.

Run from the project's folder; a few minutes. Every command is the real one, in a
process of its own, and is printed before its output. A step that behaves in another
way than ``steps.py`` says ends the story with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from steps import FAULTY, PARTS, SECFED, Command, Deed

_HERE: Final = Path(__file__).resolve().parent
_ROOT: Final = _HERE.parents[1]
_FILES: Final = ("study.toml", "too-much.toml", "next.toml", "site.toml")
_PROGRAMS: Final = {
    SECFED: ("-m", "secfed.cli"),
    FAULTY: (str(_HERE / FAULTY),),
}
_FAILED: Final = 1


class StoryError(Exception):
    """A step did not behave as the story tells."""


def main() -> int:
    """Tell the story; 0 if every step behaved."""
    parser = argparse.ArgumentParser(description=__doc__)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    parser.add_argument("--out", type=Path, default=Path("runs", f"governance-{stamp}"))
    folder = parser.parse_args().out.resolve()
    if folder.exists():
        parser.error(f"{folder} is there already; choose another --out")
    folder.mkdir(parents=True)
    for name in _FILES:
        shutil.copy(_HERE / name, folder)
    started = time.monotonic()
    try:
        _tell(folder)
    except StoryError as error:
        _say("", f"THE STORY FAILED: {error}")
        return _FAILED
    _say("", f"every step behaved as told; {time.monotonic() - started:.0f} seconds")
    return 0


def _tell(folder: Path) -> None:
    """All steps in order; what one prints, a later one may use."""
    known: dict[str, str] = {}
    _say(f"everything happens in {folder}")
    for number, part in enumerate(PARTS, 1):
        _say("", "", f"=== {number}. {part.title}")
        for step in part.steps:
            _say("", f"# {step.look}")
            if isinstance(step, Deed):
                _say(f"({step.do(folder, known)})")
            else:
                known |= play(step, folder, known)


def play(step: Command, folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Run a command and hold its end and its words against the story.

    Raises:
        StoryError: It ended otherwise, or did not say what it should.
    """
    line = step.line.format(**known)
    _say(f"$ {line}")
    if step.typed:
        _say(f"(typed: {step.typed.format(**known)})")
    code, output = run(line, folder, step.typed.format(**known))
    words = " ".join(output.split())
    if code != step.code:
        raise StoryError(f"`{line}` ended with {code}; {step.code} is expected")
    for expected in step.finds:
        if expected not in words:
            raise StoryError(f"`{line}` did not say {expected!r}")
    _say(f"(exit code {code}, as expected)")
    return {name: learn(output, line, found) for name, found in step.learns.items()}


def learn(output: str, line: str, pattern: str) -> str:
    """What a pattern's group finds, without blanks.

    Raises:
        StoryError: It is not there.
    """
    found = re.search(pattern, output)
    if found is None:
        raise StoryError(f"`{line}` did not print what {pattern!r} looks for")
    return "".join(found[1].split())


def run(line: str, folder: Path, typed: str) -> tuple[int, str]:
    """Run a command in the story's folder, and print as it prints."""
    program, *arguments = shlex.split(line)
    process = subprocess.Popen(  # noqa: S603 - our own commands
        [sys.executable, *_PROGRAMS[program], *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": _paths()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        if process.stdin is None or process.stdout is None:
            raise StoryError("no pipes")
        process.stdin.write(f"{typed}\n" if typed else "")
        process.stdin.close()
        lines = []
        for text in process.stdout:
            lines.append(text)
            _say(f"  {text.rstrip()}")
    return process.returncode, "".join(lines)


def _paths() -> str:
    """The project's folder and what was searched before, from any folder."""
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(_ROOT), *(str(Path(p).resolve()) for p in before if p)])


def _say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
