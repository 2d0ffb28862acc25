"""Between two looks: brief pauses while things happen, long ones later."""

from __future__ import annotations

import pytest

from secfed.runtime.flower import pauses
from secfed.runtime.flower.pauses import Pauses


def test_pauses_grow_while_nothing_comes_and_begin_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, slept = [100.0], list[float]()
    monkeypatch.setattr(pauses.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pauses.time, "sleep", slept.append)
    looks = Pauses(0.1, 1.0)
    for idle in (0.0, 5.0, 20.0, 3600.0):
        now[0] = 100.0 + idle
        looks.wait()
    looks.came()
    looks.wait()
    assert slept == pytest.approx([0.1, 0.1, 0.4, 1.0, 0.1])
