"""A session's secrets are in memory only: no file of a site or coordinator has them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deployed import Cast, identity_of
from small import planned, small_policy, small_study

from secfed.runtime.envelope import Sealed
from secfed.runtime.setup import Prepared
from secfed.runtime.site_worker import SiteWorker

_NAMES = ("self_secret", "recovery", "own_share")


def secrets_of(worker: SiteWorker) -> Iterator[bytes]:
    """What a site holds in the middle of a round and must not write."""
    session = worker._session
    if session is None or session.site is None:
        return
    state, vector = session.site._state, session.site._vector
    for name in _NAMES:
        if hasattr(state, name):
            yield getattr(state, name)
    for pair in getattr(state, "shares", {}).values():
        yield from pair
    if vector is not None:
        yield vector.body.tobytes()[:64]


@dataclass
class Watched(Cast):
    """Looks into every site's memory before each order."""

    seen: set[bytes] = field(default_factory=set)

    def exchange(
        self, phase: str, orders: Mapping[str, Sealed], seconds: float
    ) -> Iterator[tuple[str, Sealed]]:
        for worker in self.workers.values():
            self.seen |= set(secrets_of(worker))
        yield from super().exchange(phase, orders, seconds)


def files_with(folder: Path, secrets: set[bytes]) -> list[tuple[str, int]]:
    """Files that hold a secret: as bytes, in hexadecimal, or in base64."""
    forms = [
        form
        for secret in secrets
        for form in (secret, secret.hex().encode(), base64.b64encode(secret)[:-4])
    ]
    held = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return [
        (path.name, number)
        for path, data in held.items()
        for number, form in enumerate(forms)
        if form in data
    ]


def test_no_file_holds_a_secret_of_a_session(
    prepared: Prepared, tmp_path: Path
) -> None:
    study = small_study(rounds=2, seed=31)
    own = planned(prepared, study)
    cast = Watched(own, study, small_policy(), tmp_path / "sites")
    cast.serve(tmp_path / "run")
    # Per site and round: b, R, a share of its own, one of each of three others twice,
    # and the encoded update.
    assert len(cast.seen) >= 2 * 4 * 5
    assert all(len(secret) >= 16 for secret in cast.seen)
    cast.seen |= {identity_of(site).to_bytes() for site in study.sites}
    written = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert {"session.json", "budget.sqlite", "receipts.jsonl"} <= written
    assert files_with(tmp_path, cast.seen) == []
    # The search finds what is there.
    secret = min(cast.seen)
    (tmp_path / "sites" / "leak").write_bytes(b"x" + secret.hex().encode())
    assert [name for name, _ in files_with(tmp_path, {secret})] == ["leak"]
