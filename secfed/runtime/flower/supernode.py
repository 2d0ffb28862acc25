"""A site's child: Flower's SuperNode, with its pauses shortened.

Started with the arguments of ``flower-supernode``. In the pinned version it sleeps
three seconds when there was no message, half a second while it waits for an answer,
and one second when an object is not there yet; a round has seven messages.
"""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace
from typing import Final

from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode

from secfed.runtime.flower.children import end_with_parent
from secfed.runtime.flower.pauses import Pauses

__all__ = ["FIRST_BACKOFF_SECONDS", "main"]

FIRST_BACKOFF_SECONDS: Final = 0.05
_ASK_SECONDS: Final = (0.2, 1.0)  # Between two questions to the coordinator.
_LOOK_SECONDS: Final = 0.05  # Between two looks into this process's own memory.


class _Sleep:
    """Instead of ``time.sleep``, where Flower asks (3 s) and where it looks (0.5 s).

    It looks only while it has a message to answer.
    """

    def __init__(self) -> None:
        self._asking = Pauses(*_ASK_SECONDS)

    def __call__(self, seconds: float) -> None:
        if seconds >= 1:
            self._asking.wait()
        else:
            self._asking.came()
            time.sleep(_LOOK_SECONDS)


def main() -> None:
    """Run until a signal comes or the parent ends.

    Where the site's own process was killed, the node is signed off at once: the
    coordinator does not wait for it, and it may come back at once.
    """
    end_with_parent(politely=True)
    # Flower has no settings for these; both names are those of that one module.
    vars(start_client_internal).update(
        time=SimpleNamespace(sleep=_Sleep()),
        pull_objects=partial(pull_objects, initial_backoff=FIRST_BACKOFF_SECONDS),
    )
    flower_supernode()


if __name__ == "__main__":
    main()
