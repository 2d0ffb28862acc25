"""The study file: what is accepted, and how everything else is explained."""

from __future__ import annotations

import copy
import itertools
import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from secfed import canonical
from secfed.errors import StudyError
from secfed.study import Study, load_study, load_study_dict

EXAMPLE = Path(__file__).parents[2] / "examples" / "icd10_hospitals"
REMOVED = object()


def example() -> dict:
    return tomllib.loads((EXAMPLE / "study.toml").read_text(encoding="utf-8"))


def changed(*changes: tuple[str, object]) -> dict:
    """The example's tables with dotted keys set, or taken out by REMOVED."""
    values = copy.deepcopy(example())
    for dotted, value in changes:
        table, *path = values, *dotted.split(".")
        for part in path[:-1]:
            table = table.setdefault(part, {})
        if value is REMOVED:
            del table[path[-1]]
        else:
            table[path[-1]] = value
    return values


def refused(*changes: tuple[str, object]) -> StudyError:
    with pytest.raises(StudyError) as caught:
        load_study_dict(changed(*changes), "study.toml")
    return caught.value


OWN_DATA = (
    ("data.source", "notes.csv"),
    ("data.text_column", "text"),
    ("data.label_column", "label"),
    ("data.labels", ["a", "b"]),
    (
        "data.partition",
        {"kind": "natural", "sites": ["x", "y", "z"]},
    ),
    ("data.site_column", "site"),
    ("privacy.nominal_units", {"x": 100, "y": 100, "z": 100}),
    ("simulation", REMOVED),
)


def test_example_is_read_with_its_defaults():
    study = load_study(EXAMPLE / "study.toml")
    assert study.name == "icd10-hospitals"
    assert len(study.sites) == 4
    assert study.training.method == "ffa-lora"
    assert study.privacy.epsilon == 8.0
    assert study.simulation.seed is None
    assert [(d.round, d.phase) for d in study.simulation.dropouts] == [
        (2, "shares"),
        (4, "masked-input"),
    ]


def test_every_line_of_the_example_is_explained():
    lines = (EXAMPLE / "study.toml").read_text(encoding="utf-8").splitlines()
    in_own_words = {"fedavg", "ffb-lora", "rolora", "subfolder", "lora_alpha"}
    in_own_words |= {"steps_per_round", "target_modules"}  # explained one line above
    in_own_words |= {"harbour-maternity", "hillside-oncology", "city-trauma"}
    in_own_words |= {"site", "phase"}
    for above, line in itertools.pairwise(lines):
        key = re.match(r"([a-z0-9_-]+) = ", line)
        if key and key[1] not in in_own_words:
            assert above.startswith(("#", "[")), line


def test_class_weights_are_public_positive_and_of_known_labels():
    plain = load_study_dict(example(), "study.toml")
    assert plain.class_weights(("a", "b")) is None
    weighted = changed(("training.class_weights", {"b": 2.5}))
    study = load_study_dict(weighted, "study.toml")
    assert study.class_weights(("a", "b")) == (1.0, 2.5)
    assert study.digest() != plain.digest()
    # Built-in text knows its labels only when it is read.
    with pytest.raises(StudyError, match="did you mean 'bb'") as caught:
        study.class_weights(("a", "bb"))
    assert caught.value.key == "training.class_weights"
    assert refused(("training.class_weights", {"b": 0.0})).key.startswith("training")


def test_studies_are_frozen():
    study = load_study(EXAMPLE / "study.toml")
    with pytest.raises(ValidationError):
        study.privacy.epsilon = 100.0  # type: ignore[misc]


def test_canonical_form_reads_back_to_the_same_study_and_digest():
    study = load_study(EXAMPLE / "study.toml")
    stored = json.loads(canonical.canonical_json(study.canonical()))
    again = load_study_dict(stored, "study.json")
    assert again == study
    assert again.digest() == study.digest() == canonical.digest(stored)


def test_digest_does_not_depend_on_key_order_or_written_defaults():
    values = example()
    reordered = dict(reversed(values.items()))
    explicit = changed(("secagg", REMOVED))
    digest = load_study_dict(values, "a").digest()
    assert load_study_dict(reordered, "b").digest() == digest
    assert load_study_dict(explicit, "c").digest() == digest


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privacy.epsilon", 7.99),
        ("model.max_length", 33),
        ("data.partition.home_share", 0.71),
        ("secagg.colluders", 2),
        ("simulation.seed", 1),
    ],
)
def test_every_change_moves_the_digest(key, value):
    before = load_study_dict(example(), "a").digest()
    assert load_study_dict(changed((key, value)), "b").digest() != before


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("privacy.epsilom", "did you mean 'epsilon'?"),
        ("Trainning", "did you mean 'training'?"),
        ("data.partition.site", "did you mean 'sites'?"),
        ("data.holdout.max_record", "did you mean 'max_records'?"),
        ("compare.seed", "did you mean 'seeds'?"),
        ("secagg.zzzzzzz", "known: threshold, colluders"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest(key, hint):
    error = refused((key, 1))
    assert error.key == key
    assert "unknown key" in str(error)
    assert hint in str(error)
    assert str(error).startswith(f"study.toml: {key}: ")


def test_a_misspelt_key_is_named_before_the_one_it_leaves_missing():
    error = refused(("privacy.epsilon", REMOVED), ("privacy.epsilo", 8.0))
    assert error.key == "privacy.epsilo"
    assert "privacy.epsilon: this key is required" in str(error)


def test_unknown_key_in_a_list_of_tables_names_its_place():
    dropout = {"round": 1, "site": "city-trauma", "phase": "shares", "phas": 1}
    error = refused(("simulation.dropouts", [dropout]))
    assert error.key == "simulation.dropouts[1].phas"
    assert "did you mean 'phase'?" in str(error)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privacy.epsilon", 0),
        ("privacy.epsilon", -1.0),
        ("privacy.epsilon", float("nan")),
        ("privacy.epsilon", float("inf")),
        ("privacy.epsilon", "8"),
        ("privacy.epsilon", True),
        ("privacy.delta", 0.0),
        ("privacy.delta", 1.0),
        ("privacy.delta", -1e-5),
        ("privacy.clip_norm", 0),
        ("privacy.clip_rule", "adaptive"),
        ("privacy.unit", "patient"),
        ("privacy.max_records_per_unit", 2),
        ("privacy.max_records_per_unit", 0),
        ("format", 2),
        ("format", "1"),
        ("training.rounds", 0),
        ("training.rounds", 2.5),
        ("training.momentum", 1.0),
        ("training.head_learning_rate", 0.0),
        ("adapter.r", 0),
        ("adapter.target_modules", []),
        ("adapter.target_modules", "query"),
        ("model.sha256", "53AA"),
        ("model.pooling", "cls"),
        ("model.package", "../evil"),
        ("model.subfolder", "../../etc"),
        ("secagg.ring_bits", 24),
        ("secagg.rotation", "none"),
        ("data.holdout.fraction", 1.0),
        ("data.partition.home_share", 1.1),
        ("study.name", "../up"),
        ("study.name", ""),
        ("data.seed", -1),
        ("data", 3),
        ("compare.seeds", [0, 0]),
        ("compare.seeds", []),
        ("compare.baselines", ["majority"]),
    ],
)
def test_a_bad_value_is_refused_under_its_key(key, value):
    assert refused((key, value)).key.startswith(key)


def test_a_missing_key_is_named():
    error = refused(("privacy.delta", REMOVED))
    assert (error.key, error.exit_code) == ("privacy.delta", 2)
    assert "required" in str(error)


def test_epsilon_error_says_what_would_be_right():
    assert "greater than 0" in str(refused(("privacy.epsilon", 0)))


@pytest.mark.parametrize(
    ("key", "value", "found", "words"),
    [
        ("training.method", "ffa-lara", "training.method", "mean 'ffa-lora'?"),
        ("training.method", "flora", "training.method", "every site's own A and B"),
        ("compare.methods", ["fedavgg"], "compare.methods[1]", "mean 'fedavg'?"),
        ("compare.methods", ["fedavg", "fedavg"], "compare.methods", "listed twice"),
        (
            "training.learning_rate",
            {"fedavg": 0.1},
            "training.learning_rate.ffa-lora",
            "unfair",
        ),
        (
            "training.learning_rate",
            {"ffa-lora": 0.1},
            "training.learning_rate.fedavg",
            "unfair",
        ),
    ],
)
def test_methods(key, value, found, words):
    error = refused((key, value))
    assert error.key == found
    assert words in str(error)


SITES = ["north-general", "harbour-maternity", "hillside-oncology", "city-trauma"]


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ([("data.partition.sites", SITES[:1] * 2 + SITES)], "data.partition", "twice"),
        (
            [("data.partition.sites", [*SITES, "City-Trauma"])],
            "data.partition.sites",
            "twice",
        ),
        (
            [("data.partition.sites", ["a/b", "c", "d"])],
            "data.partition.sites[1]",
            "a/b",
        ),
        ([("secagg.threshold", 5)], "secagg.threshold", "fewer than the threshold 5"),
        ([("secagg.threshold", 2)], "secagg.threshold", "at least 3"),
        ([("secagg.colluders", 3)], "data.partition.sites", "at least 5"),
        ([("data.partition.alpha", 0.5)], "data.partition.alpha", "dirichlet"),
        (
            [("data.partition.home.city-trauma", REMOVED), ("data.partition.home.city-truma", ["Neoplasms"])],
            "data.partition.home.city-truma",
            "mean 'city-trauma'?",
        ),
        (
            [("data.partition.home.city-trauma", ["Neoplasms"])],
            "data.partition.home",
            "listed twice",
        ),
        (
            [("simulation.dropouts", [{"round": 1, "site": "x", "phase": "shares"}])],
            "simulation.dropouts[1].site",
            "unknown site",
        ),
        (
            [
                (
                    "simulation.dropouts",
                    [{"round": 6, "site": "city-trauma", "phase": "shares"}],
                )
            ],
            "simulation.dropouts[1].round",
            "5 rounds",
        ),
    ],
)  # fmt: skip
def test_cohort(changes, key, words):
    error = refused(*changes)
    assert error.key.startswith(key)
    assert words in str(error)


def test_two_sites_are_too_few():
    error = refused(
        ("data.partition", {"kind": "dirichlet", "sites": ["a", "b"], "alpha": 1.0}),
        ("simulation", REMOVED),
        ("secagg", {"colluders": 0}),
    )
    assert error.key == "data.partition.sites"


@given(
    num_sites=st.integers(3, 30),
    colluders=st.integers(0, 6),
    threshold=st.integers(1, 31),
)
@settings(max_examples=60, deadline=None)
def test_accepted_thresholds_are_the_protocols(num_sites, colluders, threshold):
    sites = [f"s{index}" for index in range(num_sites)]
    values = changed(
        ("data.partition", {"kind": "dirichlet", "sites": sites, "alpha": 1.0}),
        ("simulation", REMOVED),
        ("secagg", {"threshold": threshold, "colluders": colluders}),
    )
    sound = (
        2 * threshold > num_sites + colluders
        and threshold <= num_sites
        and threshold >= max(3, colluders + 2)
    )
    if sound:
        assert load_study_dict(values, "x").secagg.threshold == threshold
    else:
        with pytest.raises(StudyError):
            load_study_dict(values, "x")


def test_own_data_is_accepted():
    study = load_study_dict(changed(*OWN_DATA), "x")
    assert not study.data.is_builtin
    assert study.sites == ("x", "y", "z")


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (("data.labels", REMOVED), "data.labels", "required"),
        (("data.labels", ["a"]), "data.labels", "at least 2"),
        (("data.labels", ["a", "a"]), "data.labels", "twice"),
        (("data.text_column", REMOVED), "data.text_column", "required"),
        (("data.site_column", REMOVED), "data.site_column", "natural"),
        (("data.source", "notes.txt"), "data.source", ".parquet"),
        (("privacy.unit", "person"), "data.unit_column", "required"),
        (("privacy.clip_rule", "normalised"), "privacy.clip_gamma", "is needed"),
        (("training.class_weights", {"c": 2.0}), "training.class_weights", "no label"),
        (("privacy.clip_gamma", 0.01), "privacy.clip_gamma", "belongs to clip_rule"),
        (("data.unit_column", "patient"), "data.unit_column", "record"),
        (("privacy.nominal_units", REMOVED), "privacy.nominal_units", "declare"),
        (("privacy.nominal_units.z", REMOVED), "privacy.nominal_units.z", "missing"),
        (("privacy.nominal_units.w", 100), "privacy.nominal_units.w", "not one"),
        (("privacy.nominal_units.z", 9), "privacy.nominal_units.z", "10"),
        (
            ("data.partition", {"kind": "home", "sites": ["x", "y", "z"], "home_share": 0.5, "home": {"x": ["aa"]}}),
            "data.partition.home",
            "mean 'a'?",
        ),
    ],
)  # fmt: skip
def test_own_data_needs_declarations(change, key, words):
    error = refused(*OWN_DATA, change)
    assert error.key.startswith(key)
    assert words in str(error)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("data.source", "builtin:icd9"), "data.source"),
        (("data.text_column", "text"), "data.text_column"),
        (("data.labels", ["a", "b"]), "data.labels"),
        (("privacy.unit", "person"), "privacy.unit"),
        (("model.path", "/models/x"), "model"),
    ],
)
def test_built_in_text_needs_no_declarations(change, key):
    assert refused(change).key == key


def test_missing_file(tmp_path):
    with pytest.raises(StudyError, match="No such file"):
        load_study(tmp_path / "none.toml")
    with pytest.raises(StudyError, match="directory"):
        load_study(tmp_path)


def test_not_utf8_names_the_line(tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(b'format = 1\n[study]\nname = "\xff"\n')
    with pytest.raises(StudyError, match=r"line 3 is not UTF-8 \(byte offset 27\)"):
        load_study(path)


def test_not_toml_names_the_line(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("format = 1\n[study\n", encoding="utf-8")
    with pytest.raises(StudyError, match="line 2") as caught:
        load_study(path)
    assert caught.value.path == str(path)


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_bytes_give_a_study_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "study.toml"
    path.write_bytes(content)
    with pytest.raises(StudyError):
        load_study(path)


def test_with_method():
    study = load_study(EXAMPLE / "study.toml")
    for name in (*study.training.learning_rate, "head-only"):
        other = study.with_method(name)
        assert other.training.method == name
        assert other.data == study.data
    assert study.with_method("ffa-lora") == study
    with pytest.raises(StudyError, match="did you mean 'rolora'"):
        study.with_method("rolara")
    with pytest.raises(StudyError, match="cannot be masked"):
        study.with_method("flora")


def test_with_method_needs_its_own_learning_rate():
    rates = {"ffa-lora": 0.1, "fedavg": 0.1}
    study = load_study_dict(changed(("training.learning_rate", rates)), "x")
    assert study.with_method("head-only").training.method == "head-only"
    with pytest.raises(StudyError, match=r"learning_rate\.rolora"):
        study.with_method("rolora")


def test_with_seed_pairs_runs_on_the_same_records():
    study = load_study_dict(
        changed(("adapter.seed", 5), ("simulation.seed", 7)), "study.toml"
    )
    assert study.with_seed(0) == study
    moved = study.with_seed(2)
    assert (moved.adapter.seed, moved.simulation.seed) == (7, 9)
    assert moved.data == study.data
    unseeded = load_study(EXAMPLE / "study.toml").with_seed(3)
    assert isinstance(unseeded, Study)
    assert unseeded.simulation.seed is None
