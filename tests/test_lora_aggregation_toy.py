"""The toy of examples/lora_aggregation: exact errors, methods, words, cost table."""

import importlib
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "lora_aggregation"
sys.path.insert(0, str(FOLDER))
toy = importlib.import_module("toy")
model = importlib.import_module("toy_model")
words = importlib.import_module("toy_reading")
cost = importlib.import_module("cost")
files = importlib.import_module("result_files")
page = importlib.import_module("toy_page").page

SMALL = model.Setup(sites=4, size=6, inherent_rank=2, repetitions=20_000, seed=11)
ALARM = 4.0  # standard errors; an honest mean is farther off once in 16,000 tests


@pytest.fixture(scope="module")
def world():
    return model.draw(SMALL)


@pytest.fixture(scope="module")
def found():
    return json.loads((FOLDER / "toy.json").read_text())


@pytest.fixture(scope="module")
def table():
    return json.loads((FOLDER / "cost.json").read_text())


def squared(update, world):
    return ((update - world.true) ** 2).sum(axis=(-2, -1))


def methods(world, noise, rank):
    factors = model.best_factors(world.sites(noise), world.p.shape[-1])
    return model.estimates(factors, rank)


def off(values, expected_rms):
    """How many standard errors the mean of ``values`` is from the square."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    return abs(values.mean() - expected_rms**2) / error


# The exact errors


@pytest.mark.parametrize("noise", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("rank", [2, 5])
def test_the_exact_error_of_untruncated_reconstruction(world, noise, rank):
    errors = squared(methods(world, noise, rank)["untruncated"], world)
    assert off(errors, model.untruncated_rms(SMALL, noise)) < ALARM


@pytest.mark.parametrize(
    "wrong",
    [
        lambda n, d, rho, s: d**2 * rho * 2 * s**2 / n,  # no quadratic term
        lambda n, d, rho, s: d**2 * rho * (s**2 + s**4) / n,  # one linear term
        lambda n, d, rho, s: d**2 * rho * (2 * s**2 / n + s**4 / n**2),  # FedAvg's
        lambda n, d, rho, s: d**2 * (rho + 1) * (2 * s**2 + s**4) / n,  # r for rho
        lambda n, d, rho, s: d * rho * (2 * s**2 + s**4) / n,
        lambda n, d, rho, s: d**2 * rho * (2 * s**2 + s**4) / (n - 1),
        lambda n, d, rho, s: d**2 * rho * (2 * s + s**4) / n,
    ],
)
def test_a_wrong_formula_is_refuted(world, wrong):
    noise = 1.4
    errors = squared(methods(world, noise, 2)["untruncated"], world)
    size = (SMALL.sites, SMALL.size, SMALL.inherent_rank)
    assert off(errors, model.untruncated_rms(SMALL, noise)) < ALARM
    assert off(errors, math.sqrt(wrong(*size, noise))) > 2 * ALARM


def test_the_exact_error_holds_for_this_set_up_only(world):
    """Not with a cut below d at the server, a smaller rank, or another scale."""
    exact = model.untruncated_rms(SMALL, 1.0)
    cut = squared(methods(world, 1.0, 2)["reconstruction"], world)
    fewer = squared(methods(world, 1.0, 1)["untruncated"], world)
    scaled = replace(world, p=2 * world.p, q=2 * world.q)
    larger = squared(methods(scaled, 1.0, 2)["untruncated"], scaled)
    for errors in (cut, fewer, larger):
        assert off(errors, exact) > 2 * ALARM


def test_without_a_cut_both_reconstructions_are_one(world):
    some = methods(world, 1.0, SMALL.size)
    np.testing.assert_allclose(some["reconstruction"], some["untruncated"], atol=1e-10)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_exact_errors_of_a_shared_basis_and_of_zero(world, noise):
    shared = model.mean_of_factors(
        world.p[:, None] + noise * world.x, world.q[:, None] + noise * world.y
    )
    exact = model.shared_basis_rms(SMALL, noise)
    assert off(squared(shared, world), exact) < ALARM
    assert off(squared(0 * shared, world), model.zero_rms(SMALL)) < ALARM
    assert exact < model.untruncated_rms(SMALL, noise)


def test_published_numbers_of_the_exact_error():
    """sqrt(400 * 5 * (2 s^2 + s^4) / 12), by hand."""
    exact = [model.untruncated_rms(model.Setup(), noise) for noise in toy.NOISES]
    assert exact == pytest.approx([1.83030, 22.36068, 128.45233, 335.41020], rel=1e-6)
    assert model.zero_rms(model.Setup()) == pytest.approx(44.72136, rel=1e-6)


# The methods


def few(**changes):
    return model.Setup(**{"repetitions": 30, "seed": 5, **changes})


def test_a_repetition_does_not_depend_on_their_number():
    short, long = model.draw(few()), model.draw(few(repetitions=40))
    np.testing.assert_array_equal(short.x, long.x[:30])
    assert not np.array_equal(short.x, model.draw(few(seed=6)).x)
    assert not np.array_equal(short.x[0], short.x[1])


def test_ranks_beyond_the_inherent_one_change_nothing():
    world = model.draw(few())
    cut = methods(world, 1.0, 8)
    padded = model.estimates(model.best_factors(world.sites(1.0), 8), 8)
    for name, update in cut.items():
        np.testing.assert_allclose(update, padded[name], atol=1e-5, err_msg=name)


def test_factors_are_the_best_of_their_rank():
    world = model.draw(few())
    sites = world.sites(1.0)
    b, a = model.best_factors(sites, 3)
    missing = np.linalg.norm(sites - b @ a, axis=(-2, -1))
    values = np.linalg.svd(sites, compute_uv=False)[..., 3:]
    np.testing.assert_allclose(missing, np.linalg.norm(values, axis=-1))
    np.testing.assert_allclose(
        np.linalg.norm(b, axis=-2), np.linalg.norm(a, axis=-1), rtol=1e-9
    )


def test_alignment_undoes_a_turn_and_plain_fedavg_does_not():
    random = np.random.default_rng(3)
    b, a = random.standard_normal((2, 6, 9, 4)), random.standard_normal((2, 6, 4, 9))
    b[:], a[:] = b[:, :1], a[:, :1]
    turns = np.linalg.qr(random.standard_normal((2, 6, 4, 4)))[0]
    turned = b @ turns, turns.swapaxes(-1, -2) @ a
    aligned = model.align(*turned)
    np.testing.assert_allclose(aligned[0] @ aligned[1], b @ a, atol=1e-12)
    np.testing.assert_allclose(
        model.mean_of_factors(*aligned), (b @ a)[:, 0], atol=1e-12
    )
    wrong = np.linalg.norm(model.mean_of_factors(*turned) - (b @ a)[:, 0])
    assert wrong > 0.5 * np.linalg.norm((b @ a)[:, 0])


def test_methods_beside_their_slow_definition():
    world = model.draw(few(repetitions=2, sites=3, size=7))
    got = methods(world, 0.8, 2)
    for index, sites in enumerate(world.sites(0.8)):
        bs, as_ = [], []
        for site in sites:
            u, s, v = np.linalg.svd(site)
            bs.append(u[:, :2] @ np.diag(np.sqrt(s[:2])))
            as_.append(np.diag(np.sqrt(s[:2])) @ v[:2])
        mean = sum(b @ a for b, a in zip(bs, as_, strict=True)) / 3
        u, s, v = np.linalg.svd(mean)
        np.testing.assert_allclose(got["untruncated"][index], mean)
        np.testing.assert_allclose(
            got["reconstruction"][index], u[:, :2] @ np.diag(s[:2]) @ v[:2]
        )
        np.testing.assert_allclose(got["fedavg"][index], sum(bs) @ sum(as_) / 9)


def test_signs_change_fedavg_and_no_product():
    setup = few()
    rules = toy.signs(setup, model.draw(setup), 0.1)
    assert rules["random"] > 1.2 * rules["as computed"]
    assert rules["random"] > 1.2 * rules["largest entry of u positive"]
    errors, _ = toy.scores(model.draw(setup), 0.1, (5,))
    assert rules["as computed"] == pytest.approx(math.sqrt(errors["fedavg"].mean()))


def test_differences_are_paired_and_have_the_right_sign():
    setup = few()
    world = model.draw(setup)
    level = toy.level(setup, world, 3.0)
    zero = (world.true**2).sum(axis=(-2, -1)).mean()
    fedavg = np.array(level["methods"]["fedavg"]["rms"])[:, 0] ** 2
    for name, method in level["methods"].items():
        squares = np.array(method["rms"])[:, 0] ** 2
        np.testing.assert_allclose(
            level["fedavg minus"][name][:, 0], fedavg - squares, atol=1e-8
        )
        np.testing.assert_allclose(method["minus zero"][:, 0], squares - zero)
    low, high = level["fedavg minus"]["reconstruction"][4, 1:]
    assert low < high < 0


def test_crossings_are_those_of_the_curves(monkeypatch, found):
    """With 60 of the committed 200 repetitions and a coarser scan."""
    monkeypatch.setattr(toy, "SCAN", (1.4, 1.7, 2.0, 2.3))
    setup = model.Setup(repetitions=60)
    fresh = toy.crossings(setup, model.draw(setup))["by rank"]
    for row, committed in zip(fresh, found["crossings"]["by rank"], strict=True):
        assert row["rank"] == committed["rank"]
        for key in ("curves cross", "reconstruction meets zero", "fedavg meets zero"):
            noise, low, high = row[key]
            assert low < noise < high
            assert noise == pytest.approx(committed[key][0], abs=0.15)
        assert row["rms there"] == pytest.approx(committed["rms there"], rel=0.05)


def test_a_crossing_is_found_where_the_sign_changes_once():
    scan = np.array(toy.SCAN)
    assert toy.crossing(1.7 - scan) == pytest.approx(1.7)
    assert toy.crossing(scan - 1.7) is None  # rises
    assert toy.crossing(np.ones_like(scan)) is None
    assert toy.crossing(np.cos(3 * scan)) is None  # several


def test_intervals_are_those_of_students_t():
    values = np.array([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 0.0]])
    half = 3.182446 * values[0].std(ddof=1) / 2  # t(0.975, 3) from a table
    expected = [[3.0, 3.0 - half, 3.0 + half], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(files.interval(values), expected, rtol=1e-6)


# The committed numbers


def test_the_committed_run_says_where_it_is_from(found, table):
    for record, script in ((found, "toy.py"), (table, "cost.py")):
        assert record["command"].startswith(
            f"python examples/lora_aggregation/{script}"
        )
        assert {"python", "numpy"} <= set(record["versions"])
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:]{8}\+00:00", record["date"])
        assert record["seed"] == 0
    setup = found["setup"]
    assert [setup[key] for key in ("size", "inherent_rank")] == [20, 5]
    assert setup["noises"] == [level["noise"] for level in found["levels"]]
    assert setup["noises"] == [0.1, 1, 3, 5]
    assert setup["ranks"] == list(range(1, 21))
    assert found["seconds"] < 60


def test_the_committed_numbers_come_again(found):
    """One noise, four ranks. Signs of singular vectors may differ by machine."""
    world = model.draw(model.Setup())
    ranks = (1, 4, 5, 20)
    errors, cosines = toy.scores(world, 1.0, ranks)
    committed = found["levels"][1]["methods"]
    for name, values in errors.items():
        rms = np.sqrt(values.mean(axis=-1))
        near = 0.03 if name == "fedavg" else 1e-5
        for index, rank in enumerate(ranks):
            row = committed[name]
            assert rms[index] == pytest.approx(row["rms"][rank - 1][0], rel=near)
            cosine = cosines[name][index].mean()
            assert cosine == pytest.approx(row["cosine"][rank - 1], rel=near)


def test_at_the_committed_crossing_both_err_alike(found):
    (row,) = [r for r in found["crossings"]["by rank"] if r["rank"] == 5]
    noise, low, high = row["curves cross"]
    assert low < noise < high
    world = model.draw(model.Setup())

    def gap(at):
        errors, _ = toy.scores(world, at, (5,))
        fedavg, other = (errors[k].mean() ** 0.5 for k in ("fedavg", "reconstruction"))
        assert fedavg == pytest.approx(row["rms there"], rel=0.05)
        return fedavg - other

    assert abs(gap(noise)) < 0.02 * row["rms there"]
    assert gap(noise - 0.1) > 0 > gap(noise + 0.1)


def test_the_committed_numbers_agree_with_the_exact_ones(found):
    """At three standard errors and four noises: false alarm below 1.1 %."""
    for level in found["levels"]:
        mean, low, high = level["methods"]["untruncated"]["rms"][-1]
        assert abs(mean - level["exact"]["untruncated"]) < 1.6 * (high - low) / 2
        exact = model.untruncated_rms(model.Setup(), level["noise"])
        assert level["exact"]["untruncated"] == pytest.approx(exact, rel=1e-6)


# The words


def level_of(fedavg, other, zero=0.0, size=4):
    """A noise at which the squared errors are known without doubt."""

    def sure(values):
        return [[v, v - 0.1, v + 0.1] for v in values]

    both = {"fedavg": fedavg, "reconstruction": other}
    both |= {"untruncated": other, "aligned": other}
    return {
        "noise": 2.0,
        "methods": {
            name: {"minus zero": sure([v - zero for v in values])}
            for name, values in both.items()
        },
        "fedavg minus": {
            name: sure([a - b for a, b in zip(fedavg, values, strict=True)])
            for name, values in both.items()
        },
    }, {"size": size, "ranks": list(range(1, size + 1))}


@pytest.mark.parametrize(
    ("fedavg", "other", "said"),
    [
        ([5, 5, 5, 5], [4, 3, 2, 1], "Reconstruction errs less than FedAvg at every"),
        ([1, 1, 1, 1], [4, 3, 2, 5], "FedAvg errs less than reconstruction at every"),
        (
            [5, 5, 5, 5],
            [4, 5, 6, 6],
            "undecided at rank 2, FedAvg at ranks 3 to 4. The curves cross between",
        ),
        ([5, 5, 5, 5], [4, 6, 4, 4], "rank 1 and 2 and between rank 2 and 3."),
        ([5, 5, 5, 5], [4, 4, 5, 5], "The curves are not seen to cross"),
        ([5, 5, 5, 5], [5, 5, 5, 5], "No rank from 1 to 4 shows a difference"),
    ],
)
def test_words_about_the_crossing(fedavg, other, said):
    level, setup = level_of(fedavg, other)
    assert said in words._crossing_words(level, "reconstruction", setup)


@pytest.mark.parametrize(
    ("zero", "said"),
    [
        (9.0, "No method is worse than predicting zero at any rank."),
        (0.5, "Every method is worse than predicting zero at every rank."),
        (4.5, "Worse than predicting zero: FedAvg of factors at every rank."),
        (2.5, "factors at every rank; reconstruction at ranks 1, 3 to 4; reconstr"),
    ],
)
def test_words_about_zero(zero, said):
    level, setup = level_of([5, 5, 5, 5], [4, 1, 3, 3], zero)
    assert said in words._zero_words(level, setup)


def test_spans_and_figures():
    assert files.spans([1, 2, 3, 5, 7, 8]) == "1 to 3, 5, 7 to 8"
    assert [files.figures(x) for x in (1234.5, 12.345, 0.5)] == [
        "1,234",
        "12.3",
        "0.500",
    ]


def flat(text):
    return " ".join(text.split())


def block(name):
    text = (FOLDER / "README.md").read_text()
    return text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]


def test_the_readme_says_what_the_files_say(found, table):
    assert flat(block("toy-table")) == flat(words.table(found))
    assert flat(block("toy-reading")) == flat("\n\n".join(words.reading(found)))
    assert flat(block("cost-reading")) == flat(cost.reading(table))


def test_the_readmes_own_words_hold(found):
    """Its conclusions are written by hand; these are the numbers under them."""
    little, one, much, most = found["levels"]
    for level in (much, most):  # FedAvg ahead, and everything worse than zero
        assert set(words.order(level, "reconstruction")) == {words.FEDAVG}
        for name in words.NAMES:
            assert len(words.worse_than_zero(level, name)) == 20
        cosines = [level["methods"][k]["cosine"] for k in ("fedavg", "reconstruction")]
        assert all(a < b for a, b in zip(*cosines, strict=True))
    assert max(little["fedavg by signs"].values()) > 2 * min(
        little["fedavg by signs"].values()
    )
    for level in (little, one):
        assert set(words.order(level, "reconstruction")) == {words.OTHER}
    for row in found["crossings"]["by rank"]:
        crossed, meets = row["curves cross"][0], row["reconstruction meets zero"][0]
        assert crossed == pytest.approx(meets, rel=0.1)
    for level in (little, one):  # aligned: level with reconstruction, or ahead
        aligned, other = (
            np.array(level["methods"][name]["rms"])[4:, 0]
            for name in ("aligned", "reconstruction")
        )
        assert (aligned < 1.005 * other).all()
    (row,) = [r for r in found["crossings"]["by rank"] if r["rank"] == 5]
    assert f"sites at {row['curves cross'][0]:.2f}" in flat(
        (FOLDER / "README.md").read_text()
    )


def test_every_file_of_the_folder_is_in_its_readme():
    text = (FOLDER / "README.md").read_text()
    names = {p.name for p in FOLDER.iterdir() if p.suffix in {".py", ".json"}}
    assert {name for name in names if f"`{name}`" not in text} == set()


# The page


def test_the_page_stands_alone_and_does_not_change(found):
    text = page(found)
    assert text == page(found)
    for sentence in words.reading(found):
        assert flat(sentence) in text
    assert text.count("<svg") == 1
    assert not re.search(r"<script|<link|<img|src=|href=\"http", text)
    assert text.count("<table>") == 4
    colours = set(re.findall(r"var\((--\w+)\)", text))
    assert colours <= set(re.findall(r"(--\w+):", text))


def test_the_page_escapes_the_command(found):
    text = page({**found, "command": "python toy.py --out '<b>'"})
    assert "<b>" not in text
    assert "&lt;b&gt;" in text


# The commands


def script(name, *arguments):
    return subprocess.run(
        [sys.executable, FOLDER / name, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_the_toy_runs_as_its_words_say(tmp_path):
    done = script(
        "toy.py",
        "--out",
        tmp_path,
        "--repetitions",
        "20",
        "--sites",
        "2",
        "--seed",
        "4",
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "toy.json").read_text())
    assert (tmp_path / "toy.html").read_text() == page(made)
    assert done.stdout == "\n\n".join(words.reading(made)) + "\n"
    assert made["setup"]["sites"] == 2
    assert made["seed"] == 4
    assert "--seed 4" in made["command"]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("toy.py", [], "--out"),
        ("toy.py", ["--out", "x", "--sites", "1"], "'1' is not a whole number >= 2"),
        ("toy.py", ["--out", "x", "--repetitions", "5"], ">= 20"),
        ("toy.py", ["--out", "x", "--seed", "-1"], ">= 0"),
        ("cost.py", ["--out", "x", "--shapes", "64"], "'64' is not like 4096x1024"),
        ("cost.py", ["--out", "x", "--shapes", "6x4"], "rank 8 is above min(6, 4)"),
        ("cost.py", ["--out", "x", "--sites", "0"], "positive"),
    ],
)
def test_wrong_arguments_say_what_is_right(name, arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        (toy if name == "toy.py" else cost).main(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


# The cost table

SIZES = cost.Sizes(n=3, d=5, k=7, r=2)


@pytest.mark.parametrize(
    ("rule", "operations"),
    [
        ("fedavg", 72),
        ("ffa-lora", 30),
        ("fedsa-lora", 42),
        ("reconstruction: products", 420),
        ("reconstruction: SVD", 6 * 7 * 25 + 20 * 125),
    ],
)
def test_formulas_by_hand(rule, operations):
    assert cost.formula(rule, SIZES) == operations


def test_the_misprint_is_seen_where_d_is_not_k(monkeypatch):
    assert cost.ffa_as_printed(SIZES) == 42 != cost.formula("ffa-lora", SIZES)
    square = replace(SIZES, k=5)
    assert cost.ffa_as_printed(square) == cost.formula("ffa-lora", square)
    honest = cost.formula

    def misprinted(rule, sizes):
        return cost.ffa_as_printed(sizes) if rule == "ffa-lora" else honest(rule, sizes)

    monkeypatch.setattr(cost, "formula", misprinted)
    with pytest.raises(RuntimeError, match="ffa-lora: the code does 30 operations"):
        cost.measure(SIZES, repetitions=1)


def test_the_steps_compute_what_they_are_timed_for():
    random = np.random.default_rng(cost._SEED)
    b = random.standard_normal((3, 5, 2), dtype=np.float32)
    a = random.standard_normal((3, 2, 7), dtype=np.float32)
    steps = {rule: work.step() for rule, work in cost.works(SIZES).items()}
    total = np.einsum("ndr,nrk->dk", b, a)
    np.testing.assert_allclose(steps["reconstruction: products"], total, atol=1e-5)
    u, values, v = steps["reconstruction: SVD"]
    np.testing.assert_allclose(3 * (u * values) @ v, total, atol=1e-5)
    np.testing.assert_allclose(steps["ffa-lora"], b.mean(0))
    np.testing.assert_allclose(steps["fedsa-lora"], a.mean(0))
    np.testing.assert_allclose(steps["fedavg"][1], a.mean(0))


def test_the_committed_table_has_the_formulas(table):
    setup = table["setup"]
    assert {row["rule"] for row in table["rows"]} == set(cost.RULES)
    assert table["machine"]["OMP_NUM_THREADS"] == "1"
    for row in table["rows"]:
        sizes = cost.Sizes(setup["n"], row["d"], row["k"], setup["r"])
        assert row["operations"] == cost.formula(row["rule"], sizes)
        assert row["counted"] in {None, row["operations"]}
        assert row["ms"]["q1"] <= row["ms"]["median"] <= row["ms"]["q3"]


def test_the_verdict_on_the_misprint_follows_the_times(table):
    assert "supports n r d." in cost.reading(table)

    def row(d, k, ms):
        times = dict.fromkeys(("median", "q1", "q3"), ms)
        return {"rule": "ffa-lora", "d": d, "k": k, "ms": times}

    contrary = {"rows": [row(8, 2, 1.0), row(2, 8, 4.0)]}
    assert cost._misprint(contrary).endswith("supports n r k.")
    assert "not tested" in cost._misprint({"rows": [row(8, 2, 1.0)]})


def test_the_table_runs_as_its_words_say(tmp_path):
    done = script(
        "cost.py", "--out", tmp_path, "--sites", "4", "--shapes", "64x16", "16x64"
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "cost.json").read_text())
    assert len(made["rows"]) == 10
    assert (
        (tmp_path / "cost.md").read_text() == done.stdout == cost.reading(made) + "\n"
    )
