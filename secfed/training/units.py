"""From gradients of records to the clipped sum over privacy units."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from secfed.privacy.clipping import Clipping

__all__ = ["clipped_sums", "unit_means"]

_BLOCK_NUMBERS = 1 << 20  # 8 MB of doubles at a time.
_SMALL_FACTOR = 2.0**-64
_SCALE = 2.0**-80


def unit_means(
    samples: Sequence[torch.Tensor], unit_of_row: torch.Tensor
) -> list[torch.Tensor]:
    """Average the gradients of each unit's records, tensor by tensor.

    Args:
        samples: Per trained tensor the records' gradients, (rows, *shape).
        unit_of_row: (rows,), numbers 0..units-1, each of which occurs.

    Returns:
        Per trained tensor a float32 matrix (units, numbers).
    """
    rows = [sample.reshape(len(sample), -1).float() for sample in samples]
    units = int(unit_of_row.max()) + 1
    order = torch.arange(units, device=unit_of_row.device)
    if torch.equal(unit_of_row, order):  # Every record is its own unit.
        return rows
    counts = torch.bincount(unit_of_row, minlength=units)[:, None]
    return [
        torch.zeros(units, row.shape[1], device=row.device).index_add_(
            0, unit_of_row.to(row.device), row
        )
        / counts.to(row.device)
        for row in rows
    ]


def clipped_sums(
    gradients: Sequence[torch.Tensor], clipping: Clipping
) -> list[torch.Tensor]:
    """Bound every unit's contribution by the plan's rule, and add them up.

    Guarantees:
        For one unit, the norm of all returned tensors together is at most
        ``clipping.sensitivity``, whatever the gradients are. A unit with a number
        that is not finite contributes exactly zero, and the contributions of the
        others are the same as without it.

    Args:
        gradients: Per trained tensor a float32 matrix (units, numbers).
        clipping: The plan's rule.

    Returns:
        Per trained tensor the sum over units, (numbers,).
    """
    # 1. A norm is finite exactly if all of its numbers are.
    norms = torch.stack([_row_norms(gradient) for gradient in gradients], dim=1)
    factors = torch.from_numpy(clipping.factors(norms.numpy(force=True)))
    broken = ~torch.isfinite(norms).all(dim=1)
    # 2. A sum of products, without a copy of the gradients.
    return [
        _weighted_sum(gradient, factors[:, i].to(gradient.device), broken)
        for i, gradient in enumerate(gradients)
    ]


def _row_norms(rows: torch.Tensor) -> torch.Tensor:
    """Norms in double precision: float32 squares overflow above 1.8e19."""
    block = max(1, _BLOCK_NUMBERS // max(rows.shape[1], 1))
    parts = [part.double().norm(dim=1) for part in torch.split(rows, block)]
    return torch.cat(parts) if parts else rows.new_zeros(0, dtype=torch.float64)


def _weighted_sum(
    rows: torch.Tensor, factors: torch.Tensor, broken: torch.Tensor
) -> torch.Tensor:
    """``factors @ rows`` in float32, also for rows that are broken or huge."""
    if bool(broken.any()):  # Replaced, not multiplied: zero times NaN is NaN.
        rows = torch.where(broken[:, None], torch.zeros_like(rows), rows)
    small = (factors < _SMALL_FACTOR) & ~broken
    if bool(small.any()):
        # As subnormal float32 numbers they would lose their precision, and with it
        # the bound. A power of two moves from the factors to the rows instead.
        rows = torch.where(small[:, None], rows * _SCALE, rows)
        factors = torch.where(small, factors / _SCALE, factors)
    total: torch.Tensor = factors.float() @ rows
    return total
