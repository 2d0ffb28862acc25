"""Where the command line's words go, and how a command ends.

Results go to standard output, everything else to standard error, so that the
output of ``--json`` is one JSON value and nothing else. Colour is used only on a
terminal and never under ``NO_COLOR`` (rich looks at both).
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from protocols.errors import MisuseError, ProtocolError
from secfed.errors import SecfedError

__all__ = [
    "INTERRUPTED",
    "SecfedGroup",
    "plain_table",
    "print_json",
    "quiet_libraries",
    "remember_run",
    "show",
    "tell",
]

INTERRUPTED: Final = 130
"""128 + SIGINT, as shells report a command that Ctrl-C ended."""

_NOISY: Final = ("torchao", "bitsandbytes", "torch.utils._pytree")
"""Where they are installed, PEFT loads them, and they speak of kernels they miss."""

_ABORTED: Final = 5
_USAGE: Final = 2
_RUN_KEY: Final = "secfed.run_directory"
_JSON_KEY: Final = "secfed.json"
_NO_LIMIT: Final = 10_000
_PIPE_WIDTH: Final = 120


class SecfedGroup(TyperGroup):
    """Runs a command and turns what it raises into words and an exit code.

    Expected errors end with one message and their exit code; a bug is not
    expected and keeps its traceback.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether JSON is wanted, also by a command line that is wrong."""
        ctx.meta[_JSON_KEY] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        as_json = bool(ctx.meta[_JSON_KEY])
        try:
            return super().invoke(ctx)
        except SecfedError as error:
            _end(ctx, error, error.exit_code, as_json=as_json)
        except MisuseError:
            raise  # Our own code broke a rule of the protocol: a bug.
        except ProtocolError as error:
            _end(ctx, error, _ABORTED, as_json=as_json)
        except click.UsageError as error:
            if not as_json:
                raise
            _end(ctx, error, _USAGE, as_json=True)
        except KeyboardInterrupt:
            text = f"interrupted. {_how_to_resume(ctx)}"
            _end(ctx, KeyboardInterrupt(text), INTERRUPTED, as_json=as_json)


def remember_run(ctx: click.Context, run_dir: Path) -> None:
    """Name the directory that Ctrl-C should tell people to resume."""
    ctx.meta[_RUN_KEY] = run_dir


def _how_to_resume(ctx: click.Context) -> str:
    run_dir = ctx.meta.get(_RUN_KEY)
    if run_dir is None or not _begun(run_dir):
        return "Nothing was started, and nothing was spent."
    return (
        "A round that had begun counts as spent and is not repeated; the others "
        f"continue with: secfed resume {shlex.quote(str(run_dir))}"
    )


def _begun(run_dir: Path) -> bool:
    records = ("run.json", "serve.json")
    return any((run_dir / "private" / name).is_file() for name in records)


def _end(ctx: click.Context, error: BaseException, code: int, *, as_json: bool) -> None:
    text = error.format_message() if isinstance(error, click.UsageError) else str(error)
    if as_json:
        body: dict[str, Any] = {
            "type": type(error).__name__,
            "message": text,
            "exit_code": code,
        }
        blamed = getattr(error, "blamed", None)
        if blamed:
            body["blamed"] = list(blamed)
        print_json({"error": body})
    else:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(Text.assemble(("error: ", "bold red"), text))
    ctx.exit(code)


def quiet_libraries() -> None:
    """Keep what libraries say of themselves out of people's terminals."""
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def show(*parts: RenderableType) -> None:
    """Write results for people to standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        # A pipe has no width; cutting its columns would lose text.
        free = console.options.update(max_width=_NO_LIMIT)
        tables = [part for part in parts if isinstance(part, Table)]
        needed = [console.measure(table, options=free).maximum for table in tables]
        width = max(console.width, _PIPE_WIDTH, *needed)
        console = Console(highlight=False, width=width)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str | Text))


def tell(text: str) -> None:
    """Write a line beside the results, to standard error."""
    Console(stderr=True, highlight=False).print(Text(text), soft_wrap=True)


def print_json(value: object) -> None:
    """Write one JSON value to standard output."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    with suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(f"{text}\n")


def plain_table(
    title: str,
    columns: Mapping[str, str],
    rows: Sequence[Sequence[str]],
) -> Table:
    """A table without lines; ``columns`` maps headings to ``left`` or ``right``."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for heading, side in columns.items():
        table.add_column(heading, justify="left" if side == "left" else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
