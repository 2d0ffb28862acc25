"""How many records of every class a site has: kept at the site, never released."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from secfed.canonical import canonical_json
from secfed.runtime.directory import write_atomically
from secfed.training import PrivateRecords

__all__ = ["CLASSES_NAME", "keep_classes"]

CLASSES_NAME = "classes.json"


def keep_classes(
    records: Mapping[str, PrivateRecords],
    label_names: tuple[str, ...],
    private_dir: Path,
) -> None:
    """Write ``classes.json`` into every site's own folder, for its operator's eyes.

    The counts are private numbers: no manifest names the file, nothing is computed
    from it, and a site that releases them releases them without noise. Records without
    classes have none.
    """
    if not label_names:
        return
    for site, own in records.items():
        counts = np.bincount(own.labels, minlength=len(label_names)).tolist()
        folder = private_dir / "sites" / site
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        value = {"format": 1, "records": dict(zip(label_names, counts, strict=True))}
        write_atomically(folder / CLASSES_NAME, canonical_json(value) + b"\n")
        (folder / CLASSES_NAME).chmod(0o600)
