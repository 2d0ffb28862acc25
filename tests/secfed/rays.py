"""Tests that start Ray: whether it is there, and the processes it does not wait for."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
from collections.abc import Callable

import pytest

_MARKS = (
    pytest.mark.slow,
    pytest.mark.skipif(
        # Not imported: Ray reads how it is to be asked when it is imported.
        importlib.util.find_spec("ray") is None,
        reason="needs the extra secfed[simulation]",
    ),
    # Ray leaves files of its own open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
)


def needs_ray(test: Callable[..., None]) -> Callable[..., None]:
    """A slow test that starts Ray, where it is installed."""
    for mark in _MARKS:
        test = mark(test)
    return test


def wait_for_ended() -> None:
    """Wait for the processes that Ray ended; unwaited ones warn at the very end."""
    for each in gc.get_objects():
        # No isinstance: it would ask lazy modules for their class.
        if issubclass(type(each), subprocess.Popen):
            each.wait(30)
