"""Tests compute on the processor, on machines with a GPU too: its bits are the same.

Those of ``test_cuda.py`` ask for the GPU by name.
"""

from __future__ import annotations

import os

os.environ.setdefault("SECFED_DEVICE", "cpu")
