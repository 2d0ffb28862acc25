"""Sums of products to sketch, and how far a result is from them."""

from __future__ import annotations

import hashlib

import numpy as np

from secfed.lowrank import Sketch

SEED = hashlib.sha256(b"a round").digest()
UNEQUAL = [1, 5, 2, 8, 3]


def sites(ranks, d, k, seed=0):
    rng = np.random.default_rng([seed, d, k, *ranks])
    return [(rng.standard_normal((d, r)), rng.standard_normal((r, k))) for r in ranks]


def dense(parts):
    return sum(b @ a for b, a in parts)


def summed(sketches):
    return Sketch(sum(s.y for s in sketches), sum(s.z for s in sketches))


def relative(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
