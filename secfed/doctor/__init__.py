"""What would stop a run on this machine, found before it starts.

A check is a small function that returns one :class:`Finding`. ``findings`` says what
that is, ``versions`` and ``machine`` look at this computer, ``network`` at the way to
a coordinator, ``held`` at what a study needs: model, records, keys. ``examine`` knows
which of them belong together, at a site of a deployment and at home.

Guarantees:
    no finding holds a record's text, a count of records or a secret; only the
    coordinator's address is contacted, and only at a site of a deployment; nothing
    is spent, and nothing is written.
"""

from secfed.doctor.findings import Finding

__all__ = ["Finding"]
