"""``python -m secfed.cli`` is ``secfed``."""

from __future__ import annotations

from secfed.cli import main

main()
