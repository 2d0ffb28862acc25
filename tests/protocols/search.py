"""Every run of a small session under a server that does whatever it likes.

The clients are the real ones. Each message is answered by ``stored.answer`` from
a record read back from bytes: a client is killed and restarted before every
message. The server drops, delays, reorders, repeats and shows each client
something else; it also holds the secrets of the colluders and signs as them.

Three reductions. None loses a reachable state that differs in what is known.

1. An answer depends on the client's record and the message only. So each client
   is explored alone, against every message that the server could build from all
   that anybody sends in any run. A joint state is a run of each client; it is
   reachable if each message can be built from what was sent before.
2. What the server knows never shrinks, and no step of one client takes away a
   step of another. So of two messages with the same effect the one that needs
   less is enough.
3. Records that differ only in the digest of the last message are one state. The
   digest picks the message that is answered again verbatim, and does no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, combinations, product

from protocols.errors import FaultyBoxesError, FaultyServerError
from protocols.secagg import client, messages, stored
from protocols.secagg.client_states import Finished
from protocols.secagg.directory import Directory
from protocols.secagg.params import SessionParams
from tests.protocols.colluder import Colluder
from tests.session import MODEL, identity_of, make_inputs, randomness

OTHER_MODEL = bytes(32)  # gives another session, with the same clients
DIGEST_BYTES = 32  # a record begins with the digest of the last message

# One entry of a message and the bit of the answer it is taken from, or None.
Entry = tuple[object, int] | None


class Violation(AssertionError):  # noqa: N818
    """A reachable state breaks a promise; ``promise`` says which one."""

    def __init__(self, promise: str, state: object) -> None:
        self.promise = promise
        super().__init__(f"{promise}: {state}")


@dataclass(frozen=True)
class Node:
    """One client after some answers; ``context`` and ``survivors`` once it has them."""

    client: int
    record: bytes
    sent: tuple[bytes, ...]  # its answers, one per phase
    context: bytes = b""
    survivors: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[int, bytes, tuple[bytes, ...]]:
        return self.client, self.record[DIGEST_BYTES:], self.sent

    def __str__(self) -> str:
        where = f"directory {self.context[-2:].hex()} " if self.context else ""
        return f"{self.client}: {len(self.sent)} sent {where}{self.survivors or ''}"


@dataclass
class Edge:
    """An accepted message that is built from the fewest answers."""

    message: bytes
    needs: list[int]  # sets of answers, as bits; each is enough


@dataclass
class Search:
    """All runs of the honest clients of one session.

    Args:
        params: Tiny vectors; suite 1 or 3, which have no randomness of their own.
        colluders: Their indices.
        oddities: How many entries of one delivery or one set of confirmations
            may be made for somebody else, another directory or another list;
            None for any number. Each entry is checked alone, so one shows all
            there is to see; the small searches try every number.
    """

    params: SessionParams
    colluders: tuple[int, ...] = ()
    oddities: int | None = None
    steps: int = 0  # messages that were given to a client
    nodes: dict[tuple[int, bytes, tuple[bytes, ...]], Node] = field(
        default_factory=dict
    )
    edges: dict[Node, dict[Node, Edge]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    directories: dict[bytes, Directory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.session = self.params.session_id(MODEL)
        everybody = range(len(self.params.roster))
        self.honest = tuple(i for i in everybody if i not in self.colluders)
        self.identities = {i: identity_of(self.params.name_of(i)) for i in everybody}
        inputs = make_inputs(self.params)
        self.inputs = {i: inputs[self.params.name_of(i)] for i in everybody}
        self.helpers = {c: Colluder(self.params, c) for c in self.colluders}
        self._bits: dict[bytes, int] = {}
        self.roots = tuple(self._started(index) for index in self.honest)
        self.strangers = {i: self._record(i, OTHER_MODEL).outbound for i in everybody}
        for menu in (
            self._rosters,
            self._deliveries,
            self._survivor_lists,
            self._confirmation_sets,
        ):
            self._explore(menu)

    # ------------------------------------------------------------ one client

    def _record(self, index: int, model: bytes) -> stored.Record:
        return stored.start(
            self.params,
            self.params.name_of(index),
            self.identities[index],
            model,
            randomness=randomness("honest", index),
        )

    def _started(self, index: int) -> Node:
        record = self._record(index, MODEL)
        node = Node(index, record.to_bytes(), (record.outbound,))
        return self.nodes.setdefault(node.key, node)

    def restored(self, node: Node) -> stored.Record:
        return stored.Record.from_bytes(
            self.params, self.identities[node.client], MODEL, node.record
        )

    def answered(self, node: Node, message: bytes) -> Node | None:
        """The client after ``message``: the same if it repeats itself, None if it
        refuses."""
        self.steps += 1
        record = self.restored(node)
        try:
            following = stored.answer(
                record,
                message,
                randomness=randomness("answer", node.client, message),
                vector=self.inputs[node.client],
            )
        except (FaultyBoxesError, FaultyServerError):
            if record.to_bytes() != node.record:
                raise Violation("a refused message changes nothing", node) from None
            return None
        if following.outbound == node.sent[-1]:
            return node
        if following.outbound[0] in {sent[0] for sent in node.sent}:
            raise Violation("one answer per phase", node)
        found = replace(
            node,
            record=following.to_bytes(),
            sent=(*node.sent, following.outbound),
        )
        return self._described(found, following.state)

    def _described(self, node: Node, state: object) -> Node:
        if isinstance(state, client.KeysShared):
            node = replace(node, context=state.context)
            self.directories[state.context] = state.directory
            for helper in self.helpers.values():
                helper.enter(state.context, state.directory)
        elif isinstance(state, client.SurvivorsConfirmed):
            node = replace(node, survivors=state.survivors)
        return self.nodes.setdefault(node.key, node)

    def _explore(self, menu: Callable[[Node], Iterator[tuple[bytes, int]]]) -> None:
        """Give every client that is due for this menu all of its messages."""
        phase = 1 + max(len(node.sent) for node in self.nodes.values())
        due = [node for node in self.nodes.values() if len(node.sent) == phase - 1]
        for node in due:
            for message, needs in menu(node):
                found = self.answered(node, message)
                if found is not None and found is not node:
                    self._connect(node, found, message, needs)

    def _connect(self, node: Node, found: Node, message: bytes, needs: int) -> None:
        edge = self.edges[node].setdefault(found, Edge(message, []))
        if not any(known & needs == known for known in edge.needs):
            smaller = [known for known in edge.needs if known & needs != needs]
            edge.needs = [*smaller, needs]

    def replay_everything(self) -> None:
        """No message that was ever accepted or sent leads anywhere else."""
        accepted = {
            edge.message for found in self.edges.values() for edge in found.values()
        }
        sent = {message for node in self.nodes.values() for message in node.sent}
        for node in tuple(self.nodes.values()):
            for message in accepted | sent:
                found = self.answered(node, message)
                if found not in {None, node, *self.edges[node]}:
                    raise Violation("a repeated message leads nowhere new", node)

    # ---------------------------------------------------------- the messages

    def _rosters(self, node: Node) -> Iterator[tuple[bytes, int]]:
        """Any subset of genuine advertisements, either one of a colluder, or one
        of another session."""
        suite = self.params.primitives
        genuine = {root.client: root.sent for root in self.roots} | {
            c: helper.advertised for c, helper in self.helpers.items()
        }
        choices = [(None, *genuine[i], self.strangers[i]) for i in sorted(genuine)]
        for chosen in product(*choices):
            entries = tuple(
                messages.Advertise.from_bytes(one, suite) for one in chosen if one
            )
            yield messages.Roster(suite, self.session, entries).to_bytes(), 0

    def _deliveries(self, node: Node) -> Iterator[tuple[bytes, int]]:
        """From each sender nothing, any box it ever made, or another one's."""
        suite = self.params.primitives
        dealt = self._boxes_by_slot(node)
        for chosen in self._mixed(dealt):
            boxes = tuple(one[0] for one in chosen)
            yield (
                messages.Delivery(suite, self.session, boxes).to_bytes(),
                _together(chosen),
            )

    def _boxes_by_slot(self, node: Node) -> list[tuple[list[Entry], list[Entry]]]:
        """Per sender the right box, and the odd ones."""
        own = node.client
        made = list(self._boxes())
        slots = []
        for slot in range(len(self.params.roster)):
            right: list[Entry] = []
            odd: list[Entry] = []
            for sender, recipient, context, sealed, bit in made:
                entry = (messages.Box(slot, sealed), bit)
                here = context == node.context
                if (sender, recipient) == (slot, own):
                    (right if here else odd).append(entry)
                elif here and (sender == slot or recipient == own):
                    odd.append(entry)
            slots.append((right, odd))
        return slots

    def _boxes(self) -> Iterator[tuple[int, int, bytes, bytes, int]]:
        """Every box of every run: sender, recipient, context, box, bit."""
        for sent, node in self._sent(1).items():
            for box in messages.ShareKeys.from_bytes(
                sent, self.params.primitives
            ).boxes:
                yield (
                    node.client, box.peer, node.context, box.sealed, self.bit(sent)
                )  # fmt: skip
        for c, helper in self.helpers.items():
            for recipient in self.honest:
                for context, sealed in helper.boxes_for(recipient).items():
                    yield c, recipient, context, sealed, 0

    def _survivor_lists(self, node: Node) -> Iterator[tuple[bytes, int]]:
        """Any list, with or without a stranger, of this session and of another."""
        suite, size = self.params.primitives, len(self.params.roster)
        for session in (self.session, bytes(DIGEST_BYTES)):
            for listed in subsets(range(size + 1)):
                yield messages.Survivors(suite, session, listed).to_bytes(), 0

    def _confirmation_sets(self, node: Node) -> Iterator[tuple[bytes, int]]:
        """From each signer nothing or any signature that it ever made."""
        suite = self.params.primitives
        for chosen in self._mixed(self._signatures_by_signer(node)):
            confirmations = tuple(one[0] for one in chosen)
            message = messages.Confirmations(suite, self.session, confirmations)
            yield message.to_bytes(), _together(chosen)

    def _signatures_by_signer(
        self, node: Node
    ) -> list[tuple[list[Entry], list[Entry]]]:
        suite, size = self.params.primitives, len(self.params.roster)
        slots = [([], []) for _ in range(size)]
        for sent, signer in self._sent(3).items():
            if signer.client == node.client and sent not in node.sent:
                continue  # A client signs one list; its other runs are not this one.
            right = (signer.context, signer.survivors) == (node.context, node.survivors)
            signature = messages.Confirm.from_bytes(sent, suite).signature
            one = messages.Confirmation(signer.client, signature)
            slots[signer.client][0 if right else 1].append((one, self.bit(sent)))
        other = tuple(range(size)) if len(node.survivors) < size else node.survivors[1:]
        for c, helper in self.helpers.items():
            for odd, listed in enumerate((node.survivors, other)):
                signature = helper.confirmation(node.context, listed)
                slots[c][odd].append((messages.Confirmation(c, signature), 0))
        return slots

    def _mixed(
        self, slots: list[tuple[list[Entry], list[Entry]]]
    ) -> Iterator[tuple[tuple[object, int], ...]]:
        """One entry or none from each slot, with at most ``oddities`` odd ones."""
        limit = len(slots) if self.oddities is None else self.oddities
        choices = [
            [(None, 0), *((one, 0) for one in right), *((one, 1) for one in odd)]
            for right, odd in slots
        ]
        for chosen in product(*choices):
            if sum(odd for _, odd in chosen) <= limit:
                yield tuple(one for one, _ in chosen if one is not None)

    def _sent(self, phase: int) -> dict[bytes, Node]:
        """Every answer of one phase in all runs, and a client that sent it."""
        return {
            node.sent[phase]: node
            for node in self.nodes.values()
            if len(node.sent) == phase + 1
        }

    def bit(self, sent: bytes) -> int:
        """A number with one bit, for sets of answers."""
        return self._bits.setdefault(sent, 1 << len(self._bits))

    # ------------------------------------------------------- all clients together

    def states(self) -> Iterator[tuple[Node, ...]]:
        """Every reachable joint state of the honest clients, once."""
        number = {node: place for place, node in enumerate(self.nodes.values())}
        listed = list(self.nodes.values())
        steps = [
            [(number[to], edge.needs) for to, edge in self.edges[node].items()]
            for node in listed
        ]
        known = [sum(self._bits.get(sent, 0) for sent in node.sent) for node in listed]
        stack = [tuple(number[root] for root in self.roots)]
        seen = set(stack)
        while stack:
            state = stack.pop()
            yield tuple(listed[one] for one in state)
            have = 0
            for one in state:
                have |= known[one]
            for place, one in enumerate(state):
                for to, needs in steps[one]:
                    if any(need & have == need for need in needs):
                        following = (*state[:place], to, *state[place + 1 :])
                        if following not in seen:
                            seen.add(following)
                            stack.append(following)

    @property
    def finished(self) -> tuple[Node, ...]:
        return tuple(
            node
            for node in self.nodes.values()
            if isinstance(self.restored(node).state, Finished)
        )


def subsets(indices: Iterable[int]) -> Iterator[tuple[int, ...]]:
    listed = tuple(indices)
    return chain.from_iterable(
        combinations(listed, size) for size in range(len(listed) + 1)
    )


def _together(chosen: tuple[tuple[object, int], ...]) -> int:
    bits = 0
    for _, bit in chosen:
        bits |= bit
    return bits
