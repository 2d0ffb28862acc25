"""The ClientApp of a site: one handler for each phase, no other way in."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from secfed.runtime.envelope import ORDERS, Sealed
from secfed.runtime.flower.records import action_of, from_record, to_record

__all__ = ["Answering", "client_app"]

Answering = Callable[[str, Sealed], Sealed]
"""A site: the name of a phase and an order give the answer, or raise."""


def client_app(answer: Answering) -> ClientApp:
    """A ClientApp that passes every known phase to a site.

    A message of any other type has no handler: Flower raises ``ValueError``.
    """
    app = ClientApp()
    for phase in ORDERS:
        app.train(action_of(phase))(_handler(phase, answer))
    return app


def _handler(phase: str, answer: Answering) -> Callable[[Message, Context], Message]:
    def handle(message: Message, context: Context) -> Message:
        del context  # Flower's state is lost at a start; the site has its own.
        sealed = answer(phase, from_record(message.content))
        return Message(to_record(sealed), reply_to=message)

    return handle
