"""``secfed bundle``: a study for machines without a network; PyTorch is not loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import click
import typer
from typer.core import TyperGroup

from secfed.cli.evidence import show_verification, trusted
from secfed.cli.keys import Protecting
from secfed.cli.output import print_json, show, tell
from secfed.errors import BundleError

if TYPE_CHECKING:
    from secfed.airgap import Written

__all__ = ["app"]

_KEY_NAME: Final = "coordinator.key"
_MAKE: Final = "make"
_MEGABYTE: Final = 1_000_000


class _MakesByDefault(TyperGroup):
    """``secfed bundle STUDY`` is ``secfed bundle make STUDY``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command where it was left out."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [_MAKE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_MakesByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Carry a study to machines without a network, in one signed folder.

`secfed bundle STUDY` is short for `secfed bundle make STUDY`.

Example: secfed bundle study.toml --out bundle --keys keys
""",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]


@app.command("make")
def make(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study.toml.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder to make.")
    ],
    keys: Annotated[
        Path, typer.Option("--keys", metavar="DIR", help="The coordinator's keys.")
    ] = Path("keys"),
    wheels: Annotated[
        Path | None,
        typer.Option(
            "--wheels",
            metavar="DIR",
            help="Take wheels from this folder, secfed's too, and ask no index.",
        ),
    ] = None,
    extras: Annotated[
        list[str] | None,
        typer.Option("--extra", metavar="NAME", help="Of secfed, besides the study's."),
    ] = None,
    tar: Annotated[
        Path | None,
        typer.Option("--tar", metavar="FILE", help="Also write it as one file."),
    ] = None,
    where: Protecting = None,
    *,
    allow_unpinned: Annotated[
        bool,
        typer.Option(
            "--allow-unpinned", help="Also versions that constraints.txt lacks."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write wheels with digests, the study, its weights, an SBOM; and sign all of it.

    Run it on a machine of the sites' kind: same Python, system and processor. Pip
    fetches the wheels from the index that it is set up with: hundreds of megabytes.

    Example: secfed bundle study.toml --out bundle --keys keys --tar bundle.tar
    """
    from secfed.airgap import (  # noqa: PLC0415
        Source,
        collect_wheels,
        write_bundle,
        write_tar,
    )
    from secfed.runtime.key_places import find_protecting_key  # noqa: PLC0415
    from secfed.runtime.keys import read_coordinator_key  # noqa: PLC0415
    from secfed.study import load_study  # noqa: PLC0415

    if not (keys / _KEY_NAME).is_file():
        raise BundleError(
            f"{keys / _KEY_NAME}: no signing key; `secfed keys authority` makes it"
        )
    key, source = (
        read_coordinator_key(keys, find_protecting_key(where)),
        Source(wheels, extras or (), allow_unpinned),
    )
    loaded = load_study(study)
    tell("collecting wheels; the first time this takes minutes")
    made = write_bundle(
        study, out, key, lambda folder: collect_wheels(loaded, source, folder)
    )
    digest = None if tar is None else write_tar(out, tar)
    _show_made(made, tar, digest, as_json=as_json)


@app.command("verify")
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A bundle, unpacked.")],
    trust: Annotated[
        str | None,
        typer.Option(
            metavar="FINGERPRINT",
            help="The coordinator's key, known from elsewhere than the folder.",
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Check a bundle offline: signature, every file, nothing else, weights, SBOM.

    Without --trust the answer is UNPINNED: anyone could have written the files.

    Example: secfed bundle verify bundle --trust 9f86d081...
    """
    from secfed.airgap import verify_bundle  # noqa: PLC0415

    show_verification(verify_bundle(folder, trusted(trust)), as_json=as_json)


def _show_made(
    made: Written, tar: Path | None, digest: str | None, *, as_json: bool
) -> None:
    from secfed.signing import fingerprint, format_fingerprint  # noqa: PLC0415

    signer = fingerprint(made.manifest.public_key)
    if as_json:
        print_json(
            {
                "bundle": str(made.folder),
                "study_digest": made.manifest.study_digest,
                "fingerprint": signer,
                "wheels": made.num_wheels,
                "bytes": made.size_bytes,
                "weights": made.weights,
                "tar": None if tar is None else str(tar),
                "tar_sha256": digest,
            }
        )
        return
    size = f"{made.size_bytes / _MEGABYTE:.1f} MB"
    show(f"bundle:    {made.folder} ({made.num_wheels} wheels, {size})")
    show(f"weights:   {made.weights}")
    show(f"study:     {format_fingerprint(made.manifest.study_digest)}")
    show(f"signed by: {format_fingerprint(signer)}")
    if digest is not None:
        show(f"tar:       {tar}", f"SHA-256:   {format_fingerprint(digest)}")
    show("Read the fingerprints to the sites' operators by telephone.")
