"""The ``secfed`` command: the only part that prints and exits."""

from __future__ import annotations

from secfed.cli.app import app, main

__all__ = ["app", "main"]
