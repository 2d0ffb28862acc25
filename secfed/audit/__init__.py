"""The empirical audit: an attempt to refute what a privacy plan claims.

Three parts. (A) ``conformance``: invented records through the functions that train,
checked number by number. (B) ``dirac``: gradient canaries in a copy of the run, held
against the whole claimed trade-off curve. (C) ``data_canaries``: records as canaries
and membership inference on the copy's adapter. ``run`` puts them together.

``curves``, ``refutation``, ``one_run``, ``mechanism``, ``laws``, ``membership`` and
``findings`` are statistics and need no PyTorch. An audit runs on a simulation or at a
site, on a copy of the pipeline (``rehearsal``), and never writes into a run. Not
refuted is not private.
"""
