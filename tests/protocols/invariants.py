"""What a server can compute from all it has seen, and what must hold of it.

A masked input is the input, the client's own mask and one pairwise mask for some
peers. All masks are independent and uniform, so a sum of inputs can be computed
exactly if every mask in it is known or cancels: the groups below are the smallest
such sums, and every other sum that the server can compute is a combination of them.

Why a group has at least ``min_cohort - |C|`` honest members, whatever the server
does. Honest clients reveal only over one list L: two lists need 2t confirmations,
honest clients give one each and colluders two, and 2t > n + |C|. A member's own
mask is known only if it is in L, and the recovery key of nobody in L is known. So
a member's masks with honest clients in L bring these into the group. If some
honest j of L is not in the group, then no member masked with j, so no member
confirmed L (SA-402), and the t confirmations come from colluders and from honest
clients of L outside the group: at least t - |C| of these. Each member masked with
t clients (SA-206), at least t - |C| of them honest, all in the group or outside L.
Together 2 (t - |C|) <= n - |C|, which 2t > n + |C| excludes. So the group is all
the honest clients of L, and L has ``min_cohort`` members (SA-403).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from protocols import shamir
from protocols.agreement import AgreementKey
from protocols.ring import RingVector
from protocols.secagg import messages
from protocols.secagg.masks import Mask, add_masks, mask_key_of, pair_mask, self_mask
from protocols.secagg.messages import REVEAL_RECOVERY, REVEAL_SELF
from tests.protocols.search import Node, Search, Violation, subsets

BOTH = "never enough shares of both secrets of one client"
COHORT = "no sum of fewer honest inputs than min_cohort - |C|"
ONE_LIST = "honest clients that reveal have one survivor list"
WHOLE_LIST = "a sum is over all honest clients of the confirmed list"
OPENS = "a sum whose shares are all there opens"
OWN_MASK = "an input carries its own mask and masks of its directory only"

EVERY_PROMISE = frozenset({BOTH, COHORT, ONE_LIST, WHOLE_LIST, OPENS, OWN_MASK})

Shares = dict[tuple[int, int], dict[int, bytes]]  # (dealer, kind): by holder
Group = frozenset[int]


@dataclass(frozen=True)
class View:
    """What the server has from one client in one node."""

    client: int
    context: bytes = b""
    dealt: tuple[tuple[int, bytes, bytes], ...] = ()  # to colluders: of b and of R
    vector: int | None = None  # the masked input
    cohort: Group = frozenset()  # whom it says it masked with
    masked_with: Group = frozenset()  # whom it did mask with
    reveals: tuple[messages.Reveal, ...] = ()
    survivors: tuple[int, ...] = ()  # the list behind the reveals


class Knowledge:
    """Checks every joint state of one search against the given promises."""

    def __init__(
        self, search: Search, promises: frozenset[str] = EVERY_PROMISE
    ) -> None:
        self.search, self.params, self.promises = search, search.params, promises
        if search.params.body_length != 1 or search.params.ring_bits != 64:
            raise ValueError("masks are told apart by one element of 64 bits")
        self.fewest = self.params.min_cohort - len(search.colluders)
        self.secrets = {
            root.client: search.restored(root).state for root in search.roots
        }
        self._views: dict[Node, View] = {}
        self._checked: dict[tuple[View, ...], frozenset[Group]] = {}

    def groups(self, state: tuple[Node, ...]) -> frozenset[Group]:
        """Whose sums the server can compute, after all checks.

        Raises:
            Violation: ``state`` breaks a promise.
        """
        views = tuple(self._views.get(node) or self._viewed(node) for node in state)
        if views not in self._checked:
            try:
                self._checked[views] = self._groups_of(views)
            except Violation as found:
                found.add_note("; ".join(map(str, state)))
                raise
        return self._checked[views]

    # ------------------------------------------------------------- one client

    def _viewed(self, node: Node) -> View:
        suite, own = self.params.primitives, node.client
        fields = {}
        if len(node.sent) > 1:
            boxes = messages.ShareKeys.from_bytes(node.sent[1], suite).boxes
            fields["context"] = node.context
            fields["dealt"] = tuple(
                (
                    box.peer,
                    *self.search.helpers[box.peer].opened(
                        node.context, messages.Box(own, box.sealed)
                    ),
                )
                for box in boxes
                if box.peer in self.search.helpers
            )
        if len(node.sent) > 2:
            masked = messages.MaskedInput.from_bytes(node.sent[2], suite)
            fields["vector"] = int.from_bytes(masked.vector, "little")
            fields["cohort"] = frozenset(masked.cohort)
            fields["masked_with"] = self._masks_in(own, node, fields["vector"])
        if len(node.sent) > 4:
            fields["survivors"] = node.survivors
            fields["reveals"] = messages.Unmask.from_bytes(node.sent[4], suite).reveals
        return self._views.setdefault(node, View(own, **fields))

    def _masks_in(self, own: int, node: Node, vector: int) -> Group:
        """The peers whose masks are in a masked input, found by trying all sets."""
        secrets = self.secrets[own]
        bare = int(self.search.inputs[own].body[0]) + self.value(
            self_mask(secrets.self_secret, node.context)
        )
        pairs = {
            peer: self._pair(own, secrets.recovery, peer, node.context)
            for peer in self.search.directories[node.context]
            if peer != own
        }
        for peers in subsets(pairs):
            if (bare + sum(pairs[peer] for peer in peers) - vector) % 2**64 == 0:
                return frozenset(peers)
        raise Violation(OWN_MASK, node)

    def _pair(self, own: int, recovery: bytes, peer: int, context: bytes) -> int:
        """What ``own`` adds for ``peer``, computed from the recovery key of ``own``."""
        public = self.search.directories[context][peer].mask_key
        return self.value(pair_mask(own, self._key(recovery), peer, public, context))

    @cache  # noqa: B019
    def _key(self, recovery: bytes) -> AgreementKey:
        return mask_key_of(recovery, self.search.session, self.params.primitives)

    def value(self, mask: Mask) -> int:
        vector: RingVector = self.params.zeros()
        add_masks(vector, [mask], self.params.primitives)
        return int(vector.body[0])

    # ------------------------------------------------------------ all clients

    def _groups_of(self, views: tuple[View, ...]) -> frozenset[Group]:
        by_client = {view.client: view for view in views}
        shares = self._shares(views)
        rebuilt = {
            key: found
            for key, found in shares.items()
            if len(found) >= self.params.threshold
        }
        for client in by_client:
            if {(client, REVEAL_SELF), (client, REVEAL_RECOVERY)} <= rebuilt.keys():
                self._broken(BOTH, client)
        lists = {(view.context, view.survivors) for view in views if view.reveals}
        if len(lists) > 1:
            self._broken(ONE_LIST, sorted(listed for _, listed in lists))
        groups = frozenset(self._open_groups(by_client, rebuilt))
        for group in groups:
            self._check_group(group, by_client, rebuilt, lists)
        for context, survivors in lists:
            self._check_opens(context, survivors, by_client, rebuilt, groups)
        return groups

    def _shares(self, views: tuple[View, ...]) -> Shares:
        """Every share that the server has, its colluders' included."""
        shares: Shares = {}
        for view in views:
            for colluder, of_self, of_recovery in view.dealt:
                shares.setdefault((view.client, REVEAL_SELF), {})[colluder] = of_self
                shares.setdefault((view.client, REVEAL_RECOVERY), {})[colluder] = (
                    of_recovery
                )
            for one in view.reveals:
                if one.peer not in self.search.helpers:
                    dealt = shares.setdefault((one.peer, one.kind), {})
                    dealt[view.client] = one.share
        return shares

    def _open_groups(
        self, by_client: Mapping[int, View], rebuilt: Shares
    ) -> Iterator[Group]:
        """Clients joined by unknown masks that cancel, if no other mask is left."""
        left = {own for own, view in by_client.items() if view.vector is not None}
        while left:
            group, todo, is_open = set(), [left.pop()], True
            while todo:
                own = todo.pop()
                group.add(own)
                is_open = is_open and (own, REVEAL_SELF) in rebuilt
                for peer in self._hidden_peers(by_client[own], rebuilt):
                    if not self._cancels(by_client[own], by_client[peer]):
                        is_open = False
                    elif peer in left:
                        left.remove(peer)
                        todo.append(peer)
            if is_open:
                yield frozenset(group)

    def _hidden_peers(self, view: View, rebuilt: Shares) -> list[int]:
        """Honest peers whose mask with this client the server does not know."""
        if (view.client, REVEAL_RECOVERY) in rebuilt:
            return []
        return [
            peer
            for peer in view.masked_with
            if peer not in self.search.helpers
            and (peer, REVEAL_RECOVERY) not in rebuilt
        ]

    @staticmethod
    def _cancels(one: View, other: View) -> bool:
        return (
            other.vector is not None
            and other.context == one.context
            and one.client in other.masked_with
        )

    # --------------------------------------------------------------- promises

    def _check_group(
        self,
        group: Group,
        by_client: Mapping[int, View],
        rebuilt: Shares,
        lists: set[tuple[bytes, tuple[int, ...]]],
    ) -> None:
        total = sum(int(self.search.inputs[own].body[0]) for own in group)
        found = sum(self._unmasked(by_client[own], group, rebuilt) for own in group)
        assert (total - found) % 2**64 == 0, "the groups are not what can be computed"
        if len(group) < self.fewest:
            self._broken(COHORT, sorted(group))
        for _, survivors in lists:
            if group != set(survivors) - self.search.helpers.keys():
                self._broken(WHOLE_LIST, sorted(group))

    def _unmasked(self, view: View, group: Group, rebuilt: Shares) -> int:
        """One masked input without all that rebuilt secrets take off."""
        own, context = view.client, view.context
        assert view.vector is not None
        found = view.vector - self.value(
            self_mask(self._secret(rebuilt[own, REVEAL_SELF]), context)
        )
        for peer in view.masked_with - group:
            if (own, REVEAL_RECOVERY) in rebuilt:
                recovery = self._secret(rebuilt[own, REVEAL_RECOVERY])
                found -= self._pair(own, recovery, peer, context)
            else:
                found += self._pair(
                    peer, self._recovery(peer, context, rebuilt), own, context
                )
        return found

    def _recovery(self, peer: int, context: bytes, rebuilt: Shares) -> bytes:
        if peer in self.search.helpers:
            public = self.search.directories[context][peer].mask_key
            return self.search.helpers[peer].recovery[public]
        return self._secret(rebuilt[peer, REVEAL_RECOVERY])

    def _secret(self, shares: Mapping[int, bytes]) -> bytes:
        holders = sorted(shares)[: self.params.threshold]
        return _combined(
            tuple(holder + 1 for holder in holders),
            tuple(shares[holder] for holder in holders),
        )

    def _check_opens(
        self,
        context: bytes,
        survivors: tuple[int, ...],
        by_client: Mapping[int, View],
        rebuilt: Shares,
        groups: frozenset[Group],
    ) -> None:
        """What a server that follows the protocol could sum, it can unmask."""
        honest = frozenset(survivors) - self.search.helpers.keys()
        views = [by_client[own] for own in honest]
        ready = all(
            view.vector is not None
            and view.context == context
            and honest <= view.cohort
            for view in views
        )
        dealers = {d for view in views for d in view.cohort} & by_client.keys()
        wanted = {(d, messages.kind_for(d, survivors)) for d in dealers}
        if ready and wanted <= rebuilt.keys() and honest not in groups:
            self._broken(OPENS, sorted(honest))

    def _broken(self, promise: str, what: object) -> None:
        if promise in self.promises:
            raise Violation(promise, what)


@cache
def _combined(points: tuple[int, ...], shares: tuple[bytes, ...]) -> bytes:
    return shamir.reconstruct(points, shares)
