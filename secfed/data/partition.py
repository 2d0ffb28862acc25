"""Which records are held out, and which site holds the others.

All draws are public and repeatable. They are bound to units, so that the records
of one person stay together.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfed.data.records import RecordTable, stable_uniforms
from secfed.errors import DataError
from secfed.study.data_sections import DataSection, PartitionSection
from secfed.study.reading import nearest

__all__ = ["assign_sites", "at_most", "cap_units", "split_holdout", "without_groups_of"]

_MIN_DIRICHLET_UNITS = 10


def split_holdout(
    table: RecordTable, fraction: float, seed: int
) -> tuple[RecordTable, RecordTable]:
    """Training and held-out records.

    Guarantees:
        No group is on both sides, and neither is a person: where a person has
        records in a held-out group, the others are not used for training.
    """
    names = sorted(set(table.groups))
    draws = stable_uniforms(seed, "holdout", names)
    held = {name for name, draw in zip(names, draws, strict=True) if draw < fraction}
    outside = np.array([group in held for group in table.groups], dtype=np.bool_)
    if table.units:
        tested = {u for u, out in zip(table.units, outside, strict=True) if out}
        inside = np.array([unit not in tested for unit in table.units], dtype=np.bool_)
    else:
        inside = ~outside
    if not inside.any() or not outside.any():
        raise DataError(
            f"data.holdout.fraction {fraction:g} leaves one side empty: "
            "the data have too few groups"
        )
    return table.select(np.flatnonzero(inside)), table.select(np.flatnonzero(outside))


def without_groups_of(table: RecordTable, test: RecordTable) -> RecordTable:
    """The records that have no group and no person in a given test set.

    Whether a record stays depends on it and on the public test set alone.

    Raises:
        DataError: None stays.
    """
    groups, units = set(test.groups), set(test.units)
    inside = np.array([group not in groups for group in table.groups], dtype=np.bool_)
    if table.units:
        inside &= np.array([unit not in units for unit in table.units], dtype=np.bool_)
    if not inside.any():
        raise DataError("data.holdout.source holds every training record")
    return table.select(np.flatnonzero(inside))


def at_most(
    table: RecordTable, max_records: int | None, seed: int, purpose: str
) -> RecordTable:
    """A subsample without replacement, in the order of the source.

    Adding one record displaces at most one other. Meant for public data: what
    is cut here is not part of any site's data set.
    """
    if max_records is None or len(table) <= max_records:
        return table
    draws = stable_uniforms(seed, purpose, table.record_keys())
    return table.select(np.sort(np.argsort(draws, kind="stable")[:max_records]))


def cap_units(table: RecordTable, max_records_per_unit: int, seed: int) -> RecordTable:
    """At most so many records per unit.

    Guarantees:
        Which records of a unit are kept depends on that unit's records alone.
    """
    if not table.units:
        return table
    draws = stable_uniforms(seed, "cap", table.record_keys())
    kept: list[int] = []
    taken: dict[str, int] = {}
    for row in np.argsort(draws, kind="stable").tolist():
        unit = table.units[row]
        taken[unit] = taken.get(unit, 0) + 1
        if taken[unit] <= max_records_per_unit:
            kept.append(row)
    return table.select(np.sort(np.array(kept, dtype=np.int64)))


def assign_sites(
    table: RecordTable, section: DataSection
) -> Mapping[str, NDArray[np.int64]]:
    """The rows of every site, in the order of the study's list of sites."""
    partition = section.partition
    if partition.kind == "natural":
        number = {site: index for index, site in enumerate(partition.sites)}
        owner = np.array([number[site] for site in table.sites], dtype=np.int64)
    else:
        keys = table.unit_keys()
        units = sorted(set(keys))
        index = {unit: position for position, unit in enumerate(units)}
        position_of = np.array([index[key] for key in keys], dtype=np.int64)
        # A person with several labels goes where the label of one record says.
        label_of = np.zeros(len(units), dtype=np.int64)
        label_of[position_of[::-1]] = table.labels[::-1]
        divide = _DIVIDE[partition.kind]
        owner = divide(units, label_of, table.label_names, partition, section.seed)
        owner = owner[position_of]
    return {
        site: np.flatnonzero(owner == index)
        for index, site in enumerate(partition.sites)
    }


def _home(
    units: Sequence[str],
    label_of: NDArray[np.int64],
    label_names: tuple[str, ...],
    partition: PartitionSection,
    seed: int,
) -> NDArray[np.int64]:
    """Home site with probability ``home_share``, else one of the other sites."""
    num_sites, share = len(partition.sites), partition.home_share or 0.0
    home_of = np.full(len(label_names), -1, dtype=np.int64)
    for index, site in enumerate(partition.sites):
        for label in (partition.home or {}).get(site, ()):
            if label not in label_names:
                raise DataError(
                    f"data.partition.home: unknown label {label!r}; "
                    f"{nearest(label, label_names)}"
                )
            home_of[label_names.index(label)] = index
    home = home_of[label_of]
    draws = stable_uniforms(seed, "home", units)
    # The same draw decides both: given that it is at or above the share, its
    # position there is uniform again.
    rest = (draws - share) / (1.0 - share) if share < 1.0 else np.zeros_like(draws)
    other = np.minimum((rest * (num_sites - 1)).astype(np.int64), num_sites - 2)
    away = other + (other >= home)  # skips the home site
    anywhere = np.minimum((draws * num_sites).astype(np.int64), num_sites - 1)
    return np.where(home < 0, anywhere, np.where(draws < share, home, away))


def _dirichlet(
    units: Sequence[str],
    label_of: NDArray[np.int64],
    label_names: tuple[str, ...],
    partition: PartitionSection,
    seed: int,
) -> NDArray[np.int64]:
    """Shares of every label drawn from Dirichlet(alpha) (Yurochkin et al., 2019).

    ``alpha`` 0 is the limit in which a label is at one site only.
    """
    if partition.alpha == 0:
        return _by_label(units, label_of, label_names, partition, seed)
    num_sites = len(partition.sites)
    alpha = partition.alpha or 0.0
    try:
        return _divided(
            lambda partitioner: partitioner.DirichletPartitioner(
                num_partitions=num_sites,
                partition_by="label",
                alpha=alpha,
                min_partition_size=_MIN_DIRICHLET_UNITS,
                seed=seed,
            ),
            np.arange(len(units)),
            label_of,
            num_sites,
        )
    except ValueError as error:
        raise DataError(
            f"data.partition: no Dirichlet draw with alpha {alpha:g} gives all "
            f"{num_sites} sites {_MIN_DIRICHLET_UNITS} units; raise alpha"
        ) from error


def _by_label(
    units: Sequence[str],
    label_of: NDArray[np.int64],
    label_names: tuple[str, ...],
    partition: PartitionSection,
    seed: int,
) -> NDArray[np.int64]:
    """Labels dealt to sites round robin, in the order of the classes.

    Label l is at site l mod n. Where there are fewer labels than sites, sites are
    dealt to labels instead: site j holds a share of label j mod L, so that every
    site has one label and every label is divided evenly among its sites.
    """
    num_sites, num_labels = len(partition.sites), len(label_names)
    first = label_of % num_sites
    sharing = np.maximum(1, -(-(num_sites - first) // num_labels))
    draws = stable_uniforms(seed, "category", units)
    which = np.minimum((draws * sharing).astype(np.int64), sharing - 1)
    return np.asarray(first + which * num_labels, dtype=np.int64)


def _iid(
    units: Sequence[str],
    label_of: NDArray[np.int64],
    _label_names: tuple[str, ...],
    partition: PartitionSection,
    seed: int,
) -> NDArray[np.int64]:
    """Equal parts of the units in a public random order."""
    num_sites = len(partition.sites)
    return _divided(
        lambda partitioner: partitioner.IidPartitioner(num_partitions=num_sites),
        _shuffled(units, seed, "iid"),
        label_of,
        num_sites,
    )


def _size(
    units: Sequence[str],
    label_of: NDArray[np.int64],
    _label_names: tuple[str, ...],
    partition: PartitionSection,
    seed: int,
) -> NDArray[np.int64]:
    """Parts in proportion to ``shares`` of the units in a public random order."""
    weights = np.array([(partition.shares or {})[site] for site in partition.sites])
    ends = np.rint(np.cumsum(weights) / weights.sum() * len(units)).astype(int)
    sizes = np.diff(ends, prepend=0).tolist()
    if min(sizes) < 1:
        starved = partition.sites[sizes.index(min(sizes))]
        raise DataError(f"data.partition.shares: {starved!r} would get no unit")
    return _divided(
        lambda partitioner: partitioner.SizePartitioner(sizes),
        _shuffled(units, seed, "size"),
        label_of,
        len(sizes),
    )


def _shuffled(units: Sequence[str], seed: int, purpose: str) -> NDArray[np.int64]:
    # The partitioners cut the order that they are given into pieces.
    return np.argsort(stable_uniforms(seed, purpose, units), kind="stable")


def _divided(
    make: Callable[[Any], Any],
    order: NDArray[np.int64],
    label_of: NDArray[np.int64],
    num_sites: int,
) -> NDArray[np.int64]:
    """The owner of every unit, as a partitioner of flwr-datasets divides them.

    Args:
        make: Makes the partitioner from ``flwr_datasets.partitioner``.
        order: The units in the order in which the partitioner sees them.
        label_of: The label of every unit.
        num_sites: How many parts there are.

    Raises:
        ValueError: The partitioner finds no division.
    """
    # Read when the library is first imported: nothing may call home.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets  # noqa: PLC0415 (two seconds that other partitions need not pay)
    from flwr_datasets import partitioner  # noqa: PLC0415

    divider = make(partitioner)
    divider.dataset = datasets.Dataset.from_dict(
        {"label": label_of[order].tolist(), "position": order.tolist()}
    )
    owner = np.zeros(len(order), dtype=np.int64)
    with warnings.catch_warnings():
        # One of them warns at every retry; its last failure is an error.
        warnings.simplefilter("ignore", UserWarning)
        for index in range(num_sites):
            owner[list(divider.load_partition(index)["position"])] = index
    return owner


_DIVIDE = {"home": _home, "dirichlet": _dirichlet, "iid": _iid, "size": _size}
