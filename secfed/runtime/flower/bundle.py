"""The app bundle that a run names: it says which secfed, and holds no code.

Flower sends a bundle to every node and would execute it there. Ours is made of the
version alone, so both sides make the same bytes; a site's runner compares them and
executes what is installed. A bundle with other bytes is refused.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Final

import flwr
from flwr.cli.build import build_fab_from_files

import secfed

__all__ = ["MESSAGES", "app_bundle", "app_digest"]

MESSAGES: Final = 1
"""Format of the messages; parties with another format cannot work together."""

_PROJECT: Final = """\
[project]
name = "secfed"
version = "{version}"
description = "The installed secfed, messages of format {messages}."
license = {{ file = "LICENSE" }}
dependencies = ["flwr>={flower}"]

[tool.flwr.app]
publisher = "secfed"
fab-format-version = 1
flwr-version-target = "{flower}"

[tool.flwr.app.components]
serverapp = "secfed_installed:server"
clientapp = "secfed_installed:client"

[tool.flwr.app.config]
"""

_MODULE: Final = b'raise ImportError("secfed is installed, never sent")\n'


@cache
def app_bundle() -> bytes:
    """The bundle of the installed secfed; the same bytes for the same versions."""
    project = _PROJECT.format(
        version=secfed.__version__, messages=MESSAGES, flower=flwr.__version__
    )
    return build_fab_from_files(
        {
            "pyproject.toml": project.encode(),
            "LICENSE": b"Apache-2.0\n",
            "secfed_installed.py": _MODULE,
        }
    )[0]


def app_digest() -> str:
    """SHA-256 of the only bundle that a site works for."""
    return hashlib.sha256(app_bundle()).hexdigest()
