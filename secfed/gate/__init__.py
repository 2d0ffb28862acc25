"""The release gate: from a finished run to a folder that two people signed.

``candidate`` makes a request, ``requirements`` says what it has to meet, ``sealing``
takes approvals and signs what met everything, and ``verification`` checks the result
offline. Nothing here needs PyTorch.
"""
