"""Change anything in a grid, also with its key at hand: verification says what."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evidence
import pytest
from grids import grid_study, write_grid

from secfed.canonical import canonical_json, parse_json
from secfed.manifest import list_files, read_manifest, write_manifest
from secfed.verify import VerificationReport, verify_run

FINGERPRINT = evidence.KEY.fingerprint()
CELL = Path("cells", "eps8-r2")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "run"
    write_grid(path, grid_study(epsilons=[8.0, "inf"], ranks=[2, 4]))
    return path


@pytest.fixture
def grid(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "grid"))


def failed(report: VerificationReport, check: str) -> str:
    assert not report.passed
    found = [entry.reason for entry in report.failures() if entry.name == check]
    assert found, [(entry.name, entry.reason) for entry in report.failures()]
    return "\n".join(found)


def change(path: Path, edit: Callable[[Any], None]) -> None:
    value = parse_json(path.read_bytes())
    edit(value)
    path.write_bytes(canonical_json(value) + b"\n")


def sign(folder: Path) -> None:
    """Make a manifest agree with whatever its directory now holds."""
    old = read_manifest((folder / "manifest.json").read_bytes())
    write_manifest(folder, old.study_digest, evidence.KEY)


def test_healthy_grid(grid: Path) -> None:
    report = verify_run(grid, FINGERPRINT)
    assert report.failures() == ()
    assert (report.kind, report.pinned) == ("grid", True)
    assert [cell.kind for cell in report.arms] == ["comparison"] * 4
    assert [len(cell.arms) for cell in report.arms] == [4, 4, 3, 3]
    assert all(arm.pinned for cell in report.arms for arm in cell.arms)


def test_private_files_are_not_named(grid: Path) -> None:
    for folder in (grid, grid / CELL, grid / CELL / "arms" / "fedavg"):
        (folder / "private").mkdir(exist_ok=True)
        (folder / "private" / "partition.json").write_bytes(b"{}")
    assert verify_run(grid).passed
    sign(grid)
    assert not [name for name in list_files(grid) if "/private/" in name]
    # Anywhere else the same name is a file like others.
    (grid / CELL / "arms" / "fedavg" / "adapter" / "private").mkdir()
    (grid / CELL / "arms" / "fedavg" / "adapter" / "private" / "x").write_bytes(b"")
    assert "adapter/private/x" in failed(verify_run(grid), "no other files")


def test_one_byte_of_any_file(grid: Path) -> None:
    names = [*list_files(grid), "manifest.json"]
    for name in names[:: max(1, len(names) // 40)]:
        path = grid / name
        content = path.read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 0x80
        path.write_bytes(changed)
        report = verify_run(grid)
        assert not report.passed, name
        assert name in " ".join(entry.reason for entry in report.failures()), name
        path.write_bytes(content)
    assert verify_run(grid).passed


def test_tampering_with_a_cell_is_caught_although_both_manifests_are_signed_again(
    grid: Path,
) -> None:
    def better(value: Any) -> None:
        value["arms"][0]["rounds"][1]["accuracy"] = 0.99

    change(grid / CELL / "comparison.json", better)
    sign(grid / CELL)
    sign(grid)
    report = verify_run(grid, FINGERPRINT)
    assert "comparison.json" in failed(report, "cells")
    assert "metrics.jsonl" in failed(report, "arms")


def test_a_cell_of_another_study_is_caught(grid: Path) -> None:
    shutil.rmtree(grid / CELL)
    shutil.copytree(grid / "cells" / "eps8-r4", grid / CELL)
    sign(grid)
    assert "eps8-r2: of another study" in failed(verify_run(grid), "cells")


def test_missing_and_additional_cells_are_caught(grid: Path) -> None:
    shutil.copytree(grid / CELL, grid / "cells" / "eps9-r2")
    sign(grid)
    assert "eps9-r2" in failed(verify_run(grid), "grid")
    shutil.rmtree(grid / "cells" / "eps9-r2")
    shutil.rmtree(grid / CELL)
    sign(grid)
    assert "eps8-r2" in failed(verify_run(grid), "grid")


def test_a_cell_without_arms_is_not_a_cell(grid: Path) -> None:
    shutil.rmtree(grid / CELL)
    (grid / CELL).mkdir()
    assert "has no arms" in failed(verify_run(grid), "arms")
    (grid / CELL).rmdir()
    (grid / CELL).write_bytes(b"")
    assert "not a directory" in failed(verify_run(grid), "directory")


@pytest.mark.parametrize("epsilon", [1.0, None, "8"])
def test_the_cost_of_all_cells_follows_from_their_ledgers(
    grid: Path, epsilon: object
) -> None:
    change(grid / "grid.json", lambda value: value.update(composed_epsilon=epsilon))
    sign(grid)
    assert "does not follow" in failed(verify_run(grid), "composed")


@pytest.mark.parametrize(
    ("key", "value"),
    [("epsilon", 7.0), ("rank", 3), ("status", "failed"), ("run", "cells/eps8-r4")],
)
def test_a_cell_is_listed_as_the_study_has_it(
    grid: Path, key: str, value: object
) -> None:
    change(grid / "grid.json", lambda found: found["cells"][0].update({key: value}))
    sign(grid)
    assert "'eps8-r2'" in failed(verify_run(grid), "grid")


def test_an_arm_with_other_steps_is_not_a_fair_comparison(tmp_path: Path) -> None:
    # Signed by the right key, whole and consistent: only the setting is another.
    study = grid_study(epsilons=[8.0])
    write_grid(tmp_path / "grid", study)
    arm = tmp_path / "grid" / "cells" / "eps8" / "arms" / "fedavg"
    change(arm / "study.json", lambda v: v["training"].update(learning_rate={"x": 1}))
    sign(tmp_path / "grid")
    text = failed(verify_run(tmp_path / "grid"), "cells")
    assert "fedavg/study.json: training.learning_rate" in text


def test_a_grid_that_did_not_end_does_not_verify(tmp_path: Path) -> None:
    study = grid_study(epsilons=[8.0], ranks=[2, 4])
    write_grid(tmp_path / "grid", study, failed={"eps8-r4": "out of memory"})
    assert "manifest.json is missing" in failed(
        verify_run(tmp_path / "grid"), "manifest"
    )
