"""From a study's data section to the records of every site and a public test set."""

from __future__ import annotations

from secfed.data.loading import StudyData, fingerprint, load_sites

__all__ = ["StudyData", "fingerprint", "load_sites"]
