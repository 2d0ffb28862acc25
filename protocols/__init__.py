"""Cryptographic protocols: bytes and integers only.

Nothing in this package opens files or sockets, reads a clock, logs, or draws
randomness from the system: randomness and time are arguments.
"""
