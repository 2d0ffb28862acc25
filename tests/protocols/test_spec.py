"""SPEC.md says what the code does: its tables are read and compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import protocols
from protocols import agreement, labels
from protocols.secagg import messages
from protocols.suites import SUITES
from tests.session import healthy, make_params

ROOT = Path(protocols.__file__).parent
SPEC = (ROOT / "SPEC.md").read_text("utf-8")
RULE = re.compile(r"SA-\d{3}")


def section(title):
    """The text of one section, up to the next of its level or above."""
    level = len(title) - len(title.lstrip("#"))
    body = SPEC[SPEC.index(title) + level :]
    following = re.search(rf"^#{{1,{level}}} ", body, re.MULTILINE)
    return body[: following.start()] if following else body


def rows(text):
    """The cells of the table rows, without head and rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[cell.strip() for cell in row] for row in cells if set(row[0]) - set("- ")]


def table_of_rules():
    return {row[0]: row[1:] for row in rows(section("## 5. Rules"))[1:]}


def sources():
    return {
        str(path.relative_to(ROOT)): path.read_text("utf-8")
        for path in sorted(ROOT.rglob("*.py"))
    }


def test_the_rules_are_those_of_the_code():
    in_code = {rule for text in sources().values() for rule in RULE.findall(text)}
    assert set(table_of_rules()) == in_code
    assert set(RULE.findall(SPEC)) == in_code


@pytest.mark.parametrize("rule", sorted(table_of_rules()))
def test_each_rule_is_cited_where_the_table_says(rule):
    sentence, party, code = table_of_rules()[rule]
    assert sentence.endswith(".")
    assert party in {"client", "server", "both"}
    assert rule in sources()[code.strip("`")]


def test_each_rule_is_named_by_a_test():
    here = Path(__file__)
    tests = "".join(
        path.read_text("utf-8") for path in here.parent.glob("*.py") if path != here
    )
    vectors = here.parent.parent / "vectors"
    recorded = "".join(path.read_text("utf-8") for path in vectors.rglob("*.json"))
    named = set(RULE.findall(tests)) | set(RULE.findall(recorded))
    assert set(table_of_rules()) <= named


def test_the_labels_are_those_of_the_code():
    start = SPEC.index("**Labels.**")
    listed = [
        row[0].strip("`") for row in rows(SPEC[start : SPEC.index("**Session id")])
    ]
    in_code = {
        value.decode()
        for name, value in vars(labels).items()
        if name.isupper() and name != "VERSION"
    }
    assert set(listed[1:]) == in_code
    assert len(listed[1:]) == len(in_code)
    assert f"`V` is `{labels.VERSION.decode()}`" in SPEC


def test_the_suites_are_those_of_the_code():
    start = SPEC.index("| suite | key agreement")
    listed = rows(SPEC[start : SPEC.index("**Labels.**")])[1:]
    assert [int(row[0]) for row in listed] == list(SUITES)
    for row in listed:
        suite = SUITES[int(row[0])]
        assert ("ML-KEM-768" in row[1]) == suite.hybrid
        assert row[2].lower() == suite.mask_cipher
        for word in (row[1], row[2], row[3], row[4]):
            assert word in suite.name


# ------------------------------------------------- the messages, byte by byte


def played(**changes):
    """Every message of a session: by type, all that were sent."""
    seen = []

    def note(_phase, _way, _name, message):
        if message:
            seen.append(message)
        return message

    params = make_params(**changes)
    session = healthy(
        params=params, tamper=note, leaves={params.roster[1].name: "masked-input"}
    )
    session.play()
    return params.primitives, seen


TYPES = {
    kind.tag: kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and isinstance(getattr(kind, "tag", None), int)
}
SPARSE = {
    "num_clients": 100,
    "threshold": 6,
    "degree": 12,
    "max_colluders": 1,
    "max_dropouts": 5,
    "mode": "semi-honest",
}


def counts(message):
    """The numbers of entries that the tables use."""
    found = {
        name: len(getattr(message, name))
        for name in ("entries", "boxes", "offers", "cohort", "survivors")
        if hasattr(message, name)
    }
    for name in ("confirmations", "reveals", "vector"):
        if hasattr(message, name):
            found[name] = len(getattr(message, name))
    if isinstance(message, messages.Neighbourhood):
        found["entries"] = len(message.listings)
        found["hashes"] = sum(len(one.proof) for one in message.listings)
    return found


@pytest.mark.parametrize("session", [{}, {"suite": 2}, {"suite": 3}, SPARSE])
def test_every_message_has_the_bytes_of_its_table(session):
    suite, seen = played(**session)
    kinds = set()
    for data in seen:
        kind = TYPES[data[0]]
        kinds.add(kind)
        text = section(f"### 4.{ORDER.index(kind.__name__) + 1} `{kind.__name__}`")
        assert f"`{kind.__name__}`, tag {kind.tag}," in text
        expected = {
            "key": agreement.public_key_bytes(suite),
            "box": messages.box_bytes(suite),
            "advertise": messages.advertise_bytes(suite),
            "hybrid": int(suite.hybrid),
            **counts(kind.from_bytes(data, suite)),
        }
        sizes = [row[1].strip("`") for row in rows(text)[1:]]
        total = sum(eval(size, {}, expected) for size in sizes)  # noqa: S307
        assert total == len(data), kind.__name__
    absent = "Neighbourhood" if "degree" not in session else "Roster"
    assert kinds == {kind for kind in TYPES.values() if kind.__name__ != absent}


ORDER = [
    "Advertise",
    "Roster",
    "Neighbourhood",
    "ShareKeys",
    "Delivery",
    "MaskedInput",
    "Survivors",
    "Confirm",
    "Confirmations",
    "Unmask",
]


def test_the_order_is_that_of_the_page():
    assert re.findall(r"^### 4\.\d+ `(\w+)`", SPEC, re.MULTILINE) == ORDER
    assert sorted(kind.__name__ for kind in TYPES.values()) == sorted(ORDER)
