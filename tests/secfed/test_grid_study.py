"""The keys of a grid: what cells a study names, and what is refused with its key."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from grids import grid_study, grid_values

from secfed.canonical import canonical_json, parse_json
from secfed.errors import StudyError
from secfed.study import load_study, load_study_dict
from secfed.study.grid import grid_cells, is_grid

EXAMPLES = Path(__file__).parents[2] / "examples"
SITES = ["north", "south", "west"]
DIRICHLET = {"kind": "dirichlet", "sites": SITES, "alpha": 1.0}


def dirichlet_values(**compare: object) -> dict[str, Any]:
    values = grid_values(**compare)
    values["data"] |= {"partition": dict(DIRICHLET)}
    del values["data"]["site_column"]
    return values


def test_every_combination_is_a_cell_and_differs_in_nothing_else() -> None:
    values = dirichlet_values(epsilons=[8, "inf"], alphas=[0, 0.3], ranks=[2, 4])
    study = load_study_dict(values, "grid")
    cells = grid_cells(study)
    assert [cell.name for cell in cells] == [
        f"eps{e}-alpha{a}-r{r}"
        for e in ("8", "inf")
        for a in ("0", "0.3")
        for r in "24"
    ]
    assert len({cell.study.digest() for cell in cells}) == 8
    table = study.canonical()
    for cell in cells:
        own = cell.study.canonical()
        for key in ("study", "model", "training", "secagg"):
            assert own.get(key) == table.get(key)
        assert own["privacy"] == {**table["privacy"], "epsilon": cell.epsilon or 8.0}
        assert own["data"]["partition"] == {**DIRICHLET, "alpha": cell.alpha}
        scale = own["adapter"].pop("lora_alpha") / own["adapter"].pop("r")
        assert scale == 2.0  # 4.0 / 2 in the study
        assert not is_grid(cell.study)
        without = cell.study.compare.without_privacy if cell.study.compare else None
        assert without is (None if cell.epsilon else True)


def test_an_axis_that_is_not_named_keeps_the_studys_value() -> None:
    (cell,) = grid_cells(grid_study(epsilons=[3.0]))
    assert (cell.name, cell.epsilon, cell.alpha, cell.rank) == ("eps3", 3.0, None, 2)
    (cell,) = grid_cells(grid_study(ranks=[4]))
    assert (cell.name, cell.epsilon, cell.rank) == ("r4", 8.0, 4)


def test_names_of_cells_never_coincide() -> None:
    close = [8.0, math.nextafter(8.0, 9.0), 1e-7, 1.00000001e-7]
    names = [cell.name for cell in grid_cells(grid_study(epsilons=close))]
    assert len(set(names)) == len(close)


def test_a_study_without_the_new_keys_is_as_before() -> None:
    study = load_study(EXAMPLES / "icd10_hospitals" / "study.toml")
    # What is not written has no place in the canonical form, so no digest moves.
    assert set(study.canonical()["compare"]) == {"methods", "baselines", "seeds"}
    assert "shares" not in study.canonical()["data"]["partition"]
    assert not is_grid(study)
    assert grid_cells(study) == ()


def test_a_stored_grid_reads_back_to_the_same_cells() -> None:
    study = grid_study(epsilons=[8.0, "inf"], ranks=[2, 4])
    stored = parse_json(canonical_json(study.canonical()))
    again = load_study_dict(stored, "study.json")
    assert again.digest() == study.digest()
    assert grid_cells(again) == grid_cells(study)


@pytest.mark.parametrize(
    ("compare", "key", "words"),
    [
        ({"epsilons": [0]}, "compare.epsilons[1]", "positive number"),
        ({"epsilons": [8, -1]}, "compare.epsilons[2]", "positive number"),
        ({"epsilons": [math.inf]}, "compare.epsilons[1]", '"inf"'),
        ({"epsilons": [math.nan]}, "compare.epsilons[1]", '"inf"'),
        ({"epsilons": ["infinity"]}, "compare.epsilons[1]", "'infinity'"),
        ({"epsilons": [True]}, "compare.epsilons[1]", "True"),
        ({"epsilons": [[8]]}, "compare.epsilons[1]", "[8]"),
        ({"epsilons": 8.0}, "compare.epsilons", "list"),
        ({"epsilons": []}, "compare.epsilons", "name at least one"),
        ({"epsilons": [8, 8.0]}, "compare.epsilons", "listed twice"),
        ({"epsilons": [8], "without_privacy": True}, "compare.without_privacy", "inf"),
        ({"without_privacy": False}, "compare.without_privacy", "True"),
        ({"alphas": [-0.1]}, "compare.alphas[1]", "greater than or equal to 0"),
        ({"alphas": [math.nan]}, "compare.alphas[1]", "finite"),
        ({"alphas": ["0.1"]}, "compare.alphas[1]", "number"),
        ({"alphas": []}, "compare.alphas", "name at least one"),
        ({"alphas": [1.0]}, "compare.alphas", "kind = 'dirichlet'"),
        ({"ranks": [0]}, "compare.ranks[1]", "greater than or equal to 1"),
        ({"ranks": [4, 4]}, "compare.ranks", "listed twice"),
        ({"ranks": [2.5]}, "compare.ranks[1]", "integer"),
        ({"ranks": [4096]}, "compare.ranks[1]", "1024"),
        ({"epsilon": [8]}, "compare.epsilon", "did you mean 'epsilons'?"),
        ({"seeds": [0, 0]}, "compare.seeds", "listed twice"),
    ],
)
def test_garbage_is_refused_with_the_file_and_the_key(
    compare: dict[str, object], key: str, words: str
) -> None:
    with pytest.raises(StudyError) as caught:
        load_study_dict(grid_values(**compare), "my.toml")
    assert caught.value.key == key
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"my.toml: {key}: ")


def test_ranks_of_sites_and_ranks_of_a_grid_contradict_each_other() -> None:
    values = grid_values(ranks=[2, 4])
    values["adapter"]["ranks"] = {"north": 1}
    with pytest.raises(StudyError) as caught:
        load_study_dict(values, "my.toml")
    assert caught.value.key == "compare.ranks"


@pytest.mark.parametrize(
    ("partition", "key"),
    [
        ({"kind": "size"}, "data.partition.shares"),
        ({"kind": "iid", "shares": {"north": 1.0}}, "data.partition.shares"),
        ({"kind": "size", "shares": {"nord": 1.0}}, "data.partition.shares.nord"),
        ({"kind": "size", "shares": {"north": 1.0}}, "data.partition.shares.south"),
        ({"kind": "size", "shares": {"north": 0.0}}, "data.partition.shares.north"),
        ({"kind": "iid", "alpha": 1.0}, "data.partition.alpha"),
        ({"kind": "dirichlet"}, "data.partition.alpha"),
        ({"kind": "dirichlet", "alpha": -1.0}, "data.partition.alpha"),
        ({"kind": "idd"}, "data.partition.kind"),
    ],
)
def test_a_partition_that_cannot_be_is_refused(
    partition: dict[str, object], key: str
) -> None:
    values = dirichlet_values()
    values["data"]["partition"] = {"sites": SITES, **partition}
    with pytest.raises(StudyError) as caught:
        load_study_dict(values, "my.toml")
    assert caught.value.key == key


def test_the_shipped_grid_is_a_grid() -> None:
    path = EXAMPLES / "compare_rules" / "study.toml"
    values = tomllib.loads(path.read_text("utf-8"))
    study = load_study(path)
    assert is_grid(study)
    assert study.data.is_builtin
    expected = len(values["compare"]["epsilons"]) * len(
        values["compare"].get("alphas", [0])
    )
    assert len(grid_cells(study)) == expected
