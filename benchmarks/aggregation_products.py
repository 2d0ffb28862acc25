"""The mean of products at a rank: from the dense sum, from sketches, from two sums."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse.linalg

from benchmarks.aggregation_plans import Study
from benchmarks.aggregation_run import (
    Run,
    distance,
    public_seed,
    site_factors,
    stacked,
)
from benchmarks.measure import Timing, timed
from benchmarks.sections import MS, Section
from secfed.lowrank import (
    Factors,
    Matrix,
    Projections,
    Widths,
    choose_widths,
    column_basis,
    from_projection,
    from_sketches,
    narrow_widths,
    project,
    projections,
    sketch,
    truncated_dense,
)

__all__ = ["products"]

_WANTED_RATIO = 5.0
_WANTED_PERCENT = 25.0
# Sums arrive in float32, and sketches magnify its rounding.
_ALLOWED = 1e-4
# Before the cut, the expected error of what is not exact is below 1.5 times the best
# of the rank; cutting adds at most as much again, and the best.
_NEAR = 4.0

DENSE = "dense, whole SVD"
LANCZOS = "dense, leading part by Lanczos"
SKETCHES = "sketches, one sum"
NARROW = "narrow sketches, one sum"
TWO_SUMS = "sketches, two sums"


@dataclass
class Found:
    """One way's times and results over the modules."""

    values: int  # numbers that a site sends per module
    exact: bool  # before it is cut to the rank
    server: list[float] = field(default_factory=list)
    site: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def note(self, server: float, site: float, error: float) -> None:
        """One module is done."""
        self.server.append(server)
        self.site.append(site)
        self.errors.append(error)


def products(run: Run) -> Iterator[Section]:
    """Each way on the same modules, in turn."""
    section = Section(
        "products",
        f"Mean of products at rank {run.plan.means.rank}",
        "CPU milliseconds per module, median and quartiles over the modules measured; "
        f"seconds are for {run.plan.modules} modules. The server's time is from the "
        "sum in float32 to factors, without decoding; the site's is from its factors "
        "to what it sends. Bytes compare numbers in one ring. The error is that of "
        "the result against the mean of products, median; no result of this rank has "
        "a smaller one than the dense one. Half of every site's factors is common to "
        "all sites, the rest its own. Narrow sketches have a share of the dense "
        f"numbers, {run.plan.narrow_share:.0%}; they and two sums, which take two "
        "masked rounds, are not exact above their width. Lanczos is "
        "scipy's `svds`; secfed does not use it.",
    )
    for study, modules in run.plan.products:
        run.announce(f"products, {study}, {modules} modules")
        ways = _measure(run, study, modules)
        for way, found in ways.items():
            _add(section, run, study, way, found)
        _goals(run, study, ways)
    yield section


def _add(section: Section, run: Run, study: Study, way: str, found: Found) -> None:
    server = Timing.of(found.server)
    section.add(
        way=way,
        sites=study.sites,
        sum_of_ranks=sum(study.ranks),
        exact="yes" if found.exact else "no",
        modules_measured=len(found.server),
        server_ms=server.scaled(MS),
        server_s_in_all=server.median * run.plan.modules,
        site_ms=Timing.of(found.site).scaled(MS) if any(found.site) else "-",
        bytes_percent_of_dense=100 * found.values / study.size**2,
        error=float(np.median(found.errors)),
    )


def _goals(run: Run, study: Study, ways: dict[str, Found]) -> None:
    dense = Timing.of(ways[DENSE].server)
    for way in (SKETCHES, NARROW, TWO_SUMS):
        found = ways[way]
        name = way if found.exact else f"{way}, approximate"
        ratio = dense.over(Timing.of(found.server)).median
        time = f"{name}: dense SVD's time over theirs ({study})"
        run.at_least(time, _WANTED_RATIO, ratio, "times")
        percent = 100 * found.values / study.size**2
        bytes_ = f"{name}: bytes against dense ({study})"
        run.at_most(bytes_, _WANTED_PERCENT, percent, "%")


def _measure(run: Run, study: Study, modules: int) -> dict[str, Found]:
    widths = choose_widths(study.ranks, study.size, study.size)
    below = narrow_widths(run.plan.narrow_share, study.size, study.size)
    columns = run.plan.two_sums_width
    ways = {
        DENSE: Found(study.size**2, exact=True),
        LANCZOS: Found(study.size**2, exact=True),
        SKETCHES: Found(widths.num_values, exact=True),
        NARROW: Found(below.num_values, exact=sum(study.ranks) <= below.right),
        TWO_SUMS: Found(2 * columns * study.size, exact=sum(study.ranks) <= columns),
    }
    for number in range(modules):
        sites = site_factors(study, number)
        mean = stacked(sites).dense()
        ways[DENSE].note(*_dense(run, mean, sites[0]))
        ways[LANCZOS].note(*_lanczos(run, mean))
        for way, wide in ((SKETCHES, widths), (NARROW, below)):
            public = projections(public_seed(number), wide)
            ways[way].note(*_sketches(sites, mean, public))
        square = Widths(study.size, study.size, columns, columns)
        omega = projections(public_seed(number), square).omega
        ways[TWO_SUMS].note(*_two_sums(sites, mean, omega))
        best = ways[DENSE].errors[-1]
        for way in (LANCZOS, SKETCHES):
            run.check(way, abs(ways[way].errors[-1] - best), _ALLOWED)
        for way in (NARROW, TWO_SUMS):
            run.check(way, ways[way].errors[-1], _NEAR * best)
        run.tick()
    return ways


def _dense(run: Run, mean: Matrix, one: Factors) -> tuple[float, float, float]:
    _, site = timed(one.dense)
    made, server = timed(truncated_dense, mean.astype(np.float32), run.plan.means.rank)
    return server, site, distance(made, mean)


def _lanczos(run: Run, mean: Matrix) -> tuple[float, float, float]:
    start = np.random.default_rng(0).standard_normal(len(mean))
    (u, s, vt), server = timed(
        scipy.sparse.linalg.svds,
        mean.astype(np.float32).astype(np.float64),
        k=run.plan.means.rank,
        v0=start,
    )
    return server, 0.0, distance((u * s) @ vt, mean)


def _sketches(
    sites: list[Factors], mean: Matrix, public: Projections
) -> tuple[float, float, float]:
    rank = len(sites[0].a)
    _, site = timed(sketch, sites[0].b, sites[0].a, public)
    whole = stacked(sites)
    sent = sketch(whole.b, whole.a, public)
    y, z = sent.y.astype(np.float32), sent.z.astype(np.float32)
    found, server = timed(from_sketches, y, z, public, rank, tolerance=math.inf)
    return server, site, distance(found.factors, mean)


def _two_sums(
    sites: list[Factors], mean: Matrix, omega: Matrix
) -> tuple[float, float, float]:
    rank, one, whole = len(sites[0].a), sites[0], stacked(sites)
    _, first = timed(lambda: one.b @ (one.a @ omega))
    y = (whole.b @ (whole.a @ omega)).astype(np.float32)
    basis, finding = timed(column_basis, y)
    _, second = timed(project, basis, one.b, one.a)
    total = project(basis, whole.b, whole.a).astype(np.float32)
    made, cutting = timed(from_projection, basis, total, rank)
    return finding + cutting, first + second, distance(made, mean)
