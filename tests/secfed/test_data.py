"""Sites and the public test set: where every record goes, and what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfed.data import fingerprint, load_sites
from secfed.data import icd10cm as icd10cm_module
from secfed.data.icd10cm import load_icd10cm
from secfed.data.partition import at_most, cap_units, split_holdout
from secfed.data.records import RecordTable, stable_uniforms
from secfed.errors import DataError
from secfed.study import load_study, load_study_dict
from secfed.types import LabelledTexts, SiteData

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "icd10_hospitals"
SHARED = ROOT.parent / "shared" / "data"
WORDING = "patient Quillfeather has gout"

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="../shared/data is not on this machine"
)


@pytest.fixture(scope="module")
def example():
    return load_study(EXAMPLE / "study.toml")


@pytest.fixture(scope="module")
def example_data(example):
    return load_sites(example, EXAMPLE)


def own_study(source: str, *, sites=("x", "y", "z"), labels=("a", "b"), **data):
    """A study on a file with natural sites, unless ``data`` says otherwise."""
    values = load_study(EXAMPLE / "study.toml").canonical()
    privacy = data.pop("privacy", {})
    partition = data.pop("partition", {"kind": "natural"})
    natural = partition["kind"] == "natural"
    values["simulation"] = {}
    values["data"] = {
        "source": source,
        "text_column": "text",
        "label_column": "label",
        "labels": list(labels),
        **({"site_column": "site"} if natural else {}),
        "partition": {"sites": list(sites), **partition},
        "holdout": {"fraction": 0.3},
        **data,
    }
    values["privacy"] |= {"nominal_units": dict.fromkeys(sites, 100), **privacy}
    return load_study_dict(values, "study.toml")


def rows(num: int = 120, **columns) -> list[dict]:
    """Healthy rows; a column given as a function of the row number replaces one."""
    healthy = {
        "text": lambda n: f"finding number {n}",
        "label": lambda n: "ab"[n % 2],
        "site": lambda n: "xyz"[n % 3],
        "patient": lambda n: f"p{n // 2}",
    }
    return [{name: make(n) for name, make in (healthy | columns).items()} for n in range(num)]  # fmt: skip


def write(path: Path, records: list[dict]) -> Path:
    if path.suffix == ".csv":
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
        path.write_text(out.getvalue(), encoding="utf-8", newline="")
    elif path.suffix == ".jsonl":
        lines = "".join(json.dumps(record) + "\n" for record in records)
        path.write_text(lines, encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    return path


def everything(data) -> list[str]:
    texts = [text for site in data.sites.values() for text in site.records.texts]
    return sorted([*texts, *data.holdout.texts])


@pytest.fixture(autouse=True)
def _no_record_in_the_log(caplog):
    yield
    assert "Quillfeather" not in caplog.text


def refused(study, base_dir: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_sites(study, base_dir)
    # Whatever a log would show, chained causes included.
    assert "Quillfeather" not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


# --- built-in text ---------------------------------------------------------------


def test_icd10cm_has_21_named_chapters_and_no_text_twice():
    table = load_icd10cm()
    assert len(table.label_names) == 21
    assert table.label_names[0] == "Certain infectious and parasitic diseases"
    assert table.label_names[20].startswith("Factors influencing health status")
    assert not any("(" in name for name in table.label_names)
    assert len(table) == len({text.lower() for text in table.texts}) == 58_654
    assert len(set(table.groups)) == 1_916
    assert {len(group) for group in table.groups} == {3}
    assert not any(group.startswith("U") for group in table.groups)
    assert np.bincount(table.labels, minlength=21).min() > 700


def test_icd10cm_labels_are_right_for_known_codes():
    table = load_icd10cm()
    known = dict(zip(table.texts, zip(table.labels, table.groups, strict=True)))  # noqa: B905
    assert known["Cholera due to Vibrio cholerae 01, biovar cholerae"] == (0, "A00")
    assert known["Classical cholera"] == (0, "A00")  # an inclusion term
    assert known["Essential (primary) hypertension"] == (8, "I10")
    # In more than one chapter: would teach a contradiction.
    assert "Granuloma inguinale" in known
    chapters = {}
    for text, label in zip(table.texts, table.labels.tolist(), strict=True):
        assert chapters.setdefault(text.lower(), label) == label


def test_icd10cm_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(icd10cm_module, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(DataError, match=r"pip install simple-icd-10-cm==1\.5\.0"):
        load_icd10cm.__wrapped__()


def test_example_sites_have_their_case_mix(example, example_data):
    data = example_data
    assert tuple(data.sites) == example.sites
    assert sum(site.num_units for site in data.sites.values()) == 9000
    assert len(data.holdout.texts) == 1500
    assert data.label_names == load_icd10cm().label_names
    assert data.nominal_units == {s: d.num_units for s, d in data.sites.items()}
    mix = np.array(
        [np.bincount(d.records.labels, minlength=21) for d in data.sites.values()]
    )
    shares = mix / mix.sum(axis=0)
    homes = example.data.partition.home
    for index, site in enumerate(example.sites):
        own = [data.label_names.index(label) for label in homes[site]]
        total = mix[:, own].sum()
        # Binomial(total, 0.7): five standard deviations, false alarm < 1e-6.
        slack = 5 * np.sqrt(0.7 * 0.3 / total)
        assert abs(mix[index, own].sum() / total - 0.7) < slack
    nobodys = [data.label_names.index("Diseases of the ear and mastoid process")]
    assert shares[:, nobodys].max() < 0.4


def test_example_readme_states_the_true_sizes(example_data):
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    for site, data in example_data.sites.items():
        line = next(
            line for line in readme.splitlines() if line.startswith(f"| {site}")
        )
        assert line.endswith(f"| {data.num_units:,} |")
    assert f"{len(load_icd10cm()):,} wordings in 1,916" in readme


def test_example_categories_do_not_straddle(example_data):
    category = dict(zip(load_icd10cm().texts, load_icd10cm().groups, strict=True))
    held = {category[text] for text in example_data.holdout.texts}
    for site in example_data.sites.values():
        assert held.isdisjoint(category[text] for text in site.records.texts)


def test_loading_is_repeatable_and_moved_by_the_seed(example, example_data):
    again = load_sites(example, Path())
    assert again.holdout.texts == example_data.holdout.texts
    for site, data in example_data.sites.items():
        assert again.sites[site].records.texts == data.records.texts
    values = example.canonical()
    values["data"]["seed"] = 1
    other = load_sites(load_study_dict(values, "x"), Path())
    assert other.holdout.texts != example_data.holdout.texts


def test_unknown_home_label_names_the_nearest(example):
    values = example.canonical()
    values["data"]["partition"]["home"]["city-trauma"] = ["Neoplasm"]
    assert "did you mean 'Neoplasms'?" in refused(load_study_dict(values, "x"), Path())


def test_dirichlet_gives_every_record_one_site(example):
    values = example.canonical()
    values["data"]["partition"] = {
        "kind": "dirichlet",
        "sites": list(example.sites),
        "alpha": 0.3,
    }
    study = load_study_dict(values, "x")
    data = load_sites(study, Path())
    texts = [text for site in data.sites.values() for text in site.records.texts]
    assert len(texts) == len(set(texts)) == 9000
    again = load_sites(study, Path())
    for site in example.sites:
        assert again.sites[site].records.texts == data.sites[site].records.texts


def test_dirichlet_that_starves_a_site_is_an_error(tmp_path):
    write(tmp_path / "d.csv", rows(60))
    partition = {"kind": "dirichlet", "alpha": 1e-3}
    study = own_study("d.csv", partition=partition)
    assert "raise alpha" in refused(study, tmp_path)


def sizes_and_labels(data):
    """For each site its number of records and the classes that it has."""
    return [
        (own.num_units, {data.label_names[n] for n in own.records.labels.tolist()})
        for own in data.sites.values()
    ]


def test_alpha_zero_deals_labels_to_sites_round_robin(tmp_path):
    labels = ("a", "b", "c", "d", "e")
    write(tmp_path / "d.csv", rows(400, label=lambda n: labels[n % 5]))
    partition = {"kind": "dirichlet", "alpha": 0.0}
    data = load_sites(own_study("d.csv", labels=labels, partition=partition), tmp_path)
    assert [found for _, found in sizes_and_labels(data)] == [
        {"a", "d"},
        {"b", "e"},
        {"c"},
    ]


def test_alpha_zero_divides_a_label_among_its_sites_where_sites_are_many(tmp_path):
    sites = ("x", "y", "z", "u", "v")
    write(tmp_path / "d.csv", rows(1200, label=lambda n: "ab"[n % 2]))
    partition = {"kind": "dirichlet", "alpha": 0.0}
    data = load_sites(own_study("d.csv", sites=sites, partition=partition), tmp_path)
    found = sizes_and_labels(data)
    assert [labels for _, labels in found] == [{"a"}, {"b"}, {"a"}, {"b"}, {"a"}]
    # About 420 a on three sites and 420 b on two: five deviations of a binomial.
    for (size, _), share in zip(
        found, (1 / 3, 1 / 2, 1 / 3, 1 / 2, 1 / 3), strict=True
    ):
        total = sum(
            n for n, labels in found if labels == ({"a"} if share < 0.4 else {"b"})
        )
        assert abs(size - share * total) < 5 * np.sqrt(total * share * (1 - share))


def test_iid_gives_every_site_as_much_of_everything(tmp_path):
    # In the order of the file all a come first: a cut of it would not be iid.
    write(tmp_path / "d.csv", rows(900, label=lambda n: "a" if n < 450 else "b"))
    data = load_sites(own_study("d.csv", partition={"kind": "iid"}), tmp_path)
    sizes = [size for size, _ in sizes_and_labels(data)]
    assert max(sizes) - min(sizes) <= 1
    for own in data.sites.values():
        share = own.records.labels.mean()
        # Half of about 210: five standard deviations, false alarm < 1e-6.
        assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(own.num_units)


def test_size_gives_every_site_its_share(tmp_path):
    write(tmp_path / "d.csv", rows(900))
    shares = {"x": 1.0, "y": 2.0, "z": 5.0}
    partition = {"kind": "size", "shares": shares}
    data = load_sites(own_study("d.csv", partition=partition), tmp_path)
    total = sum(own.num_units for own in data.sites.values())
    assert total > 500
    for site, share in shares.items():
        assert abs(data.sites[site].num_units - share / 8 * total) <= 1


def test_a_share_of_nothing_is_an_error(tmp_path):
    write(tmp_path / "d.csv", rows(60))
    partition = {"kind": "size", "shares": {"x": 1.0, "y": 1.0, "z": 1e-6}}
    text = refused(own_study("d.csv", partition=partition), tmp_path)
    assert "'z' would get no unit" in text


@pytest.mark.parametrize("kind", ["iid", "size"])
def test_public_partitions_are_repeatable_and_moved_by_the_seed(tmp_path, kind):
    write(tmp_path / "d.csv", rows(300))
    partition = {"kind": kind}
    if kind == "size":
        partition["shares"] = {"x": 1.0, "y": 1.0, "z": 2.0}
    found = [
        load_sites(own_study("d.csv", partition=partition, seed=seed), tmp_path)
        for seed in (0, 0, 1)
    ]
    texts = [[own.records.texts for own in data.sites.values()] for data in found]
    assert texts[0] == texts[1] != texts[2]


def test_rows_say_which_record_is_where(tmp_path):
    write(tmp_path / "d.csv", rows(200))
    study = own_study("d.csv", partition={"kind": "iid"}, max_records=90)
    data = load_sites(study, tmp_path)
    assert sum(len(found) for found in data.rows.values()) == 90
    for site, own in data.sites.items():
        numbers = [int(text.split()[-1]) + 1 for text in own.records.texts]
        assert list(data.rows[site]) == numbers
    held = [int(text.split()[-1]) + 1 for text in data.holdout.texts]
    assert list(data.holdout_rows) == held


# --- files -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_comes_back_unchanged(tmp_path, suffix):
    odd = ["NA", "null", "1e3", "007", 'a "quoted", one', "two\nlines", "é ü 漢"]
    records = rows(text=lambda n: odd[n] if n < len(odd) else f"finding {n}")
    write(tmp_path / f"d{suffix}", records)
    data = load_sites(own_study(f"d{suffix}"), tmp_path)
    assert everything(data) == sorted(record["text"] for record in records)
    expected = {record["text"]: record for record in records}
    for site, own in data.sites.items():
        for text, label in zip(own.records.texts, own.records.labels, strict=True):
            assert expected[text]["site"] == site
            assert expected[text]["label"] == data.label_names[label]
    assert data.nominal_units == {"x": 100, "y": 100, "z": 100}


def test_all_formats_give_the_same_sites(tmp_path):
    found = []
    for suffix in (".csv", ".jsonl", ".parquet"):
        write(tmp_path / f"d{suffix}", rows())
        data = load_sites(own_study(f"d{suffix}"), tmp_path)
        found.append({site: own.records.texts for site, own in data.sites.items()})
    assert found[0] == found[1] == found[2]


def test_byte_order_mark_and_blank_lines_are_harmless(tmp_path):
    path = write(tmp_path / "d.csv", rows())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n\r\n")
    assert len(everything(load_sites(own_study("d.csv"), tmp_path))) == 120


def test_whole_numbers_may_be_labels(tmp_path):
    write(tmp_path / "d.jsonl", rows(label=lambda n: n % 2))
    data = load_sites(own_study("d.jsonl", labels=("0", "1")), tmp_path)
    assert set(data.holdout.labels.tolist()) == {0, 1}


def test_equal_texts_never_straddle_without_a_group_column(tmp_path):
    write(tmp_path / "d.csv", rows(text=lambda n: f"Finding  {n // 4}".upper() if n % 2 else f"finding {n // 4}"))  # fmt: skip
    data = load_sites(own_study("d.csv"), tmp_path)
    held = {text.lower().split()[1] for text in data.holdout.texts}
    for site in data.sites.values():
        assert held.isdisjoint(text.split()[1] for text in site.records.texts)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": lambda n: WORDING if n == 4 else "a"}, "data.labels (rows 5)"),
        ({"label": lambda n: "" if n == 4 else "a"}, "data.labels (rows 5)"),
        ({"text": lambda n: " \t" if n == 6 else WORDING}, "empty (rows 7)"),
        ({"text": lambda n: "" if n < 9 else WORDING}, "(rows 1, 2, 3, 4, 5 and more)"),
        ({"site": lambda n: WORDING if n == 1 else "x"}, "data.partition.sites (rows 2)"),
        ({"site": lambda n: "xy"[n % 2]}, "site 'z' has no training records"),
        ({"site": lambda n: "z" if n < 9 else "xy"[n % 2]}, "fewer than 10"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_bad_rows_are_named_by_number_only(tmp_path, columns, words, suffix):
    write(tmp_path / f"d{suffix}", rows(**columns))
    assert words in refused(own_study(f"d{suffix}"), tmp_path)


def test_missing_file_and_columns(tmp_path):
    assert "no such file" in refused(own_study("d.csv"), tmp_path)
    write(tmp_path / "d.csv", rows(text=lambda _: WORDING))
    study = own_study("d.csv", label_column="lable")
    message = refused(study, tmp_path)
    assert "no column 'lable' (data.label_column); did you mean 'label'?" in message


def test_empty_files(tmp_path):
    for content in (b"", b"text,label,site\n", b"\n\n"):
        (tmp_path / "d.csv").write_bytes(content)
        assert "no records" in refused(own_study("d.csv"), tmp_path)
    (tmp_path / "d.jsonl").write_bytes(b"\n")
    assert "no records" in refused(own_study("d.jsonl"), tmp_path)
    empty = pa.table({name: pa.array([], pa.string()) for name in rows(1)[0]})
    pq.write_table(empty, tmp_path / "d.parquet")
    assert "file with rows" in refused(own_study("d.parquet"), tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_not_utf8_names_the_byte(tmp_path, suffix):
    path = write(tmp_path / f"d{suffix}", rows(text=lambda _: WORDING))
    content = path.read_bytes()
    path.write_bytes(content[:200] + b"\xe9" + content[200:])
    assert "not UTF-8 at byte offset 200" in refused(own_study(path.name), tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"text,label,site\n{WORDING},a,x\n{WORDING},{WORDING},a,x\n", "row 2 has 4 fields"),
        (f"text,label,site\n{WORDING},a\n", "row 1 has 2 fields"),
        (f'text,label,site\n"{WORDING},a,x\n', "is not CSV"),
        (f"text,label,site,text\n{WORDING},a,x,\n", "names 'text' twice"),
        (f"text,label,site\n{WORDING}\0,a,x\n", "NUL character"),
    ],
)  # fmt: skip
def test_malformed_csv(tmp_path, content, words):
    (tmp_path / "d.csv").write_text(content, encoding="utf-8")
    assert words in refused(own_study("d.csv"), tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f'{{"text": "{WORDING}"', "line 121 is not a JSON object"),
        (f'["{WORDING}"]', "line 121 is not a JSON object"),
        (
            f'{{"text": ["{WORDING}"], "label": "a", "site": "x"}}',
            "must hold text (rows 121)",
        ),
        ('{"label": "a", "site": "x"}', "column 'text' is empty (rows 121)"),
    ],
)
def test_malformed_jsonl(tmp_path, line, words):
    path = write(tmp_path / "d.jsonl", rows())
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    assert words in refused(own_study("d.jsonl"), tmp_path)


def test_malformed_parquet(tmp_path):
    (tmp_path / "d.parquet").write_bytes(b"PAR1" + WORDING.encode() + b"PAR1")
    assert "no readable .parquet file" in refused(own_study("d.parquet"), tmp_path)


def test_texts_that_are_numbers_are_refused(tmp_path):
    write(tmp_path / "d.parquet", rows(text=lambda n: n))
    assert "column 'text' must hold text" in refused(own_study("d.parquet"), tmp_path)


# --- persons ---------------------------------------------------------------------


def test_persons_are_numbered_capped_and_never_straddle(tmp_path):
    records = rows(
        400, patient=lambda n: f"p{n // 5}", site=lambda n: "xyz"[(n // 5) % 3]
    )
    write(tmp_path / "d.csv", records)
    privacy = {"unit": "person", "max_records_per_unit": 3}
    study = own_study("d.csv", unit_column="patient", privacy=privacy)
    data = load_sites(study, tmp_path)
    person = {record["text"]: record["patient"] for record in records}
    held = {person[text] for text in data.holdout.texts}
    for site in data.sites.values():
        assert sorted(set(site.units.tolist())) == list(range(site.num_units))
        assert np.bincount(site.units).tolist() == [3] * site.num_units
        people = [person[text] for text in site.records.texts]
        assert held.isdisjoint(people)
        pairs = set(zip(people, site.units.tolist(), strict=True))
        assert len(pairs) == site.num_units == len(set(people))


@pytest.mark.parametrize(
    "partition",
    [
        {"kind": "home", "home_share": 0.5, "home": {"x": ["a"], "y": ["b"]}},
        {"kind": "dirichlet", "alpha": 5.0},
        {"kind": "dirichlet", "alpha": 0.0},
        {"kind": "iid"},
        {"kind": "size", "shares": {"x": 1.0, "y": 2.0, "z": 3.0}},
    ],
)
def test_a_person_is_at_one_site_only(tmp_path, partition):
    records = rows(300, patient=lambda n: f"p{n % 150}")
    write(tmp_path / "d.csv", records)
    privacy = {"unit": "person", "max_records_per_unit": 9}
    study = own_study(
        "d.csv", unit_column="patient", partition=partition, privacy=privacy
    )
    data = load_sites(study, tmp_path)
    person = {record["text"]: record["patient"] for record in records}
    homes: dict[str, set[str]] = {}
    for site, own in data.sites.items():
        for text in own.records.texts:
            homes.setdefault(person[text], set()).add(site)
    assert {len(where) for where in homes.values()} == {1}


def test_a_person_with_a_held_out_record_does_not_train():
    table = RecordTable(
        texts=tuple(f"t{n}" for n in range(60)),
        labels=np.zeros(60, dtype=np.int64),
        label_names=("a", "b"),
        groups=tuple(f"g{n % 20}" for n in range(60)),
        units=tuple(f"p{n // 3}" for n in range(60)),
    )
    training, holdout = split_holdout(table, 0.2, 0)
    assert set(training.groups).isdisjoint(holdout.groups)
    assert set(training.units).isdisjoint(holdout.units)


# --- draws -----------------------------------------------------------------------

_people = st.lists(
    st.tuples(st.integers(0, 6), st.text(max_size=3)), min_size=1, max_size=40
)


def _table(people) -> RecordTable:
    return RecordTable(
        texts=tuple(text for _, text in people),
        labels=np.zeros(len(people), dtype=np.int64),
        label_names=("a", "b"),
        groups=tuple(str(person) for person, _ in people),
        units=tuple(str(person) for person, _ in people),
    )


@given(people=_people, position=st.integers(0, 40), cap=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_adding_a_person_changes_nobody_elses_records(people, position, cap):
    """Otherwise one person would move the sum by more than one contribution."""
    newcomer = [(99, "new"), (99, "new"), (99, "x")]
    joined = people[:position] + newcomer + people[position:]
    before = cap_units(_table(people), cap, seed=3)
    after = cap_units(_table(joined), cap, seed=3)
    kept = [pair for pair in zip(after.units, after.texts, strict=True) if pair[0] != "99"]  # fmt: skip
    assert kept == list(zip(before.units, before.texts, strict=True))
    for person in set(before.units):
        assert before.units.count(person) <= cap


@given(people=_people, most=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_adding_a_record_displaces_at_most_one(people, most):
    before = at_most(_table(people), most, 0, "records")
    after = at_most(_table([*people, (99, "new")]), most, 0, "records")
    assert len(before) == min(most, len(people))
    gone = set(before.record_keys()) - set(after.record_keys())
    assert len(gone) <= 1


def test_draws_are_uniform_and_fixed():
    keys = [str(n) for n in range(20_000)]
    draws = stable_uniforms(0, "holdout", keys)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    # Standard deviation of the mean is 0.289 / sqrt(20000); false alarm 6e-7.
    assert abs(draws.mean() - 0.5) < 5 * 0.289 / np.sqrt(20_000)
    assert (stable_uniforms(0, "holdout", keys[:3]) == draws[:3]).all()
    assert (stable_uniforms(1, "holdout", keys) != draws).all()
    assert (stable_uniforms(0, "records", keys) != draws).all()


def test_a_holdout_that_takes_everything_is_an_error(tmp_path):
    write(tmp_path / "d.csv", rows(disease=lambda _: "same"))
    study = own_study("d.csv", group_column="disease")
    assert "too few groups" in refused(study, tmp_path)


# --- the process -----------------------------------------------------------------

_PROBE = """
import sys
from pathlib import Path
import secfed.data, secfed.policy, secfed.study
heavy = [m for m in ("torch", "datasets", "flwr", "pandas") if m in sys.modules]
assert not heavy, heavy
study = secfed.study.load_study(sys.argv[1])
secfed.data.load_sites(study, Path(sys.argv[2]))
assert "torch" not in sys.modules
"""


def _probe(study_path: Path, base_dir: Path, home: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home)}
    subprocess.run(
        [sys.executable, "-c", _PROBE, str(study_path), str(base_dir)],
        check=True,
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )


def test_no_torch_and_nothing_left_behind(tmp_path):
    """Records must not stay in a cache outside the study's folders."""
    home, base = tmp_path / "home", tmp_path / "base"
    home.mkdir()
    base.mkdir()
    write(base / "d.csv", rows(text=lambda n: f"{WORDING} {n}"))
    values = own_study("d.csv").canonical()
    study_path = base / "study.toml"
    study_path.write_text(_as_toml(values), encoding="utf-8")
    _probe(study_path, base, home)
    for path in home.rglob("*"):
        assert not path.is_file() or WORDING.encode() not in path.read_bytes(), path


def _as_toml(tables: dict, prefix: str = "") -> str:
    plain = {k: v for k, v in tables.items() if not isinstance(v, dict)}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in plain.items())
    for key, value in tables.items():
        if isinstance(value, dict):
            text += f"[{prefix}{key}]\n" + _as_toml(value, f"{prefix}{key}.")
    return text


def test_nothing_private_is_shown(example_data):
    site = next(iter(example_data.sites.values()))
    shown = repr(example_data) + repr(site) + repr(load_icd10cm())
    assert site.records.texts[0] not in shown
    assert str(site.num_units) not in repr(site)


# --- real files ------------------------------------------------------------------


@needs_shared
def test_medquad_sections_by_department(tmp_path):
    source = SHARED / "medquad_sections" / "medquad_sections.csv.gz"
    content = gzip.decompress(source.read_bytes())
    (tmp_path / "medquad.csv").write_bytes(content)
    records = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    blank = [n for n, record in enumerate(records, 1) if not record["focus"]]
    sites = sorted({record["site"] for record in records})
    labels = sorted({record["label"] for record in records})
    study = own_study("medquad.csv", sites=sites, labels=labels, group_column="focus")
    # Some answers name no disease: they cannot be split by it.
    assert f"'focus' is empty (rows {blank[0]}, {blank[1]}" in refused(study, tmp_path)
    records = [record for record in records if record["focus"]]
    write(tmp_path / "medquad.csv", records)
    data = load_sites(study, tmp_path)
    assert len(data.sites) == 8
    assert everything(data) == sorted(record["text"] for record in records)
    assert 0.2 < len(data.holdout.texts) / len(records) < 0.4
    of = {}
    for record in records:
        of.setdefault(record["text"], set()).add(record["focus"])
    held = set().union(*(of[text] for text in data.holdout.texts))
    for site in data.sites.values():
        assert all(of[text] - held for text in site.records.texts)


@needs_shared
def test_symptom2disease_by_dirichlet():
    source = SHARED / "symptom2disease" / "Symptom2Disease.csv"
    with source.open(encoding="utf-8", newline="") as stream:
        labels = sorted({record["label"] for record in csv.DictReader(stream)})
    study = own_study(
        source.name, labels=labels, partition={"kind": "dirichlet", "alpha": 0.5}
    )
    data = load_sites(study, source.parent)
    assert len(everything(data)) == 1200
    assert set(data.holdout.texts).isdisjoint(
        text for site in data.sites.values() for text in site.records.texts
    )


def test_a_fingerprint_is_of_texts_classes_and_units():
    def site(texts=("a", "b"), labels=(0, 1), units=(0, 1), name="x"):
        records = LabelledTexts(tuple(texts), np.array(labels))
        return fingerprint(SiteData(name, records, np.array(units)))

    assert site() == site(name="y")
    changed = [
        site(texts=("a", "c")),
        site(texts=("ab", "")),
        site(labels=(1, 1)),
        site(units=(0, 0)),
        site(texts=("a", "b", "c"), labels=(0, 1, 1), units=(0, 1, 2)),
    ]
    assert len({site(), *changed}) == 6
    assert len(site()) == 64
