"""What sketches cost in bytes and in precision, and what too narrow ones give."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from benchmarks.aggregation_plans import Plan, Rounding, Study
from benchmarks.aggregation_run import (
    Run,
    distance,
    public_seed,
    site_factors,
    stacked,
)
from benchmarks.sections import MB, Section
from secfed.lowrank import (
    Factors,
    Matrix,
    Widths,
    choose_widths,
    column_basis,
    from_projection,
    from_sketches,
    project,
    projections,
    sketch,
    truncated_dense,
)
from secfed.lowrank.widths import OVERSAMPLING

__all__ = ["narrow", "rounding", "sizes"]

_BYTES = 4  # per number in a ring of 32 bits
_BITS = (24, 16)
_QUARTER = 0.25


def sizes(run: Run) -> Iterator[Section]:
    """Bytes up per site and round; nothing is measured."""
    modules, width = run.plan.modules, run.plan.two_sums_width
    section = Section(
        "sizes",
        f"Megabytes up per site and round, {modules} modules, 4 bytes per number",
        f"{_reach(run.plan.means)} Factors are what fedavg sends. Two sums have "
        f"{width} columns and {width} rows, whatever the number of sites.",
    )
    for study in run.plan.sizes:
        widths = choose_widths(study.ranks, study.size, study.size)
        scale = modules * _BYTES / MB
        section.add(
            size=study.size,
            sites=study.sites,
            sum_of_ranks=sum(study.ranks),
            factors=2 * study.size * study.rank * scale,
            dense=study.size**2 * scale,
            sketches=widths.num_values * scale,
            sketches_percent_of_dense=100 * widths.num_values / study.size**2,
            two_sums=2 * study.size * width * scale,
            smaller="dense" if widths.dense_is_smaller else "sketches",
        )
    yield section


def _reach(study: Study) -> str:
    """Up to how many sites sketches are worth their bytes."""
    shares = {}
    for count in range(1, study.size // study.rank + 1):
        ranks = [study.rank] * count
        widths = choose_widths(ranks, study.size, study.size)
        shares[count] = widths.num_values / study.size**2
    quarter = max((n for n, share in shares.items() if share <= _QUARTER), default=0)
    smaller = max((n for n, share in shares.items() if share < 1), default=0)
    return (
        f"With {study.size:,} columns and rank {study.rank}, exact sketches have at "
        f"most a quarter of the dense bytes up to {quarter} sites, and fewer bytes "
        f"up to {smaller}."
    )


def rounding(run: Run) -> Iterator[Section]:
    """The same sums, rounded: densely, and as sketches of two widths."""
    section = Section(
        "rounding",
        "Rounding: relative error of the mean product",
        "A step is 2**-bits of the largest number that any site sends, rounding is "
        "random, and the result is not cut to a rank. For n sites that takes a ring "
        "of bits + 1 + log2(n) bits, and more where the range is not known so well. "
        "Columns above the sum of ranks: 8 is what `choose_widths` takes; rows are 8 "
        "more again. Where the sum fills the matrix there is no room for either.",
    )
    for case in run.plan.rounding:
        run.announce(f"rounding, {case.study}, {case.seeds} seeds")
        # Where the sum fills the matrix, both widths are the same.
        rooms = {_room(case.study, more): more for more in (0, OVERSAMPLING)}
        for bits in _BITS:
            for more in (None, *rooms.values()):
                _add_errors(section, run, case, bits, more)
    yield section


def _add_errors(
    section: Section, run: Run, case: Rounding, bits: int, more: int | None
) -> None:
    errors = []
    for seed in range(case.seeds):
        errors.append(_rounded(case.study, seed, bits, more))
        run.tick()
    section.add(
        size=case.study.size,
        sites=case.study.sites,
        bits=bits,
        sent="dense" if more is None else "sketches",
        columns_above_ranks="-" if more is None else _room(case.study, more),
        seeds=case.seeds,
        median_error=float(np.median(errors)),
        largest_error=max(errors),
    )


def _room(study: Study, more: int) -> int:
    return _widths(study, more).right - min(sum(study.ranks), study.size)


def _widths(study: Study, more: int) -> Widths:
    right = min(sum(study.ranks) + more, study.size)
    left = min(right + OVERSAMPLING, study.size)
    return Widths(study.size, study.size, right, left)


def _rounded(study: Study, seed: int, bits: int, more: int | None) -> float:
    """The relative error of one mean of products."""
    sites, source = site_factors(study, seed, shared=0.0), np.random.default_rng(seed)
    mean = stacked(sites).dense()
    if more is None:
        parts = [[one.dense()] for one in sites]
        return distance(_rounded_mean(parts, bits, source)[0], mean)
    public = projections(public_seed(seed), _widths(study, more))
    sent = [sketch(one.b, one.a, public) for one in sites]
    y, z = _rounded_mean([[one.y, one.z] for one in sent], bits, source)
    rank = min(sum(study.ranks), study.size)
    found = from_sketches(y, z, public, rank, tolerance=math.inf)
    return distance(found.factors, mean)


def _rounded_mean(
    parts: list[list[Matrix]], bits: int, source: np.random.Generator
) -> list[Matrix]:
    """The mean of what sites send, each number rounded to a step at random."""
    step = max(float(np.abs(x).max()) for one in parts for x in one) * 2.0**-bits
    totals = [np.zeros_like(x) for x in parts[0]]
    for one in parts:
        for total, x in zip(totals, one, strict=True):
            np.add(total, np.floor(x / step + source.random(x.shape)), out=total)
    return [total * (step / len(parts)) for total in totals]


def narrow(run: Run) -> Iterator[Section]:
    """Sketches below the sum of ranks, cut to the rank of one site."""
    study = run.plan.narrow
    section = Section(
        "narrow",
        f"Below the sum of ranks: {study}, cut to rank {study.rank}",
        "Relative error of the result, and that over the smallest possible at this "
        "rank. Nothing is rounded. For one sum `from_sketches` estimates the error "
        "before the cut, as the coordinator can; above a tolerance, which is lifted "
        "here, it refuses.",
    )
    for kind, shared in (("noise alone", 0.0), ("half common", 1.0)):
        run.announce(f"narrow, {study}, {kind}")
        whole = stacked(site_factors(study, 0, shared))
        mean = whole.dense()
        best = distance(truncated_dense(mean, study.rank), mean)
        for sent, widths, made, estimated in _ways(run.plan, whole, mean):
            error = distance(made, mean)
            run.check(f"{sent}, {kind}", best * (1 - 1e-9), error)
            section.add(
                sum_of=kind,
                sent=sent,
                widths=" and ".join(map(str, widths)) or "-",
                bytes_percent_of_dense=100 * sum(widths) / study.size
                if widths
                else 100,
                error=error,
                over_the_best=error / best,
                estimated_before_the_cut=estimated,
            )
            run.tick()
    yield section


Way = tuple[str, tuple[int, ...], Factors, float | str]
"""What is sent, in which widths, what comes of it, and the estimated error."""


def _ways(plan: Plan, whole: Factors, mean: Matrix) -> Iterator[Way]:
    study = plan.narrow
    yield "dense", (), truncated_dense(mean, study.rank), "-"
    for widths in plan.narrow_widths:
        yield "one sum", widths, *_one_sum(study, whole, widths)
    for width in plan.more_widths:
        yield "two sums", (width, width), _two_sums(study, whole, width), "-"


def _one_sum(
    study: Study, whole: Factors, widths: tuple[int, int]
) -> tuple[Factors, float]:
    public = projections(public_seed(0), Widths(study.size, study.size, *widths))
    sent = sketch(whole.b, whole.a, public)
    found = from_sketches(sent.y, sent.z, public, study.rank, tolerance=math.inf)
    return found.factors, found.error


def _two_sums(study: Study, whole: Factors, width: int) -> Factors:
    square = Widths(study.size, study.size, width, width)
    omega = projections(public_seed(0), square).omega
    basis = column_basis(whole.b @ (whole.a @ omega))
    total = project(basis, whole.b, whole.a)
    return from_projection(basis, total, study.rank)
