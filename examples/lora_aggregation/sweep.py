"""Which step size suits which rule: the study's grid once for every rate.

Each method gets every rate, in every cell; the best one has the best score on the
public hold-out, mean over the cells of its kind (with privacy or without) and the
seeds. This is for public texts; on people's records a search would be charged, run by
run.

Example: python examples/lora_aggregation/sweep.py
    examples/lora_aggregation/same_rank/study_full.toml --out runs/same-rank-sweep
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfed.policy import load_policy
from secfed.report.measures import Measure, measure_of
from secfed.runtime.cells import Limits, NoEvents
from secfed.runtime.grid import run_grid
from secfed.study import Study, load_study, load_study_dict

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Found:
    """One method at one rate, with or without privacy.

    ``score`` is a mean of what is compared: of perplexities the geometric one.
    """

    method: str
    private: bool
    rate: float
    score: float


def main() -> None:
    """Run what is missing and print the best rates."""
    options = _options()
    study = load_study(options.study)
    policy = load_policy(options.study.parent / "site.toml")
    measure = measure_of(study.canonical().get("task"))
    found: list[Found] = []
    for rate, plain in rates_of(options):
        own = at_rate(study, rate, plain, options.seeds, options.methods)
        grid = run_grid(
            own,
            options.study.resolve().parent,
            options.out / f"rate-{rate:g}",
            own.compare.methods if own.compare else (),
            options.seeds,
            policy,
            NoEvents(),
            Limits(jobs=options.jobs),
        )
        found += results(grid, rate, plain, measure)
        print(f"rate {rate:g}: done in {grid['seconds']:.0f} s", file=sys.stderr)  # noqa: T201
    chosen = best(found, measure)
    rows = [vars(one) for one in found]
    text = json.dumps({"best": [vars(one) for one in chosen], "all": rows}, indent=2)
    (options.out / "sweep.json").write_text(text + "\n", encoding="utf-8")
    for one in chosen:
        kind = "with privacy" if one.private else "without privacy"
        print(f"{one.method:12} {kind:16} rate {one.rate:g}, score {one.score:.4g}")  # noqa: T201


def rates_of(options: argparse.Namespace) -> list[tuple[float, float]]:
    """Pairs of rates that are tried in one grid: with privacy and without."""
    plain = options.plain_rates or options.rates
    if len(plain) != len(options.rates):
        raise SystemExit("--plain-rates: as many as --rates")
    return list(zip(options.rates, plain, strict=True))


def at_rate(
    study: Study,
    rate: float,
    plain: float,
    seeds: Sequence[int],
    methods: Sequence[str] | None = None,
) -> Study:
    """The study with one rate for all methods with privacy, and one for those without.

    The head alone keeps its own. ``methods`` takes the place of the study's. A study
    that is no grid becomes one, with and without privacy.
    """
    values = study.canonical()
    if study.compare is None:
        raise SystemExit("the study has no [compare] table")
    methods = list(methods or study.compare.methods)
    values["compare"]["methods"] = methods
    values["training"]["learning_rate"] |= dict.fromkeys(methods, rate)
    values["training"]["plain_learning_rate"] = dict.fromkeys(methods, plain)
    values["compare"]["baselines"] = []
    values["compare"]["seeds"] = list(seeds)
    if not study.compare.is_grid:
        values["compare"]["epsilons"] = [study.privacy.epsilon, "inf"]
    return load_study_dict(values, f"study {study.name} at rate {rate:g}")


def results(
    grid: Mapping[str, Any], rate: float, plain: float, measure: Measure
) -> list[Found]:
    """Every method's score over the cells with privacy, and over the others."""
    private = {cell["name"]: cell["epsilon"] is not None for cell in grid["cells"]}
    merits: dict[tuple[str, bool], list[float]] = {}
    for score in grid["scores"]:
        key = (score["method"], private[score["cell"]])
        merits.setdefault(key, []).append(measure.merit(score[measure.key]))
    return [
        Found(
            method,
            with_privacy,
            rate if with_privacy else plain,
            measure.value(statistics.fmean(values)),
        )
        for (method, with_privacy), values in merits.items()
    ]


def best(found: Sequence[Found], measure: Measure) -> list[Found]:
    """The rate with the best score of every method and kind."""
    keys = dict.fromkeys((one.method, one.private) for one in found)
    return [
        max(
            (one for one in found if (one.method, one.private) == key),
            key=lambda one: measure.merit(one.score),
        )
        for key in keys
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="a study with a [compare] table")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument(
        "--plain-rates", type=float, nargs="+", help="without privacy; default: --rates"
    )
    parser.add_argument("--methods", nargs="+", help="default: all of the study's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
