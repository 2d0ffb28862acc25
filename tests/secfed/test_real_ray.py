"""Ray's open ports: who has not the run's token is refused."""

from __future__ import annotations

import os
import subprocess
import sys

from rays import needs_ray, wait_for_ended

from secfed.runtime.flower.simulation import _ray

_JOIN = """
import ray
try:
    ray.init(address={address!r})
except ConnectionError:
    print("refused")
else:
    print("joined", ray.is_initialized())
"""


@needs_ray
def test_a_stranger_without_the_token_does_not_join() -> None:
    with _ray(1) as ray:
        address = ray.get_runtime_context().gcs_address
        own = os.environ["RAY_AUTH_TOKEN"]
        assert len(own) == 64
        assert (
            joining(address, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="") == "refused"
        )
        assert joining(address, RAY_AUTH_TOKEN="ab" * 32) == "refused"
        assert joining(address) == "joined True"
    assert "RAY_AUTH_TOKEN" not in os.environ
    wait_for_ended()


def joining(address: str, **changed: str) -> str:
    """What another process on the machine is told."""
    done = subprocess.run(
        [sys.executable, "-c", _JOIN.format(address=address)],
        env=os.environ | changed,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout.strip()
