"""Reads the recorded rounds as another implementation would, and replays them.

Nothing here comes from the code that made the files: only their JSON.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocols import agreement
from protocols.agreement import KemSecret
from protocols.errors import MessageError
from protocols.keys import SigningKey
from protocols.ring import RingVector
from protocols.secagg import messages, server, stored
from protocols.secagg.params import PHASES, Member, SessionParams
from protocols.suites import SUITES
from tests.protocols.reference import masks, secagg, transcript

DIRECTORY = Path(__file__).resolve().parents[1] / "vectors" / "secagg"

unhex = bytes.fromhex


def read(pattern):
    """The files of one kind, by their names."""
    paths = sorted(DIRECTORY.glob(pattern))
    return {path.stem: json.loads(path.read_text("utf-8")) for path in paths}


ROUNDS, FAILING = read("rounds/*.json"), read("rounds/failing/*.json")


def ring_vector(params, data):
    shape = (params.body_length, params.lane_length, params.ring_bits)
    return RingVector.from_bytes(unhex(data["lane"] + data["body"]), *shape)


class Recorded:
    """One round as the files have it; a failing one is laid over its base."""

    def __init__(self, name):
        failing = FAILING.get(name, {})
        self.content = content = ROUNDS[failing.get("base", name)]
        self.deviates = {*content["deviates"], *failing.get("deviates", ())}
        self.refusal = failing.get("refusal")
        self.clients = {one["name"]: one for one in content["clients"]}
        self.leaves = {n: c["leaves"] for n, c in self.clients.items() if c["leaves"]}
        self.leaves.update(failing.get("leaves", {}))
        self.model = unhex(content["model_digest"])
        self.down, self.up, self.second = {}, {}, {}
        for phase in content["phases"]:
            self._take(phase)
        for one in failing.get("messages", ()):
            place = one["phase"], one["client"]
            kind = self.up if one["way"] == "up" else self.down
            if one["second"]:
                kind = self.second
                place = (*place, one["way"])
            kind[place] = unhex(one["bytes"])

    def _take(self, phase):
        for one in phase["down"]:
            for name in one["to"]:
                self.down[phase["phase"], name] = unhex(one["bytes"])
        for one in phase["up"]:
            self.up[phase["phase"], one["from"]] = unhex(one["bytes"])

    def params(self):
        values = dict(self.content["parameters"])
        values["study_digest"] = unhex(values["study_digest"])
        roster = tuple(
            Member(one["name"], unhex(one["identity"])) for one in self.clients.values()
        )
        return SessionParams(roster=roster, **values)

    def study(self):
        """The parameters for the second implementation."""
        values = dict(self.content["parameters"])
        assert (values.pop("suite"), values.pop("degree")) == (1, 0)
        assert values.pop("max_dropouts") == 0
        values["study_digest"] = unhex(values["study_digest"])
        roster = tuple(
            (one["name"], unhex(one["identity"])) for one in self.clients.values()
        )
        return transcript.Study(roster=roster, **values)

    def randomness(self, name, phase):
        return unhex(self.clients[name]["randomness"].get(phase, ""))

    def takes_part(self, name, phase):
        left = PHASES.index(self.leaves[name]) if name in self.leaves else len(PHASES)
        return PHASES.index(phase) < left

    def arrivals(self, phase):
        """What the server receives, in this order."""
        first = [
            (name, self.up[phase, name])
            for name in self.clients
            if (phase, name) in self.up and self.takes_part(name, phase)
        ]
        again = [
            (name, message)
            for (at, name, way), message in self.second.items()
            if (at, way) == (phase, "up")
        ]
        return first + again

    def encapsulations(self, name):
        """What one client encapsulated, by the key that it was for."""
        suite = SUITES[self.content["parameters"]["suite"]]
        pairs = {}
        for one in self.content["encapsulations"]:
            if one["client"] == name:
                sent = self.up["advertise-keys", one["peer"]]
                entry = messages.Advertise.from_bytes(sent, suite)
                key = getattr(entry, one["key"].replace(" ", "_"))
                pair = KemSecret(unhex(one["ciphertext"]), unhex(one["secret"]))
                pairs[key] = pair
        return pairs


# --------------------------------------------- both implementations, one shape


class OurClient:
    """A client that is stored and restored after every message."""

    def __init__(self, recorded, name):
        self.recorded, self.name = recorded, name
        self.identity = unhex(recorded.clients[name]["identity_seed"])

    def answer(self, phase, received):
        params, fresh = (
            self.recorded.params(),
            self.recorded.randomness(self.name, phase),
        )
        fixed = SigningKey(self.identity), self.recorded.model
        if phase == "advertise-keys":
            record = stored.start(params, self.name, *fixed, randomness=fresh)
        else:
            pairs = self.recorded.encapsulations(self.name)
            vector = ring_vector(params, self.recorded.clients[self.name]["input"])
            before = stored.Record.from_bytes(params, *fixed, self.data)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(agreement, "encapsulate", pairs.__getitem__)
                record = stored.answer(
                    before, received, randomness=fresh, vector=vector
                )
        self.data = record.to_bytes()
        return record.outbound


class OurServer:
    def __init__(self, recorded):
        self.state = server.open_session(recorded.params(), recorded.model)

    def receive(self, phase, name, message):
        receive = {
            "advertise-keys": server.receive_keys,
            "share-keys": server.receive_shares,
            "masked-input": server.receive_input,
            "confirm-survivors": server.receive_confirmation,
            "unmask": server.receive_reveal,
        }
        self.state = receive[phase](self.state, name, message)

    def close(self, phase):
        if phase == "unmask":
            return result_of(server.close_reveals(self.state))
        close = {
            "advertise-keys": server.close_keys,
            "share-keys": server.close_shares,
            "masked-input": server.close_inputs,
            "confirm-survivors": server.close_confirmations,
        }
        self.state, answers = close[phase](self.state)
        return answers


def result_of(result):
    return {
        "lane": result.total.lane.tobytes().hex(),
        "body": result.total.body.tobytes().hex(),
        "survivors": list(result.survivors),
        "dropouts": dict(result.dropouts),
        "suspicions": [
            {"rule": one.rule, "clients": list(one.clients)} for one in result.blamed
        ],
    }


class ReferenceClient:
    def __init__(self, recorded, name):
        self.recorded, self.name = recorded, name
        seed = unhex(recorded.clients[name]["identity_seed"])
        self.client = secagg.Client(recorded.study(), name, seed, recorded.model)

    def answer(self, phase, received):
        fresh = self.recorded.randomness(self.name, phase)
        if phase == "advertise-keys":
            return self.client.advertise(fresh)
        if phase == "share-keys":
            return self.client.share(received, fresh)
        if phase == "masked-input":
            data = self.recorded.clients[self.name]["input"]
            return self.client.mask(
                received,
                masks.vector_from(
                    unhex(data["lane"] + data["body"]), self.recorded.study()
                ),
            )
        return {"confirm-survivors": self.client.confirm, "unmask": self.client.reveal}[
            phase
        ](received)


class ReferenceServer:
    def __init__(self, recorded):
        self.recorded, self.arrived = recorded, []
        self.server = secagg.Server(recorded.study(), recorded.model)

    def receive(self, phase, name, message):
        self.arrived.append((name, message))

    def close(self, phase):
        senders, sent = zip(*self.arrived, strict=True)
        self.arrived = []
        if phase == "share-keys":
            names = list(self.recorded.clients)
            return {names[i]: one for i, one in self.server.deliver(sent).items()}
        if phase == "unmask":
            return self._result(self.server.finish(sent))
        step = {
            "advertise-keys": self.server.publish,
            "masked-input": self.server.survive,
            "confirm-survivors": self.server.relay,
        }[phase]
        return dict.fromkeys(senders, step(sent))

    def _result(self, total):
        data = masks.vector_bytes(total, self.recorded.study())
        cut = 8 * self.recorded.study().lane_length
        expected = self.recorded.content["result"]  # it does not name dropouts
        return {**expected, "lane": data[:cut].hex(), "body": data[cut:].hex()}


class Replay:
    """Plays a recorded round; whoever deviates is played from the record."""

    def __init__(self, recorded, client_type=OurClient, server_type=OurServer):
        self.recorded = recorded
        self.clients = {
            name: client_type(recorded, name)
            for name in recorded.clients
            if name not in recorded.deviates
        }
        self.server = None
        if "server" not in recorded.deviates:
            self.server = server_type(recorded)
        self.acting = ("", "", "", "")  # party, phase, step and whose message

    def play(self):
        """The result, or None if the server is played from the record."""
        for phase in PHASES:
            for name, client in self.clients.items():
                if self.recorded.takes_part(name, phase):
                    self._client(phase, name, client)
            if self.server:
                result = self._server(phase)
        return result if self.server else None

    def _client(self, phase, name, client):
        received = self.recorded.down.get((phase, name), b"")
        if not received and phase != "advertise-keys":
            assert (phase, name) not in self.recorded.up
            return  # Dropped by the server: its input came second (SA-304).
        self.acting = (name, phase, "answer", "")
        assert client.answer(phase, received) == self.recorded.up[phase, name]
        again = self.recorded.second.get((phase, name, "down"))
        if again is not None:
            client.answer(phase, again)

    def _server(self, phase):
        for name, message in self.recorded.arrivals(phase):
            self.acting = ("server", phase, "receive", name)
            self.server.receive(phase, name, message)
        self.acting = ("server", phase, "close", "")
        closed = self.server.close(phase)
        if phase == "unmask":
            return closed
        following = PHASES[PHASES.index(phase) + 1]
        for name, message in closed.items():
            assert message == self.recorded.down[following, name]
        recipients = {name for at, name in self.recorded.down if at == following}
        assert set(closed) == recipients
        return None


def refusal_of(error, acting):
    """What the party that refuses says, in the words of the files."""
    party, phase, step, sender = acting
    found = {
        "party": party,
        "phase": phase,
        "step": step,
        "error": type(error).__name__,
        "rule": getattr(error, "rule", None),
    }
    if type(error) is MessageError:
        found |= {"rule": "SA-010", "client": sender}
    for name in ("client", "dealers", "dealer", "holders", "have", "need"):
        if hasattr(error, name):
            value = getattr(error, name)
            found[name] = list(value) if isinstance(value, tuple) else value
    if "have" in found:
        found["rule"] = "SA-016"
    if "dealer" in found:
        assert "SA-506" in str(error)
        found["rule"] = "SA-506"
    return found
