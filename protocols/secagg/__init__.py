"""Secure summation: the server learns a sum of vectors and nothing else.

Bonawitz et al., CCS 2017, malicious-server variant, complete graph. The phases
are ``advertise-keys``, ``share-keys``, ``masked-input``, ``confirm-survivors``
and ``unmask``; ``client`` and ``server`` hold the two roles in time order.
"""
