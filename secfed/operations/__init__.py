"""The operations log: what a security team sees of a site or a coordinator.

Lines of JSON with field names of the Elastic Common Schema, each naming the SHA-256 of
the one before. What can be said is a closed list (``kinds``): no record, no person, no
number of records, no free text.
"""

from secfed.operations.errors_as_events import ended, left
from secfed.operations.kinds import INCIDENTS, KINDS, Fields, UnknownEventError
from secfed.operations.log import LOG_NAME, OperationsLog
from secfed.operations.reading import Checked, Line, read_log, selected

__all__ = [
    "INCIDENTS",
    "KINDS",
    "LOG_NAME",
    "Checked",
    "Fields",
    "Line",
    "OperationsLog",
    "UnknownEventError",
    "ended",
    "left",
    "read_log",
    "selected",
]
