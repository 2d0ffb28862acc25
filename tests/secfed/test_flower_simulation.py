"""Flower's simulation engine with our actors; Ray is played by objects that pickle."""

from __future__ import annotations

import pickle
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from secfed.errors import PolicyError, SecfedError, VerificationError
from secfed.runtime.envelope import Post, Sealed
from secfed.runtime.flower import simulation
from secfed.runtime.flower.client_app import Answering
from secfed.runtime.flower.simulation import simulate

SITES = tuple(f"site-{number}" for number in range(7))


class _Call:
    def __init__(self, method: Any) -> None:
        self._method = method

    def remote(self, *given: Any) -> Any:
        return lambda: pickle.loads(  # noqa: S301 - our own
            pickle.dumps(self._method(*pickle.loads(pickle.dumps(given))))  # noqa: S301
        )


class _Actor:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> _Call:
        return _Call(getattr(self._actor, name))


class FakeRay:
    """Actors in this process; what passes to and from them is pickled."""

    def remote(self, kind: Any) -> Any:
        class Kind:
            @staticmethod
            def options(**_options: Any) -> Any:
                return Kind

            @staticmethod
            def remote(*given: Any) -> _Actor:
                return _Actor(kind(*given))

        return Kind

    def get(self, asked: Any) -> Any:
        try:
            return [one() for one in asked] if isinstance(asked, list) else asked()
        except SystemExit as end:
            raise RuntimeError("the actor died") from end


def opening(sites: tuple[str, ...]) -> Answering:
    """Sites that count their orders; one of them never answers."""
    seen: defaultdict[str, int] = defaultdict(int)

    def answer(phase: str, sealed: Sealed) -> Sealed:
        site = sealed.header.decode()
        if site not in sites or sealed.body == b"stranger":
            raise VerificationError("not for a site of this process")
        if sealed.body == b"ends":
            raise SystemExit
        seen[site] += 1
        return Sealed(sealed.header, f"{phase} {seen[site]}".encode(), sealed.body)

    return answer


def refusing(_sites: tuple[str, ...]) -> Answering:
    raise PolicyError("this site allows nothing")


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def ray(_processes: int) -> Iterator[FakeRay]:
        yield FakeRay()

    monkeypatch.setattr(simulation, "_ray", ray)
    monkeypatch.setattr(simulation, "require_ray", lambda: None)


def orders(body: bytes = b"", *others: str) -> dict[str, Sealed]:
    return {
        site: Sealed(site.encode(), b"stranger" if site in others else body, b"s")
        for site in SITES
    }


def test_every_site_answers_in_the_process_that_has_its_state() -> None:
    found: list[dict[str, bytes]] = []

    def run(post: Post) -> None:
        for phase in ("adapter", "masked-input", "unmask"):
            answers = list(post.exchange(phase, orders(), 60.0))
            assert len(answers) == len(SITES)
            found.append({site: sealed.body for site, sealed in answers})

    simulate(SITES, 3, opening, run)
    assert found == [
        {site: f"{phase} {number}".encode() for site in SITES}
        for number, phase in enumerate(("adapter", "masked-input", "unmask"), start=1)
    ]


def test_who_refuses_or_ends_is_not_waited_for() -> None:
    def run(post: Post) -> None:
        began = time.monotonic()
        given = orders(b"", "site-2") | {
            "site-5": Sealed(b"site-5", b"ends", b"s"),
        }
        answers = dict(post.exchange("confirm", given, 60.0))
        assert sorted(answers) == sorted(set(SITES) - {"site-2", "site-5"})
        assert time.monotonic() - began < 30.0
        assert len(list(post.exchange("unmask", orders(), 60.0))) == len(SITES)

    simulate(SITES, 2, opening, run)


def test_the_deadline_of_an_exchange_holds() -> None:
    def run(post: Post) -> None:
        assert list(post.exchange("adapter", orders(), 0.0)) == []

    simulate(SITES, 2, opening, run)


def test_why_a_site_cannot_be_opened_reaches_the_one_who_started_it() -> None:
    def run(_post: Post) -> None:
        pytest.fail("nothing is run")

    with pytest.raises(SecfedError, match="allows nothing") as caught:
        simulate(SITES, 2, refusing, run)
    assert caught.value.exit_code == PolicyError.exit_code


def test_what_the_loop_raises_ends_the_engine() -> None:
    def run(_post: Post) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(SITES, 2, opening, run)
