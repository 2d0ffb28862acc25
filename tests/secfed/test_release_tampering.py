"""Change anything in a release: verification fails, names it, and says by what.

Two attackers. One has no key: every byte of every file, every entry, signature, name
and kind of file. The other is the coordinator together with both approvers, who sign
everything again but the ledger: what is then still found is found by content, and what
is not is pinned by digests alone.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import evidence
import pytest
import released

from secfed.canonical import canonical_json, file_sha256
from secfed.gate.candidate import make_request
from secfed.gate.checking import list_release
from secfed.gate.documents import Approval, Release, Request
from secfed.gate.layout import is_requested, place_of
from secfed.gate.verification import verify_release
from secfed.signing import MANIFEST, CoordinatorKey
from secfed.verify import VerificationReport

TRUST = evidence.KEY.fingerprint()
PEOPLE = (released.ADA.fingerprint(), released.BOB.fingerprint())
LEDGER = "evidence/ledger.jsonl"
SIGNED = ("request.json", "release.json", "evidence/manifest.json")

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released.write_release(tmp_path_factory.mktemp("tampering"))


def verified(root: Path) -> VerificationReport:
    return verify_release(root, TRUST, PEOPLE)


# Without a key


def flip(name: str, place: Callable[[int], int]) -> Change:
    def change(root: Path) -> None:
        data = bytearray((root / name).read_bytes())
        data[place(len(data))] ^= 1
        (root / name).write_bytes(bytes(data))

    return change


def rewrite(name: str, edit: Callable[[bytes], bytes]) -> Change:
    def change(root: Path) -> None:
        before = (root / name).read_bytes()
        after = edit(before)
        assert after != before
        (root / name).write_bytes(after)

    return change


def link(name: str) -> Change:
    def change(root: Path) -> None:
        kept = root.with_name("elsewhere")
        shutil.copyfile(root / name, kept)
        (root / name).unlink()
        (root / name).symlink_to(kept)

    return change


def folder(name: str) -> Change:
    def change(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return change


def of_every_file(names: list[str]) -> Iterator[tuple[str, str, Change]]:
    for name in names:
        yield "first byte", name, flip(name, lambda size: 0)
        yield "a byte at a third", name, flip(name, lambda size: size // 3)
        yield "middle byte", name, flip(name, lambda size: size // 2)
        yield "last byte", name, flip(name, lambda size: size - 1)
        yield "cut", name, rewrite(name, lambda data: data[:-1])
        yield "longer", name, rewrite(name, lambda data: data + b"\n")
        yield "emptied", name, rewrite(name, lambda data: b"")
        yield "missing", name, lambda root, name=name: (root / name).unlink()
        yield "a link", name, link(name)
        yield "a folder", name, folder(name)


def lines_of(edit: Callable[[list[bytes]], list[bytes]]) -> Change:
    return rewrite(LEDGER, lambda data: b"".join(edit(data.splitlines(keepends=True))))


def flipped(line: bytes, share: float) -> bytes:
    place = int(share * (len(line) - 3))
    return line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]


def of_every_entry(count: int) -> Iterator[tuple[str, str, Change]]:
    for i in range(count):
        for share in (0.1, 0.5, 0.98):
            yield (
                f"entry at {share:.0%}",
                LEDGER,
                lines_of(
                    lambda ls, i=i, s=share: [*ls[:i], flipped(ls[i], s), *ls[i + 1 :]]
                ),
            )
        yield "entry dropped", LEDGER, lines_of(lambda ls, i=i: ls[:i] + ls[i + 1 :])
        yield "entry doubled", LEDGER, lines_of(lambda ls, i=i: ls[: i + 1] + ls[i:])
        if i + 1 < count:
            yield (
                "entries exchanged",
                LEDGER,
                lines_of(lambda ls, i=i: [*ls[:i], ls[i + 1], ls[i], *ls[i + 2 :]]),
            )


def another_signature(name: str) -> Change:
    def edit(data: bytes) -> bytes:
        fields = json.loads(data)
        other = CoordinatorKey(b"\x0d" * 32).sign(MANIFEST, data).hex()
        return canonical_json(fields | {"signature": other}) + b"\n"

    return rewrite(name, edit)


def exchange(one: str, other: str) -> Change:
    def change(root: Path) -> None:
        left, right = (root / one).read_bytes(), (root / other).read_bytes()
        (root / one).write_bytes(right)
        (root / other).write_bytes(left)

    return change


def add(name: str) -> Change:
    def change(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\x80\x04.")

    return change


def link_evidence(root: Path) -> None:
    """The folder is elsewhere, its content as it was."""
    elsewhere = (root / "evidence").rename(root.parent / "elsewhere")
    (root / "evidence").symlink_to(elsewhere)


def of_whole_folders(names: list[str]) -> Iterator[tuple[str, str, Change]]:
    approvals = [name for name in names if name.startswith("approvals/")]
    for name in (*SIGNED, *approvals):
        yield "signature of another", name, another_signature(name)
    yield "approvals exchanged", approvals[0], exchange(*approvals)
    yield "files exchanged", "statement.json", exchange("statement.json", "README.md")
    for name in (
        "pytorch_model.bin",
        ".hidden",
        "private/key",
        "evidence/extra.json",
        "approvals/third.json",
        "a/b/c/d",
    ):
        yield "extra file", name, add(name)
    yield "extra link", "l", lambda root: (root / "l").symlink_to("README.md")
    yield "extra pipe", "pipe", lambda root: os.mkfifo(root / "pipe")
    yield "extra folder", "empty", lambda root: (root / "empty").mkdir()
    yield (
        "renamed",
        "README.md",
        lambda root: (root / "README.md").rename(root / "readme.md"),
    )
    yield "linked folder", "evidence", link_evidence


def test_every_mutation_is_caught_and_named(
    original: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert verified(original).passed
    names = list(list_release(original))
    entries = len((original / LEDGER).read_bytes().splitlines())
    all_of_them = [
        *of_every_file(names),
        *of_every_entry(entries),
        *of_whole_folders(names),
    ]
    for number, (kind, name, change) in enumerate(all_of_them):
        root = tmp_path / str(number) / "release"
        shutil.copytree(original, root)
        change(root)
        report = verified(root)
        assert not report.passed, (kind, name)
        told = " ".join(check.reason for check in report.failures())
        assert Path(name).name in told or name in told, (kind, name, told)
        shutil.rmtree(root.parent)
    record_property("mutations", len(all_of_them))
    with capsys.disabled():
        print(f"\nrelease: {len(all_of_them)} mutations tried, all caught")  # noqa: T201
    assert len(all_of_them) > 10 * len(names) + 5 * entries + 15


# With every key but not the ledger: what is found by content


def edited(name: str, edit: Callable[[Any], Any]) -> Change:
    """Change a JSON file's value in place."""

    def change(root: Path) -> None:
        value = json.loads((root / name).read_bytes())
        before = copy.deepcopy(value)
        edit(value)
        assert value != before
        (root / name).write_bytes(canonical_json(value) + b"\n")

    return change


def text(name: str, old: str, new: str) -> Change:
    return rewrite(name, lambda data: data.replace(old.encode(), new.encode()))


def score(line: int) -> Change:
    def edit(data: bytes) -> bytes:
        lines = [json.loads(one) for one in data.splitlines()]
        lines[line]["accuracy"] = 0.99
        return b"".join(canonical_json(one) + b"\n" for one in lines)

    return rewrite("evidence/metrics.jsonl", edit)


def reseal(root: Path) -> None:
    """Coordinator and approvers sign everything again; the ledger stays."""
    path = root / "evidence/manifest.json"
    fields = json.loads(path.read_bytes())
    del fields["signature"]
    for name in fields["files"]:
        place = place_of(name)
        if place and (root / place).exists():
            fields["files"][name] = file_sha256(root / place)
    signature = evidence.KEY.sign(MANIFEST, canonical_json(fields)).hex()
    path.write_bytes(canonical_json(fields | {"signature": signature}) + b"\n")
    digests = {name: file_sha256(path) for name, path in list_release(root).items()}
    request = again(
        Request,
        evidence.KEY,
        root / "request.json",
        files={name: value for name, value in digests.items() if is_requested(name)},
    )
    for key in (released.ADA, released.BOB):
        for path in sorted((root / "approvals").iterdir()):
            if json.loads(path.read_bytes())["public_key"] == key.public_bytes.hex():
                again(Approval, key, path, request_digest=request.digest())
    digests = {name: file_sha256(path) for name, path in list_release(root).items()}
    del digests["release.json"]
    told = {"request_digest": request.digest(), "files": digests}
    again(Release, evidence.KEY, root / "release.json", **told)


def again(kind: Any, key: CoordinatorKey, path: Path, **changes: Any) -> Any:
    fields = json.loads(path.read_bytes()) | changes
    del fields["signature"]
    made = kind.signed(key, **fields)
    path.write_bytes(made.to_bytes())
    return made


def refute(report: Any) -> None:
    report["findings"][1]["verdict"] = "REFUTED"


def forget(report: Any) -> None:
    del report["self_test"]


DRAWN = {"model card", "statement page"}
OF_RUN = "attack report is of this run"
BY_CONTENT: dict[str, tuple[Change, set[str]]] = {
    "a number of the adapter": (
        flip("adapter_model.safetensors", lambda size: size - 2),
        {"adapters"},
    ),
    "the adapter's settings": (
        edited("adapter_config.json", lambda v: v.update(r=3)),
        {"adapters", "adapter"},
    ),
    "epsilon in the statement": (
        edited("statement.json", lambda v: v["sites"]["north"].update(epsilon=0.1)),
        {"adapters", "statement", *DRAWN},
    ),
    "words in the statement": (
        edited("statement.json", lambda v: v["hazards"].pop()),
        {"adapters", *DRAWN},
    ),
    "a section of the statement": (
        edited("statement.json", forget),
        {"adapters", "statement", "statement form", *DRAWN},
    ),
    "a figure in the card's header": (
        text("README.md", '"sites": 3', '"sites": 9'),
        {"model card"},
    ),
    "words of the card": (
        text("README.md", "limited by", "stopped by"),
        {"model card"},
    ),
    "words of the page": (
        text("statement.html", "limited by", "stopped by"),
        {"statement page"},
    ),
    "a site's uptime": (
        edited(
            "contributions.json",
            lambda v: v["sites"]["south"].update(uptime_of_all=1.0),
        ),
        {"contributions"},
    ),
    "the report's verdict": (
        edited("attack_report.json", refute),
        {OF_RUN, "attack report", *DRAWN},
    ),
    "the report's p-value": (
        edited(
            "attack_report.json", lambda v: v["findings"][1]["values"].update(p=1e-9)
        ),
        {"attack report", *DRAWN},
    ),
    "the report's claim": (
        edited(
            "attack_report.json", lambda v: v["subject"].update(claimed_epsilon=9.0)
        ),
        {OF_RUN},
    ),
    "the report's words": (
        edited("attack_report.json", lambda v: v["findings"][0].update(text="Bravo")),
        {"statement page"},
    ),
    "the report itself": (
        lambda root: (root / "attack_report.json").unlink(),
        {"attack report", *DRAWN},
    ),
    "the last score": (score(-1), {"model card"}),
    "the study": (
        edited("evidence/study.json", lambda v: v["study"].update(title="Nine sites")),
        {"study"},
    ),
    "an entry of the ledger": (lines_of(lambda ls: [*ls[:2], *ls[3:]]), {"ledger"}),
    "the last entry": (lines_of(lambda ls: ls[:-1]), {"request and run"}),
    "an approval": (
        lambda root: min((root / "approvals").iterdir()).unlink(),
        {"approvals"},
    ),
}
BY_DIGEST_ALONE: dict[str, Change] = {
    "a number of the report that is not drawn": edited(
        "attack_report.json", lambda v: v["findings"][1]["values"].update(tpr=0.0)
    ),
    "the score of an earlier round": score(1),
    "an approver's role": edited(
        f"approvals/{released.ADA.fingerprint()[:16]}.json",
        lambda v: v.update(role="Director"),
    ),
}


@pytest.mark.parametrize("name", BY_CONTENT)
def test_what_is_found_although_all_sign_again(
    name: str, original: Path, tmp_path: Path
) -> None:
    change, expected = BY_CONTENT[name]
    root = Path(shutil.copytree(original, tmp_path / "release"))
    change(root)
    reseal(root)
    found = {check.name for check in verified(root).failures()}
    assert expected <= found, found
    # Nothing of this was found by the last three signatures.
    assert not found & {"release", "files", "request", "requested files"}, found


@pytest.mark.parametrize("name", BY_DIGEST_ALONE)
def test_what_only_digests_hold(name: str, original: Path, tmp_path: Path) -> None:
    """Known limits: whoever signs may write these as they like, once."""
    root = Path(shutil.copytree(original, tmp_path / "release"))
    BY_DIGEST_ALONE[name](root)
    assert not verified(root).passed
    reseal(root)
    assert verified(root).passed


def test_signing_again_without_a_change_verifies(
    original: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(original, tmp_path / "release"))
    reseal(root)
    assert verified(root).passed


def test_signed_by_somebody_else(tmp_path: Path) -> None:
    run = released.write_run(tmp_path / "run", key=evidence.OTHER_KEY)
    asked = released.ask(run, tmp_path / "c", released.audit())
    make_request(type(asked)(**(vars(asked) | {"key": evidence.OTHER_KEY})))
    released.approve_twice(tmp_path / "c")
    released.make_bundle(tmp_path / "c", evidence.OTHER_KEY, tmp_path / "r")
    assert verify_release(tmp_path / "r").passed
    failed = [check.name for check in verified(tmp_path / "r").failures()]
    assert failed == ["coordinator key"]


@pytest.mark.parametrize("content", [b"", b"{}\n", b"[]\n", b"\x00" * 90, b"{\n"])
def test_garbage_never_raises(content: bytes, original: Path, tmp_path: Path) -> None:
    for name in list_release(original):
        root = tmp_path / name.replace("/", "-")
        shutil.copytree(original, root)
        (root / name).write_bytes(content)
        assert not verified(root).passed
        shutil.rmtree(root)
