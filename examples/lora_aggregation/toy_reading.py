"""What the toy's numbers say, in sentences computed from them.

A method is called better, or worse than zero, at a rank where the 95 % interval
of the paired difference of squared errors lies on one side of 0. That is one
interval per rank and noise, on the same draws, without correction for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from result_files import figures, markdown_table, spans

__all__ = ["NAMES", "order", "reading", "table", "worse_than_zero"]

NAMES: Final[Mapping[str, str]] = {
    "fedavg": "FedAvg of factors",
    "reconstruction": "reconstruction",
    "untruncated": "reconstruction, not truncated",
    "aligned": "FedAvg after Procrustes alignment",
}
FEDAVG, OTHER, UNDECIDED = "FedAvg", "reconstruction", "undecided"


def reading(found: Mapping[str, Any]) -> list[str]:
    """One paragraph per noise, then what holds for all of them."""
    return [
        *(_level(level, found["setup"]) for level in found["levels"]),
        _between(found),
        _alignment(found),
        _aim(found),
        _exact(found),
        _signs(found),
    ]


def order(level: Mapping[str, Any], other: str) -> list[str]:
    """Per rank: who errs less, FedAvg or the method ``other``."""
    return [_side(row) for row in level["fedavg minus"][other]]


def _side(row: Sequence[float]) -> str:
    _, low, high = row
    if low > 0:
        return OTHER
    return FEDAVG if high < 0 else UNDECIDED


def worse_than_zero(level: Mapping[str, Any], method: str) -> list[int]:
    """The ranks at which a method is worse than predicting zero."""
    rows = level["methods"][method]["minus zero"]
    return [rank for rank, (_, low, _) in enumerate(rows, start=1) if low > 0]


def _level(level: Mapping[str, Any], setup: Mapping[str, Any]) -> str:
    return (
        f"Noise {level['noise']:g}. {_crossing_words(level, 'reconstruction', setup)} "
        f"{_same_without_cut(level, setup)} {_zero_words(level, setup)}"
    )


def _same_without_cut(level: Mapping[str, Any], setup: Mapping[str, Any]) -> str:
    if order(level, "untruncated") == order(level, "reconstruction"):
        return "The same holds without the cut to rank r at the server."
    words = _crossing_words(level, "untruncated", setup)
    return f"Without the cut to rank r at the server: {words}"


def _crossing_words(
    level: Mapping[str, Any], other: str, setup: Mapping[str, Any]
) -> str:
    """Who is better at which ranks, and whether the two curves cross."""
    runs = _runs(order(level, other))
    last = setup["size"]
    if len(runs) == 1:
        (winner, _, _) = runs[0]
        if winner == UNDECIDED:
            return f"No rank from 1 to {last} shows a difference."
        loser = OTHER if winner == FEDAVG else FEDAVG
        return (
            f"{_capital(winner)} errs less than {loser} at every rank from 1 to "
            f"{last}: the curves do not cross."
        )
    parts = [f"{name} at {_ranks(range(a, b + 1), last)}" for name, a, b in runs]
    decided = [run for run in runs if run[0] != UNDECIDED]
    meetings = [
        f"between rank {one[2]} and {two[1]}"
        for one, two in pairwise(decided)
        if one[0] != two[0]
    ]
    ending = f"cross {' and '.join(meetings)}" if meetings else "are not seen to cross"
    return f"Who errs less: {', '.join(parts)}. The curves {ending}."


def _runs(winners: Sequence[str]) -> list[tuple[str, int, int]]:
    """Neighbouring ranks with one winner: (winner, first rank, last rank)."""
    runs: list[tuple[str, int, int]] = []
    for rank, winner in enumerate(winners, start=1):
        if runs and runs[-1][0] == winner:
            runs[-1] = (winner, runs[-1][1], rank)
        else:
            runs.append((winner, rank, rank))
    return runs


def _zero_words(level: Mapping[str, Any], setup: Mapping[str, Any]) -> str:
    worse = {name: worse_than_zero(level, name) for name in NAMES}
    everywhere = len(setup["ranks"])
    if all(len(ranks) == everywhere for ranks in worse.values()):
        return "Every method is worse than predicting zero at every rank."
    if not any(worse.values()):
        return "No method is worse than predicting zero at any rank."
    parts = [
        f"{NAMES[name]} at {_ranks(ranks, everywhere)}"
        for name, ranks in worse.items()
        if ranks
    ]
    return f"Worse than predicting zero: {'; '.join(parts)}."


def _ranks(ranks: Sequence[int], everywhere: int) -> str:
    if len(ranks) == everywhere:
        return "every rank"
    return f"rank{'s' if len(ranks) > 1 else ''} {spans(ranks)}"


def _between(found: Mapping[str, Any]) -> str:
    """Where the curves cross if the noise moves and the rank stays."""
    scan = found["crossings"]["noises"]
    parts = []
    for row in found["crossings"]["by rank"]:
        cross = row["curves cross"]
        if cross is None:
            parts.append(f"rank {row['rank']}: not exactly once")
            continue
        noise, low, high = cross
        words = f"rank {row['rank']}: noise {noise:.2f} [{low:.2f}, {high:.2f}]"
        parts.append(f"{words}, error {figures(row['rms there'])}{_window(row)}")
    return (
        "Between the noises. With the rank held and the noise moved from "
        f"{scan[0]:g} to {scan[-1]:g}, reconstruction is ahead below and FedAvg "
        f"above: {'; '.join(parts)}. Zero errs by "
        f"{figures(found['levels'][0]['exact']['zero'])}."
    )


def _window(row: Mapping[str, Any]) -> str:
    """Up to which noise FedAvg, once ahead, is better than zero, too."""
    meets = row["fedavg meets zero"]
    if meets is None:
        return ""
    if meets[0] <= row["curves cross"][0]:
        return ", where FedAvg is already worse than zero"
    return f" (FedAvg is worse than zero from noise {meets[0]:.2f} on)"


def _alignment(found: Mapping[str, Any]) -> str:
    """What turning the factors towards each other does to FedAvg."""
    rank = found["setup"]["inherent_rank"]
    parts = []
    for level in found["levels"]:
        mean = _rms_of("aligned", rank)(level)
        fedavg = _rms_of("fedavg", rank)(level)
        other = _rms_of("reconstruction", rank)(level)
        parts.append(
            f"noise {level['noise']:g}: {figures(mean)} (FedAvg {figures(fedavg)}, "
            f"reconstruction {figures(other)})"
        )
    return (
        f"Alignment. FedAvg of aligned factors errs at rank {rank}: {'; '.join(parts)}."
    )


def _aim(found: Mapping[str, Any]) -> str:
    """Whether the method with less error also points closer to W."""
    parts = []
    for level in found["levels"]:
        methods = level["methods"]
        cosines = [methods[name]["cosine"][-1] for name in ("fedavg", "reconstruction")]
        parts.append("noise {:g}: {:.2f} and {:.2f}".format(level["noise"], *cosines))
    return (
        f"Direction. Cosine with W at rank {found['setup']['size']}, FedAvg and "
        f"reconstruction: {'; '.join(parts)}. An update with the smaller cosine and "
        "the smaller error is shorter, not better aimed."
    )


def _exact(found: Mapping[str, Any]) -> str:
    """The simulated error of untruncated reconstruction beside the exact one."""
    parts = []
    for level in found["levels"]:
        mean, low, high = level["methods"]["untruncated"]["rms"][-1]
        exact = level["exact"]["untruncated"]
        inside = "inside" if low <= exact <= high else "OUTSIDE"
        parts.append(
            f"noise {level['noise']:g}: {figures(mean)} against {figures(exact)} "
            f"({inside} the interval)"
        )
    return (
        "Exact error. Reconstruction without the cut, at every rank from "
        f"{found['setup']['inherent_rank']} on: {'; '.join(parts)}."
    )


def _signs(found: Mapping[str, Any]) -> str:
    parts = []
    for level in found["levels"]:
        rules = level["fedavg by signs"].items()
        words = ", ".join(f"{figures(value)} {name}" for name, value in rules)
        parts.append(f"noise {level['noise']:g}: {words}")
    return (
        "Signs. The signs of singular vectors are arbitrary, and FedAvg of such "
        "factors depends on them. Its error at rank "
        f"{found['setup']['inherent_rank']}: {'; '.join(parts)}."
    )


def table(found: Mapping[str, Any]) -> str:
    """RMS errors at the inherent rank and at full rank, as Markdown."""
    inherent, full = found["setup"]["inherent_rank"], found["setup"]["size"]
    headings = ["error", *(f"noise {level['noise']:g}" for level in found["levels"])]
    rows = [
        _row(f"{name}, rank {rank}", found, _rms_of(key, rank))
        for key, name in NAMES.items()
        for rank in (inherent, full)
        if rank == inherent or key == "reconstruction"
    ]
    exact = ("untruncated", "fedavg in a shared basis", "zero")
    rows += [_row(f"exact: {key}", found, _exact_of(key)) for key in exact]
    return markdown_table(headings, rows)


def _rms_of(method: str, rank: int) -> Callable[[Mapping[str, Any]], float]:
    return lambda level: float(level["methods"][method]["rms"][rank - 1][0])


def _exact_of(key: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda level: float(level["exact"][key])


def _row(
    name: str, found: Mapping[str, Any], value: Callable[[Mapping[str, Any]], float]
) -> list[str]:
    return [name, *(figures(value(level)) for level in found["levels"])]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
