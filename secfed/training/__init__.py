"""One site's local training in one round; the only package that touches Opacus.

DP-SGD (Abadi et al., CCS 2016, algorithm 1) on privacy units: Opacus computes
per-record gradients; they are averaged within a unit, clipped by the plan's rule,
summed over the Poisson batch, noised by the plan and divided by the public
expected batch.

Guarantees, for a plan that the caller charged before calling:
    the update depends on one unit's records only through ``steps`` releases of
    the Poisson-subsampled Gaussian mechanism of the plan;
    an empty batch is a noise-only step; a large batch is split into micro-batches
    whose sum is the same;
    a unit whose gradient is not finite contributes zero and nobody else's
    contribution changes (PITFALLS 14a);
    a model with a layer for which this does not hold is refused by the layer's
    name before the first step.

One idea per file, in the order in which a round meets them: ``preflight`` (which
layers are refused), ``records`` (what a site holds, and its micro-batches),
``losses`` (one number per record) and ``distillation`` (a teacher's or a mentor's part
of it), ``gradients`` (one gradient per record), ``selftest`` (records do not influence
each other), ``units`` (from records to clipped units), ``local_steps`` (which tensors a
step moves), ``steps`` (the loop), ``replay`` and ``plain`` (what simulations compare
with), ``whole_site`` (another privacy unit: the update of the round).
"""

from secfed.training.distillation import (
    DistillationLoss,
    DistilledRecords,
    MutualLoss,
    PairedRecords,
    soft_targets,
)
from secfed.training.gradients import FunctionalGradients, OpacusGradients
from secfed.training.local_steps import LocalSteps
from secfed.training.losses import (
    AnswerLoss,
    CausalLoss,
    ClassificationLoss,
    RecordLoss,
    causal_lm,
    classification,
)
from secfed.training.plain import train_without_privacy
from secfed.training.preflight import preflight
from secfed.training.ranks import narrow, widened
from secfed.training.records import (
    HeldBack,
    PrivateRecords,
    TokenRecords,
    pooled_records,
)
from secfed.training.selftest import check_independence
from secfed.training.steps import LocalUpdate, train_privately
from secfed.training.whole_site import train_whole_site

__all__ = [
    "AnswerLoss",
    "CausalLoss",
    "ClassificationLoss",
    "DistillationLoss",
    "DistilledRecords",
    "FunctionalGradients",
    "HeldBack",
    "LocalSteps",
    "LocalUpdate",
    "MutualLoss",
    "OpacusGradients",
    "PairedRecords",
    "PrivateRecords",
    "RecordLoss",
    "TokenRecords",
    "causal_lm",
    "check_independence",
    "classification",
    "narrow",
    "pooled_records",
    "preflight",
    "soft_targets",
    "train_privately",
    "train_whole_site",
    "train_without_privacy",
    "widened",
]
