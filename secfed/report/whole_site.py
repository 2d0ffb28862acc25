"""The words of a report where the privacy unit is a whole site.

An epsilon of such a run speaks of the site, present or not. A person is protected
less: a change of their records can replace the whole update. Both are always said.
"""

from __future__ import annotations

from secfed.report.reading import RunRecord, below, promises
from secfed.report.tables import UNKNOWN, round_up

__all__ = ["beside_epsilon", "epsilon_of_a_person", "headline", "is_the_unit", "whom"]


def is_the_unit(record: RunRecord) -> bool:
    """Whether the study's unit is the site."""
    return bool(record.study_value("privacy", "unit") == "site")


def epsilon_of_a_person(record: RunRecord) -> float | None:
    """The worst stated epsilon of a person at one site."""
    told = (below(below(own, "of_a_person"), "epsilon") for own in promises(record))
    return max((float(e) for e in told if isinstance(e, int | float)), default=None)


def headline(record: RunRecord, place: str, worst: float) -> str:
    """The report's first sentence; ``worst`` is for a site as a whole."""
    return (
        f"Each single person in the training data of {place} is protected with epsilon "
        f"at most {_shown(record)} in each private arm, and each site as a whole with "
        f"epsilon at most {round_up(worst)}."
    )


def whom(record: RunRecord, place: str, everywhere: str) -> str:
    """Who is protected; ``everywhere`` is what someone at all sites is told."""
    return (
        f"One whole site, by declaration of the study: each of {place}, with all its "
        "records, as if its updates were missing. One person is protected less, "
        "because a change of their records can replace a whole update: epsilon "
        f"{_shown(record)}. A person who is at several sites is protected less "
        f"again{everywhere}."
    )


def beside_epsilon(record: RunRecord) -> str | None:
    """What stands beside a table of epsilons; None for other units."""
    if not is_the_unit(record):
        return None
    return (
        "Epsilon of an arm is for a site as a whole. For any change of one person's "
        f"records it is {_shown(record)} at the worst site, and that is what budgets "
        "are charged."
    )


def _shown(record: RunRecord) -> str:
    epsilon = epsilon_of_a_person(record)
    return UNKNOWN if epsilon is None else round_up(epsilon)
