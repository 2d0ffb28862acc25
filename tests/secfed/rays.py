"""Tests that start Ray: whether it is there, and the processes it does not wait for."""

from __future__ import annotations

import gc
import importlib.util
import subprocess

import pytest

needs_ray = pytest.mark.skipif(
    # Not imported: Ray reads how it is to be asked when it is imported.
    importlib.util.find_spec("ray") is None,
    reason="needs the extra secfed[simulation]",
)


def wait_for_ended() -> None:
    """Wait for the processes that Ray ended; unwaited ones warn at the very end."""
    for each in gc.get_objects():
        # No isinstance: it would ask lazy modules for their class.
        if issubclass(type(each), subprocess.Popen):
            each.wait(30)
