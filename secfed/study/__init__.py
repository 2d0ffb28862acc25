"""What a collaboration agreed on: the study file as one frozen, checked value."""

from __future__ import annotations

from secfed.study.data_sections import BUILTIN_SOURCES
from secfed.study.definition import Study, load_study, load_study_dict
from secfed.study.sections import METHODS, MIN_SITES, MIN_UNITS, REFUSED_METHODS

__all__ = [
    "BUILTIN_SOURCES",
    "METHODS",
    "MIN_SITES",
    "MIN_UNITS",
    "REFUSED_METHODS",
    "Study",
    "load_study",
    "load_study_dict",
]
