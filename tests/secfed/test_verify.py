"""Change anything in a run directory: verification fails and says what."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import evidence
import pytest

from secfed.canonical import canonical_json, parse_json, sha256_hex
from secfed.checkpoints import Checkpoint, sign_checkpoint
from secfed.errors import RunDirectoryError, VerificationError
from secfed.ledger import CHECKPOINT_NAME, Ledger, split_lines
from secfed.manifest import list_files, read_manifest, write_manifest
from secfed.notes import parse_note
from secfed.privacy import accounting
from secfed.signing import MANIFEST, CoordinatorKey
from secfed.verify import VerificationReport, verify_run

FINGERPRINT = evidence.KEY.fingerprint()
LAST = 5
"""The number of the release entry."""


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "run"
    evidence.write_run(path)
    return path


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture(scope="session")
def original_comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "comparison"
    evidence.write_comparison(path)
    return path


@pytest.fixture
def comparison(original_comparison: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original_comparison, tmp_path / "comparison"))


def names(run: Path) -> list[str]:
    return [*list_files(run), "manifest.json"]


def reasons(report: VerificationReport, check: str | None = None) -> str:
    """The reasons of the failed checks; asserts that there are some."""
    assert not report.passed
    found = report.failures()
    if check is not None:
        found = tuple(failed for failed in found if failed.name == check)
    assert found, [failed.name for failed in report.failures()]
    return "\n".join(failed.reason for failed in found)


def sign_again(run: Path, key: CoordinatorKey = evidence.KEY) -> None:
    """Make the manifest agree with whatever the directory now holds."""
    old = read_manifest((run / "manifest.json").read_bytes())
    write_manifest(run, old.study_digest, key)


# Healthy


def test_healthy_run(run: Path) -> None:
    report = verify_run(run, FINGERPRINT)
    assert report.failures() == ()
    assert report.passed
    assert (report.kind, report.pin_label) == ("run", "PINNED")
    assert report.fingerprint == FINGERPRINT
    assert [check.number for check in report.checks] == list(range(1, 16))
    assert report.to_json()["passed"] is True


def test_without_trust_it_is_unpinned(run: Path) -> None:
    report = verify_run(run)
    assert report.passed
    assert report.pin_label == "UNPINNED"
    assert any(check.reason.startswith("UNPINNED") for check in report.checks)


@pytest.mark.parametrize(("private", "seed"), [(False, None), (True, 3), (False, 3)])
def test_runs_that_are_not_private_say_so(
    tmp_path: Path, private: bool, seed: int | None
) -> None:
    evidence.write_run(tmp_path / "run", private=private, seed=seed)
    report = verify_run(tmp_path / "run")
    assert report.failures() == ()
    (statement,) = [check for check in report.checks if check.name == "statement"]
    assert "NOT PRIVATE" in statement.reason


def test_healthy_comparison(comparison: Path) -> None:
    report = verify_run(comparison, FINGERPRINT)
    assert report.failures() == ()
    assert (report.kind, report.pinned, len(report.arms)) == ("comparison", True, 2)
    assert all(arm.pinned for arm in report.arms)


def test_private_files_are_nobodys_business(run: Path) -> None:
    (run / "private").mkdir()
    (run / "private" / "coordinator.key").write_bytes(b"secret")
    assert verify_run(run).passed
    sign_again(run)
    manifest = read_manifest((run / "manifest.json").read_bytes())
    assert not any("private" in name for name in manifest.files)


# One byte


def test_one_byte_of_any_file(run: Path) -> None:
    for name in names(run):
        path = run / name
        content = path.read_bytes()
        positions = {0, len(content) // 3, len(content) // 2, len(content) - 1}
        for position in sorted(positions):
            changed = bytearray(content)
            changed[position] ^= 0x01
            path.write_bytes(changed)
            report = verify_run(run, FINGERPRINT)
            assert name in reasons(report), (name, position)
        path.write_bytes(content + b"\n")
        assert name in reasons(verify_run(run)), name
        path.write_bytes(b"")
        assert name in reasons(verify_run(run)), name
        path.write_bytes(content)
    assert verify_run(run).passed


def test_one_byte_of_any_file_of_a_comparison(comparison: Path) -> None:
    for name in names(comparison):
        path = comparison / name
        content = path.read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 0x80
        path.write_bytes(changed)
        assert name in reasons(verify_run(comparison)), name
        path.write_bytes(content)


# Files


def test_deleted_files(run: Path) -> None:
    for name in names(run):
        content = (run / name).read_bytes()
        (run / name).unlink()
        assert name in reasons(verify_run(run)), name
        (run / name).write_bytes(content)


def test_added_and_renamed_files(run: Path) -> None:
    (run / "adapters" / "round-002.safetensors").write_bytes(b"x")
    report = verify_run(run)
    assert "adapters/round-002.safetensors" in reasons(report, "no other files")
    sign_again(run)
    assert "adapters/round-002.safetensors" in reasons(verify_run(run), "adapters")
    (run / "adapters" / "round-002.safetensors").unlink()
    sign_again(run)
    assert verify_run(run).passed
    (run / "report.html").rename(run / "report.htm")
    assert "report.html" in reasons(verify_run(run), "files")


def test_swapped_files(run: Path) -> None:
    first = run / "adapters" / "round-001.safetensors"
    third = run / "adapters" / "round-003.safetensors"
    one, three = first.read_bytes(), third.read_bytes()
    first.write_bytes(three)
    third.write_bytes(one)
    text = reasons(verify_run(run), "files")
    assert "round-001" in text
    assert "round-003" in text
    # Even the coordinator cannot sign it away: the ledger knows the adapters.
    sign_again(run)
    assert "round-001" in reasons(verify_run(run, FINGERPRINT), "adapters")


def test_many_bad_files_are_summarised(run: Path) -> None:
    for number in range(50):
        (run / f"extra-{number}").write_bytes(b"")
    text = reasons(verify_run(run), "no other files")
    assert "and 42 more" in text


def test_links_are_refused(run: Path) -> None:
    outside = run.parent / "outside"
    (run / "adapters").rename(outside)
    (run / "adapters").symlink_to(outside)
    text = reasons(verify_run(run))
    assert "adapters: a symbolic link" in text
    assert "adapters/round-001.safetensors" in text
    with pytest.raises(RunDirectoryError, match="symbolic link"):
        sign_again(run)


@pytest.mark.parametrize("name", ["study.json", "manifest.json", "ledger.jsonl"])
def test_linked_and_odd_files(run: Path, name: str) -> None:
    (run / name).rename(run.parent / "moved")
    (run / name).symlink_to(run.parent / "moved")
    assert name in reasons(verify_run(run))
    (run / name).unlink()
    os.mkfifo(run / name)
    assert name in reasons(verify_run(run))
    (run / name).unlink()
    (run / name).mkdir()
    assert name in reasons(verify_run(run))


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "a/../../secret",
        "a//b",
        "./a",
        "",
        "a\\b",
        "a\nb",
        "private/coordinator.key",
        "arms/x/private/key",
        "manifest.json",
    ],
)
def test_paths_that_a_manifest_cannot_name(run: Path, name: str) -> None:
    fields = parse_json((run / "manifest.json").read_bytes())
    del fields["signature"]
    fields["files"][name] = sha256_hex(b"")
    signature = evidence.KEY.sign(MANIFEST, canonical_json(fields)).hex()
    data = canonical_json(fields | {"signature": signature}) + b"\n"
    (run / "manifest.json").write_bytes(data)
    text = reasons(verify_run(run), "manifest")
    assert repr(name)[1:-1].replace("\\", "") in text.replace("\\", "")


def test_not_a_run(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "missing", "no such directory"),
        (tmp_path, "not a run"),
        (tmp_path / "file", "not a directory"),
    ):
        (tmp_path / "file").write_bytes(b"")
        report = verify_run(path, FINGERPRINT)
        assert words in reasons(report)
        assert not report.pinned
        assert report.fingerprint is None


@pytest.mark.parametrize("content", [b"\0" * 999, b"[" * 99_999, b"{}"])
def test_garbage(run: Path, comparison: Path, content: bytes) -> None:
    for root in (run, comparison):
        for name in names(root):
            kept = (root / name).read_bytes()
            (root / name).write_bytes(content)
            assert name in reasons(verify_run(root, FINGERPRINT))
            # Signed garbage is garbage too; only a report may be anything.
            if not name.endswith(("manifest.json", ".html")):
                sign_again(root)
                assert not verify_run(root).passed, name
            (root / name).write_bytes(kept)
        sign_again(root)
        assert verify_run(root).passed


def test_huge_files(run: Path) -> None:
    with (run / "ledger.jsonl").open("r+b") as file:
        file.truncate((64 << 20) + 1)
    started = time.monotonic()
    assert "ledger.jsonl" in reasons(verify_run(run), "ledger")
    assert time.monotonic() - started < 20


# Keys


def test_signed_again_with_another_key(tmp_path: Path) -> None:
    evidence.write_run(tmp_path / "run", key=evidence.OTHER_KEY)
    report = verify_run(tmp_path / "run", FINGERPRINT)
    assert "not by the trusted" in reasons(report, "coordinator key")
    assert report.pin_label == "UNPINNED"
    report = verify_run(tmp_path / "run")
    assert report.passed
    assert report.pin_label == "UNPINNED"


def test_manifest_alone_signed_again_with_another_key(run: Path) -> None:
    sign_again(run, evidence.OTHER_KEY)
    report = verify_run(run)
    assert "entry 0" in reasons(report, "ledger")
    assert report.pin_label == "UNPINNED"


def test_comparison_with_an_arm_of_another_key(comparison: Path) -> None:
    shutil.rmtree(comparison / "arms" / "fedavg")
    evidence.write_run(
        comparison / "arms" / "fedavg", method="fedavg", key=evidence.OTHER_KEY
    )
    sign_again(comparison)
    text = reasons(verify_run(comparison), "arms")
    assert "arms/fedavg/manifest.json" in text
    report = verify_run(comparison, FINGERPRINT)
    assert [arm.pinned for arm in report.arms] == [False, True]


@pytest.mark.parametrize("trust", ["", "abc", "z" * 64, FINGERPRINT[:-1]])
def test_malformed_trust_never_passes(run: Path, trust: str) -> None:
    assert "64 hexadecimal" in reasons(verify_run(run, trust), "coordinator key")


# The ledger, with a manifest that agrees with it


def rewrite_lines(run: Path, lines: list[bytes]) -> None:
    (run / "ledger.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    sign_again(run)


@pytest.mark.parametrize("number", range(LAST + 1))
def test_dropped_and_swapped_entries(run: Path, number: int) -> None:
    lines = split_lines((run / "ledger.jsonl").read_bytes())
    rewrite_lines(run, lines[:number] + lines[number + 1 :])
    if number < LAST:
        assert f"entry {number}" in reasons(verify_run(run), "ledger")
    else:  # Nothing follows that could name it; the release is missing.
        assert f"entry {LAST - 1}" in reasons(verify_run(run), "order of entries")
    other = (number + 1) % (LAST + 1)
    lines[number], lines[other] = lines[other], lines[number]
    rewrite_lines(run, lines)
    assert f"entry {min(number, other)}" in reasons(verify_run(run), "ledger")


def test_entries_cut_off_the_end(run: Path) -> None:
    lines = split_lines((run / "ledger.jsonl").read_bytes())
    rewrite_lines(run, lines[:-1])
    assert "'release'" in reasons(verify_run(run), "order of entries")


def test_torn_ledger(run: Path) -> None:
    path = run / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    sign_again(run)
    assert f"entry {LAST}" in reasons(verify_run(run), "ledger")


# The tree head and its witnesses


def cut(run: Path, entries: int) -> None:
    """A shorter ledger under a checkpoint that fits, signed by the coordinator."""
    lines = split_lines((run / "ledger.jsonl").read_bytes())
    (run / "ledger.jsonl").write_bytes(b"".join(x + b"\n" for x in lines[:entries]))
    with Ledger(run / "ledger.jsonl", evidence.KEY) as ledger:
        evidence.write_checkpoint(run, ledger)


def change_note(run: Path, change: Callable[[bytes], bytes]) -> None:
    path = run / CHECKPOINT_NAME
    path.write_bytes(change(path.read_bytes()))
    sign_again(run)


def test_the_head_and_its_witnesses_are_shown(run: Path) -> None:
    shown = {check.name: check.reason for check in verify_run(run).checks}
    assert shown["tree head"].startswith(f"{LAST + 1} entries, root ")
    assert shown["witnesses"].startswith("UNPINNED: 3 of 3 sites cosigned, 2 needed")
    assert "2027-01-15T08:00:00+00:00" in shown["witnesses"]
    # Two of three witnesses, one of whom may collude, see two histories.
    assert "do not rule out" in shown["witnesses"]


def test_a_head_of_another_tree(run: Path) -> None:
    whole = (run / CHECKPOINT_NAME).read_bytes()
    with Ledger(run / "ledger.jsonl", evidence.KEY) as ledger:
        lines = ledger.lines()
    cut(run, LAST)  # An older head, rightly signed and cosigned.
    (run / "ledger.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    sign_again(run)
    text = reasons(verify_run(run), "tree head")
    assert text.startswith(f"ledger entry {LAST}: the checkpoint counts")
    assert "not checked" in reasons(verify_run(run), "witnesses")
    # Another root for the same size.
    checkpoint = Checkpoint.parse(parse_note(whole).text)
    other = sign_checkpoint(replace(checkpoint, root=b"\x01" * 32), evidence.KEY)
    change_note(run, lambda _: other.to_bytes())
    text = reasons(verify_run(run), "tree head")
    assert text.startswith(f"ledger entry {LAST}: the tree has another root")
    # Not the log's own signature, or not its name.
    change_note(
        run, lambda _: sign_checkpoint(checkpoint, evidence.OTHER_KEY).to_bytes()
    )
    assert "did not sign" in reasons(verify_run(run), "tree head")
    renamed = sign_checkpoint(replace(checkpoint, origin="secfed-log/x"), evidence.KEY)
    change_note(run, lambda _: renamed.to_bytes())
    assert "another log" in reasons(verify_run(run), "tree head")
    change_note(run, lambda _: b"no note")
    assert "not a signed note" in reasons(verify_run(run), "tree head")


def test_too_few_witnesses(tmp_path: Path) -> None:
    evidence.write_run(tmp_path / "run", witnesses=("north",))
    text = reasons(verify_run(tmp_path / "run"), "witnesses")
    assert text.startswith("1 of 3 sites cosigned, 2 are needed: north")


def test_replayed_and_forged_cosignatures(run: Path) -> None:
    whole = parse_note((run / CHECKPOINT_NAME).read_bytes())
    lines = (run / "ledger.jsonl").read_bytes()
    cut(run, LAST)
    older = parse_note((run / CHECKPOINT_NAME).read_bytes())
    (run / "ledger.jsonl").write_bytes(lines)
    # The cosignatures of an older head, below the new one.
    replayed = replace(whole, signatures=(whole.signatures[0], *older.signatures[1:]))
    change_note(run, lambda _: replayed.to_bytes())
    assert "secfed-site/north: the signature is not valid" in reasons(
        verify_run(run), "tree head"
    )
    # One site's cosignature three times does not make three sites.
    log, north, *_ = whole.signatures
    change_note(run, lambda _: replace(whole, signatures=(log, north)).to_bytes())
    assert "1 of 3" in reasons(verify_run(run), "witnesses")
    thrice = replace(whole, signatures=(log, north, north, north))
    change_note(run, lambda _: thrice.to_bytes())
    assert "two signatures" in reasons(verify_run(run), "tree head")


def pins() -> dict[str, str]:
    keys = evidence.IDENTITIES
    return {site: sha256_hex(key.public_bytes) for site, key in keys.items()}


def test_pinned_witnesses(run: Path) -> None:
    report = verify_run(run, FINGERPRINT, witnesses=pins())
    assert report.passed
    (said,) = [check.reason for check in report.checks if check.name == "witnesses"]
    assert said.startswith("PINNED: 3 of 3")
    wrong = pins() | {"west": "00" * 32}
    assert "west: not a witness" in reasons(
        verify_run(run, witnesses=wrong), "witnesses"
    )
    assert "east: not a witness" in reasons(
        verify_run(run, witnesses={"east": "00" * 32}), "witnesses"
    )
    # A pinned site that did not cosign is missing, however many others did.
    evidence.write_run(run.parent / "two", witnesses=("north", "south"))
    assert "west: not under this tree head" in reasons(
        verify_run(run.parent / "two", witnesses=pins()), "witnesses"
    )


def test_checkpoints_that_were_kept_elsewhere(run: Path) -> None:
    kept = run.parent / "kept"
    lines = (run / "ledger.jsonl").read_bytes()
    note = (run / CHECKPOINT_NAME).read_bytes()
    cut(run, 3)
    kept.write_bytes((run / CHECKPOINT_NAME).read_bytes())
    (run / "ledger.jsonl").write_bytes(lines)
    (run / CHECKPOINT_NAME).write_bytes(note)
    report = verify_run(run, seen=[kept])
    assert report.passed
    assert "checkpoints of 3 entries" in report.checks[-6].reason
    # A longer log that somebody saw: this one was cut.
    forked = run.parent / "fork"
    evidence.write_run(forked, change=lambda i, b: b | {"reason": "x"} if i == 3 else b)
    with Ledger(forked / "ledger.jsonl", evidence.KEY) as ledger:
        before = ledger.entries()
        ledger.append(before[-2].kind, before[-2].body, evidence.TIME)
        kept.write_bytes(ledger.checkpoint().to_bytes())
    text = reasons(verify_run(run, seen=[kept]), "seen before")
    assert text.startswith(f"ledger entry {LAST + 1}: cut off")
    # Another history of the same log: a split view.
    kept.write_bytes((forked / CHECKPOINT_NAME).read_bytes())
    text = reasons(verify_run(run, seen=[kept]), "seen before")
    assert text.startswith(f"ledger entry {LAST}: two histories")
    kept.write_bytes(b"")
    assert "not a signed note" in reasons(verify_run(run, seen=[kept]), "seen before")


def test_a_ledger_of_the_former_format_is_refused_by_name(run: Path) -> None:
    fields = dict.fromkeys(("digest", "kind", "previous", "signature", "time"), "x")
    old = {"body": {}, "index": 0, **fields}
    rewrite_lines(run, [canonical_json(old)])
    text = reasons(verify_run(run), "ledger")
    assert "ledger entry 0: a ledger of format 1" in text
    assert "this version reads format 2" in text


# A coordinator that lies with its own key


def told_differently(
    tmp_path: Path, index: int, **changes: object
) -> VerificationReport:
    def change(number: int, body: evidence.Body) -> evidence.Body:
        return body | changes if number == index else body

    evidence.write_run(tmp_path / "run", change=change)
    return verify_run(tmp_path / "run", FINGERPRINT)


@pytest.mark.parametrize(
    ("index", "changes", "check"),
    [
        (0, {"method": "fedavg"}, "order of entries"),
        (0, {"simulation_seed": "1"}, "order of entries"),
        (0, {"coordinator_key": "00" * 32}, "order of entries"),
        (0, {"study_digest": "00" * 32}, "order of entries"),
        (0, {"model_sha256": None}, "order of entries"),
        (1, {"mode": "semi-honest"}, "plan and steps"),
        (1, {"suite": 1}, "plan and steps"),
        (1, {"threshold": 3}, "order of entries"),
        (2, {"round": 2}, "order of entries"),
        (3, {"round": 1}, "order of entries"),
        (4, {"round": 4}, "order of entries"),
        (5, {"rounds_interrupted": 0}, "order of entries"),
        (2, {"spent": {}, "epsilon": {}}, "plan and steps"),
        (2, {"epsilon": dict.fromkeys(evidence.SITES, 0.1)}, "epsilon"),
        (2, {"adapter_sha256": "00" * 32}, "adapters"),
        (5, {"adapter_sha256": "00" * 32}, "adapters"),
        (5, {"statement_sha256": "00" * 32}, "adapters"),
        (1, {"initial_adapter_sha256": "00" * 32}, "adapters"),
        (4, {"survivors": ["south", "west"], "dropouts": {"north": "x"}}, "metrics"),
    ],
)
def test_stories_that_do_not_hold(
    tmp_path: Path, index: int, changes: dict[str, object], check: str
) -> None:
    report = told_differently(tmp_path, index, **changes)
    text = reasons(report, check)
    if check in {"order of entries", "plan and steps", "epsilon"}:
        blamed = LAST - 1 if changes == {"threshold": 3} else index
        assert f"entry {blamed}" in text


def test_less_noise_than_planned(tmp_path: Path) -> None:
    event = accounting.event_to_json(accounting.sampled_gaussian(0.05, 0.5, 2))
    report = told_differently(tmp_path, 2, spent=dict.fromkeys(evidence.SITES, event))
    assert "entry 2" in reasons(report, "plan and steps")
    assert "entry 2" in reasons(report, "epsilon")


def test_more_epsilon_than_the_study_allows(tmp_path: Path) -> None:
    weak = evidence.make_plan().to_json() | {"noise_multiplier": 0.4}
    event = accounting.event_to_json(accounting.sampled_gaussian(0.05, 0.4, 2))
    known = accounting.event_from_json(event)

    def change(number: int, body: evidence.Body) -> evidence.Body:
        if number == 1:
            return body | {"sites": dict.fromkeys(evidence.SITES, weak)}
        if number in {2, 3, 4}:
            total = accounting.epsilon([known] * (number - 1), evidence.DELTA)
            return body | {
                "spent": dict.fromkeys(evidence.SITES, event),
                "epsilon": dict.fromkeys(evidence.SITES, total),
            }
        return body

    evidence.write_run(tmp_path / "run", change=change)
    report = verify_run(tmp_path / "run")
    assert "exceeds the study's 8" in reasons(report, "epsilon")


def test_plan_with_a_weaker_guarantee_than_the_study(tmp_path: Path) -> None:
    other = evidence.make_plan().to_json() | {"delta": 1e-4}
    report = told_differently(tmp_path, 1, sites=dict.fromkeys(evidence.SITES, other))
    assert "delta is not the study's" in reasons(report, "plan and steps")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("sites", "north", "epsilon"), 0.5),
        (("sites", "west", "attack_rates", "advantage"), 0.0),
        (("sites", "south", "rounds", "spent"), 2),
        (("across_sites", "epsilon"), 0.5),
        (("guarantee", "unit"), "person"),
        (("execution", "verdict"), "NOT PRIVATE"),
        (("private",), False),
        (("headline",), "NOT PRIVATE: a joke"),
    ],
)
def test_statement_that_does_not_follow(
    tmp_path: Path, path: tuple[str, ...], value: object
) -> None:
    def change(_: int, said: evidence.Body) -> evidence.Body:
        inner = said
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return said

    evidence.write_run(tmp_path / "run", statement=change)
    text = reasons(verify_run(tmp_path / "run", FINGERPRINT), "statement")
    assert path[0] in text


def test_study_of_another_run(run: Path) -> None:
    other = evidence.make_study(method="fedavg")
    (run / "study.json").write_bytes(canonical_json(other.canonical()))
    sign_again(run)
    assert "study.json" in reasons(verify_run(run), "study")


def test_metrics_of_other_rounds(run: Path) -> None:
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (lines[:-1], [*lines, lines[-1]], [*lines[:2], lines[3]]):
        path.write_bytes(b"".join(changed))
        sign_again(run)
        assert "metrics.jsonl" in reasons(verify_run(run), "metrics")


# Comparisons


def test_comparison_that_embellishes_an_arm(comparison: Path) -> None:
    path = comparison / "comparison.json"
    value = parse_json(path.read_bytes())
    value["arms"][1]["rounds"][-1]["accuracy"] = 0.99
    path.write_bytes(canonical_json(value))
    sign_again(comparison)
    text = reasons(verify_run(comparison), "arms")
    assert "'fedavg'" in text
    assert "accuracy" in text


def test_comparison_that_hides_an_arm(comparison: Path) -> None:
    path = comparison / "comparison.json"
    value = parse_json(path.read_bytes())
    del value["arms"][0]
    path.write_bytes(canonical_json(value))
    sign_again(comparison)
    assert "arms/ffa-lora" in reasons(verify_run(comparison), "comparison")


def test_arm_with_a_broken_ledger_fails_the_comparison(comparison: Path) -> None:
    path = comparison / "arms" / "fedavg" / "ledger.jsonl"
    lines = split_lines(path.read_bytes())
    lines[2] = lines[2][:200] + b"A" + lines[2][201:]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    sign_again(comparison / "arms" / "fedavg")
    sign_again(comparison)
    report = verify_run(comparison, FINGERPRINT)
    assert [arm.passed for arm in report.arms] == [False, True]
    assert "entry 2" in reasons(report, "ledger")


# The manifest's own functions


def test_manifest_appears_whole(run: Path) -> None:
    sign_again(run)
    assert not (run / "private").exists()
    with pytest.raises(VerificationError, match="newline"):
        read_manifest((run / "manifest.json").read_bytes()[:-1])


def test_names_that_cannot_be_signed_are_refused(run: Path) -> None:
    (run / "a\nb").write_bytes(b"")
    with pytest.raises(RunDirectoryError):
        sign_again(run)
    assert not verify_run(run).passed
