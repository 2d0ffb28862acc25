"""Hours of the week in which a site takes part: ``mon-fri 20:00-06:00``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

__all__ = ["Hours", "parse_hours", "parse_zone"]

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY: Final = timedelta(days=1)
_LAST_MINUTE: Final = 24 * 60
_FORM: Final = re.compile(
    r"(?P<first>[a-z]{3})(-(?P<last>[a-z]{3}))? "
    r"(?P<begin>\d\d:\d\d)-(?P<end>\d\d:\d\d)"
)


@dataclass(frozen=True)
class Hours:
    """Some days, and minutes since midnight; an end before the begin is next day's.

    The begin is inside, the end outside. A span belongs to the day it begins on.
    """

    days: frozenset[int]
    begin: int
    end: int

    def hold(self, local: datetime) -> bool:
        """Whether a moment, as the clock on the wall shows it, is inside."""
        minute = local.hour * 60 + local.minute
        today, yesterday = local.weekday(), (local - _DAY).weekday()
        if self.begin < self.end:
            return today in self.days and self.begin <= minute < self.end
        late = today in self.days and minute >= self.begin
        return late or (yesterday in self.days and minute < self.end)


def parse_hours(text: str) -> Hours:
    """Read ``mon-fri 20:00-06:00`` or ``sun 00:00-24:00``.

    Raises:
        ValueError: It is not written like that.

    >>> parse_hours("sat-sun 00:00-24:00").end
    1440
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not like 'mon-fri 20:00-06:00'")
    first, last = _day(found["first"]), _day(found["last"] or found["first"])
    span = (last - first) % len(_DAYS)
    days = frozenset((first + n) % len(_DAYS) for n in range(span + 1))
    begin, end = _minute(found["begin"]), _minute(found["end"])
    if begin in {end, _LAST_MINUTE}:
        raise ValueError(f"{text!r} has no length; a whole day is 00:00-24:00")
    return Hours(days, begin, end)


def parse_zone(name: str) -> ZoneInfo:
    """The time zone of a name like ``Europe/Berlin`` or ``UTC``.

    Raises:
        ValueError: This machine knows no such zone.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"no time zone {name!r} on this machine") from error


def _day(name: str) -> int:
    if name not in _DAYS:
        raise ValueError(f"{name!r} is none of {', '.join(_DAYS)}")
    return _DAYS.index(name)


def _minute(text: str) -> int:
    hour, minute = map(int, text.split(":"))
    total = 60 * hour + minute
    if minute >= 60 or total > _LAST_MINUTE:  # noqa: PLR2004 - minutes of an hour
        raise ValueError(f"{text} is no time of a day")
    return total
