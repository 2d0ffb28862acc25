"""The privacy statement: what a run promises, to whom, and what it does not.

It is computed from the ledger alone (plan and rounds) and the study, so that
anyone can compute its numbers again. What nobody measured is printed UNKNOWN;
nothing is filled in from what was intended.

Sections of the JSON object, all always present:

=======================  =====================================================
``headline, private``    the answer in one sentence, and as a boolean
``study``                name, title, method and digest
``guarantee``            what is promised to whom: unit, neighbours, delta, limit
``sites``                per site the cost of the steps as executed
``across_sites``         the composed cost for someone present at every site
``accountant``           who computed it, and by what second method
``trust``                each party: what it sees and what it does not
``composition``          earlier studies and tuning
``unprotected``          quantities that leave without a guarantee
``hazards``              generator and floating point
``execution``            where it ran; a simulation seed means NOT PRIVATE
``self_test``            the independence check before the first step
``empirical_lower_bound``  from an audit
``utility``              scores on the public hold-out, by subgroup where there are any
``provenance, limits``   what it was made from; what it cannot say
=======================  =====================================================

A study that distils a teacher adds ``teacher``: who it is and what it cost. Where a
study names earlier runs on private records, its private teacher or those by which its
settings were chosen, every site has ``with_named_runs``: their cost and this run's,
composed.

A study with ``[evaluation]`` has a section ``evaluation`` more: what was released of
held-back records, with which bound and noise, and the scores with their intervals.
"""

from __future__ import annotations

from secfed.statement.build import (
    NOT_PRIVATE,
    StatementContext,
    build_statement,
    promised,
)
from secfed.statement.costs import UNKNOWN, round_event_json

__all__ = [
    "NOT_PRIVATE",
    "UNKNOWN",
    "StatementContext",
    "build_statement",
    "promised",
    "round_event_json",
]
