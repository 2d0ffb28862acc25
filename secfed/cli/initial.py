"""``secfed init``: a study and a site's files to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from secfed.cli.output import print_json, show
from secfed.errors import RunDirectoryError

__all__ = ["TEMPLATES", "init"]

TEMPLATES: Final = Path(__file__).resolve().parent.parent / "templates"
_NAMES: Final = ("study.toml", "site.toml", "node.toml")


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where; made if it is missing.")
    ] = Path(),
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value.")
    ] = False,
) -> None:
    """Write a commented study and the files of a site; overwrites nothing.

    The study runs as it is, on public text. `study.toml` is what all sites agree on,
    `site.toml` what one site allows, `node.toml` a site on a machine of its own.

    Example: secfed init my-study
    """
    held = [name for name in _NAMES if (folder / name).exists()]
    if held:
        raise RunDirectoryError(
            f"{folder}: {', '.join(held)} is there already, and nothing was written; "
            "name another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in _NAMES:
        # "x": a file that appeared in between is not overwritten either.
        with (folder / name).open("xb") as file:
            file.write((TEMPLATES / name).read_bytes())
    if as_json:
        print_json({"written": [str(folder / name) for name in _NAMES]})
        return
    for name in _NAMES:
        show(f"written: {folder / name}")
    study = folder / "study.toml"
    show(f"next:    secfed plan {study}, then secfed run {study}")
