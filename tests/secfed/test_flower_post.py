"""Orders over a grid: who is away, who connects anew, and what is sent to whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity

from secfed.runtime.envelope import Sealed
from secfed.runtime.flower import server_app
from secfed.runtime.flower.records import from_record, to_record
from secfed.runtime.flower.server_app import FlowerPost
from secfed.runtime.keys import make_site_keys


@dataclass
class FakeGrid:
    """What a post needs of Flower's grid; a script says what happens at each look."""

    keys: dict[str, str]
    online: dict[str, str] = field(default_factory=dict)  # name: connected since
    script: list[Any] = field(default_factory=list)
    pushed: list[tuple[int, bytes]] = field(default_factory=list)
    waiting: dict[str, Message] = field(default_factory=dict)
    answering: set[str] = field(default_factory=set)

    def get_nodes(self) -> list[Any]:
        return [
            SimpleNamespace(
                node_id=number,
                status="online" if name in self.online else "offline",
                last_activated_at=self.online.get(name, ""),
                public_key=self.keys[name].encode(),
            )
            for number, name in enumerate(self.keys, start=1)
        ]

    def push_messages(self, messages: list[Message]) -> list[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.pushed.append((node, from_record(message.content).body))
            ids.append(f"message {len(self.pushed)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.waiting[ids[-1]] = message
        return ids

    def pull_messages(self, ids: list[str]) -> list[Message]:
        if self.script:
            self.script.pop(0)(self)
        names = list(self.keys)
        return [
            Message(to_record(from_record(asked.content)), reply_to=asked)
            for message_id, asked in self.waiting.items()
            if message_id in ids
            and names[asked.metadata.dst_node_id - 1] in self.answering
        ]


@pytest.fixture
def grid(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> FakeGrid:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 2, 1
    monkeypatch.setattr(server_app, "_NODES_SECONDS", 0.0)
    monkeypatch.setattr(server_app, "_LOOK_SECONDS", (0.0, 0.0))
    names = ("north", "south")
    keys = {name: make_site_keys(tmp_path / name).node_public for name in names}
    return FakeGrid(keys, dict.fromkeys(names, "morning"), answering=set(names))


def asked(grid: FakeGrid, *, first: bool = False) -> set[str]:
    post = FlowerPost(grid, grid.keys)  # type: ignore[arg-type]
    post._first = first
    orders = {name: Sealed(b"h", name.encode(), b"s") for name in grid.keys}
    found = set()
    for site, sealed in post.exchange("shares", orders, 20.0):
        assert sealed == orders[site]
        found.add(site)
    return found


def test_everybody_is_asked_once_and_answers(grid: FakeGrid) -> None:
    assert asked(grid) == {"north", "south"}
    assert grid.pushed == [(1, b"north"), (2, b"south")]


def test_a_site_that_goes_away_ends_its_part_at_once(grid: FakeGrid) -> None:
    grid.answering = {"north"}
    grid.script = [lambda g: None, lambda g: g.online.pop("south")]
    assert asked(grid) == {"north"}


def test_a_site_that_connected_anew_gets_its_order_again(grid: FakeGrid) -> None:
    def restart(found: FakeGrid) -> None:
        # The process before took the first message with it.
        found.waiting.pop("message 2")
        found.online["south"] = "noon"
        found.answering.add("south")

    grid.answering = {"north"}
    grid.script = [lambda g: None, restart]
    assert asked(grid) == {"north", "south"}
    assert grid.pushed == [(1, b"north"), (2, b"south"), (2, b"south")]


def test_only_at_first_a_site_is_waited_for(grid: FakeGrid) -> None:
    del grid.online["south"]
    assert asked(grid) == {"north"}
    grid.pushed.clear()
    grid.waiting.clear()
    grid.answering = {"south"}
    grid.script = [
        lambda g: g.online.update(south="noon"),
        lambda g: g.answering.add("north"),
    ]
    assert asked(grid, first=True) == {"north", "south"}


def test_an_error_is_no_answer_and_nobody_waits_for_it(grid: FakeGrid) -> None:
    def failing(ids: list[str]) -> list[Message]:
        return [Message(Error(2, "refused"), reply_to=grid.waiting[i]) for i in ids]

    grid.pull_messages = failing  # type: ignore[method-assign]
    assert asked(grid) == set()
