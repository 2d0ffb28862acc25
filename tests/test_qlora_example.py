"""The shipped study over bases in few bits is valid, and its table adds up."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from secfed.policy import check, load_policy
from secfed.study import load_study

FOLDER = Path(__file__).parents[1] / "examples" / "qlora"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("qlora_table", FOLDER / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_base_is_a_study_of_its_own_that_the_site_allows(
    script: ModuleType,
) -> None:
    study, policy = load_study(FOLDER / "study.toml"), load_policy(FOLDER / "site.toml")
    found = {base: script.with_base(study, base) for base in script.BASES}
    assert len({own.digest() for own in found.values()}) == len(script.BASES)
    assert found["fp32"].digest() == study.digest()
    for base, own in found.items():
        check(policy, own, 850)
        assert (own.model.quantisation or "none") == script.BASES[base][1]
        same = own.model_copy(update={"model": study.model})
        assert same.digest() == study.digest()


def cell(base: str, place: str, seed: int, after: float) -> dict[str, Any]:
    return {
        "base": base,
        "place": place,
        "seed": seed,
        "loss_before": 2.0,
        "loss_after": after,
        "score_before": 0.1,
        "score_after": 0.5,
        "frozen_mib": 5.25,
        "peak_mib": 600.0 + seed,
    }


def test_the_table_shows_the_fall_of_the_loss_and_its_spread(
    script: ModuleType,
) -> None:
    cells = [cell("nf4", "federated", 0, 1.5), cell("nf4", "federated", 1, 1.3)]
    lines = list(script.table([*cells, cell("fp32", "central", 0, 1.0)]))
    assert len(lines) == 4
    assert "| 2 | 2.000 ± 0.000 | 0.600 ± 0.100 |" in lines[2]
    assert lines[2].endswith("| 601 MiB | 5.2 MiB |")
    assert lines[3].startswith("| fp32 | central | 1 | 2.000 | 1.000 |")


def test_a_kept_cell_is_not_run_again(script: ModuleType, tmp_path: Path) -> None:
    import argparse  # noqa: PLC0415
    import json  # noqa: PLC0415

    kept = cell("nf4", "central", 3, 1.0)
    (tmp_path / "nf4-central-s3.json").write_text(json.dumps(kept))
    options = argparse.Namespace(out=tmp_path, study=tmp_path / "no-such-study.toml")
    assert script._cell(options, "nf4", "central", 3) == kept
