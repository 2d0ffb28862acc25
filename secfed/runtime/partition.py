"""Which rows went to which site: kept with the run, and never released.

The rows of a site say how many records it has, and with the source at hand which.
So the file stands in the run's private folder, which no manifest names.
"""

from __future__ import annotations

from pathlib import Path

from secfed.canonical import canonical_json
from secfed.data import load_sites
from secfed.runtime.directory import write_atomically
from secfed.study import Study

__all__ = ["PARTITION_NAME", "keep_partition"]

PARTITION_NAME = "partition.json"


def keep_partition(study: Study, base_dir: Path, private_dir: Path) -> Path:
    """Write ``private/partition.json``, unless an earlier call did.

    It holds the study's ``[data.partition]``, its seed, and for every site and the
    test set the rows of the source, counted from 1 and without a header.

    Raises:
        DataError: The records do not fit the study.
    """
    path = private_dir / PARTITION_NAME
    if path.exists():
        return path
    data = load_sites(study, base_dir)
    canonical = study.canonical()["data"]
    value = {
        "format": 1,
        "source": study.data.source,
        "seed": study.data.seed,
        "partition": canonical["partition"],
        "sites": {site: list(rows) for site, rows in data.rows.items()},
        "holdout": list(data.holdout_rows),
    }
    write_atomically(path, canonical_json(value) + b"\n")
    path.chmod(0o600)
    return path
