"""Gradients of single records with respect to the trained parameters.

Two ways with one interface, ``gradients(loss, batch) -> [(n, *shape), ...]``:

``OpacusGradients``
    One forward and one backward pass; hooks turn each layer's activations and
    output gradients into one gradient per record. Exact for layers that have a
    rule, see ``preflight``. The way that studies train, but for
    the kinds of adapter that have layers without a rule.
``FunctionalGradients``
    ``torch.func``: the gradient of the loss of one record, vectorised over the
    records. It needs no rule for a layer, so that it is exact for DoRA, IA3 and
    prompt tuning too, but the model's code must be one that ``vmap`` can trace
    (with Transformers: ``attn_implementation="eager"``, and a four-dimensional
    attention mask for BERT-like models).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch
from opacus import GradSampleModule
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secfed.errors import TrainingError
from secfed.models import moved
from secfed.training.losses import RecordLoss

__all__ = ["FunctionalGradients", "OpacusGradients", "RecordGradients", "gradients_of"]

Batch = tuple[torch.Tensor, ...]

_LEFT_ON_PARAMETERS = (
    "grad_sample",
    "_current_grad_sample",
    "_forward_counter",
    "summed_grad",
)
_LEFT_ON_MODULES = ("activations", "max_batch_len", "autograd_grad_sample_hooks")


class RecordGradients(Protocol):
    """Computes per-record gradients; a context manager that cleans up after it."""

    def __enter__(self) -> Self:
        """Prepare the model."""
        ...

    def __exit__(self, *_: object) -> None:
        """Leave nothing of any record on the model, whatever happened."""
        ...

    def __call__(self, loss: RecordLoss, batch: Batch, /) -> list[torch.Tensor]:
        """One tensor per trained parameter, records first."""
        ...


class OpacusGradients:
    """Per-record gradients by Opacus' layer rules.

    Args:
        model: The module that the loss calls.
        parameters: The trained parameters by name, all of them inside ``model``.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter]
    ) -> None:
        self._model = model
        self._parameters = dict(parameters)
        self._wrapped: GradSampleModule | None = None
        self._quiet = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Add the hooks and switch to training mode."""
        self._quiet.enter_context(warnings.catch_warnings())
        # The lowest trained layer has no input that requires a gradient: expected.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        self._wrapped = GradSampleModule(self._model, loss_reduction="sum")
        self._wrapped.train()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the hooks and every per-record number, also after an exception.

        What Opacus leaves behind when a backward pass stops half-way would be
        added to the gradients of the next batch.
        """
        self._quiet.close()
        if self._wrapped is not None:
            self._wrapped.remove_hooks()
            self._wrapped = None
        for module in self._model.modules():
            _forget(module, _LEFT_ON_MODULES)
        for parameter in self._model.parameters():
            _forget(parameter, _LEFT_ON_PARAMETERS)
            parameter.grad = None
        self._model.eval()

    def __call__(self, loss: RecordLoss, batch: Batch) -> list[torch.Tensor]:
        """The gradients of ``loss(model, *batch)[i]`` for every record i.

        Raises:
            TrainingError: A layer did not see one row per record, or gave no
                gradient per record; the message names it.
        """
        if self._wrapped is None:
            raise TrainingError("per-record gradients were asked for outside `with`")
        count = len(batch[0])
        total = loss(self._wrapped, *moved(batch, self._model)).sum()
        self._require_rows(count)
        total.backward()  # type: ignore[no-untyped-call]
        return [
            self._take(name, parameter, count)
            for name, parameter in self._parameters.items()
        ]

    def _require_rows(self, count: int) -> None:
        """Every call of a trained layer had one row per record.

        PEFT's prompt tuning embeds its tokens once for the whole batch, and DoRA
        calls its factors with an identity matrix: both would be misattributed.
        """
        for name, module in self._model.named_modules():
            for inputs in vars(module).get("activations", ()):
                if len(inputs[-1]) != count:
                    raise TrainingError(
                        f"{name} ({type(module).__name__}) was called with "
                        f"{len(inputs[-1])} rows for {count} records, so its gradient "
                        "cannot be told apart by record; do not train this layer"
                    )

    def _take(self, name: str, parameter: nn.Parameter, count: int) -> torch.Tensor:
        """Take a parameter's gradients off it, so that none outlives its batch."""
        held: Any = parameter  # Opacus adds the attribute, None before a backward.
        found, held.grad_sample, held.grad = held.grad_sample, None, None
        if not isinstance(found, torch.Tensor) or len(found) != count:
            raise TrainingError(
                f"{name}: Opacus gave no gradient per record; its layer has no exact "
                "rule or takes no part in the loss"
            )
        return found


class FunctionalGradients:
    """Per-record gradients by ``torch.func``; for layers without a rule.

    Args:
        model: The module that the loss calls.
        parameters: The trained parameters by name, all of them inside ``model``.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter]
    ) -> None:
        self._model = model
        names = {id(p): name for name, p in model.named_parameters()}
        missing = [name for name, p in parameters.items() if id(p) not in names]
        if missing:
            raise TrainingError(f"not parameters of the model: {missing[:4]}")
        self._parameters = {names[id(p)]: p for p in parameters.values()}

    def __enter__(self) -> Self:
        """Switch to training mode."""
        self._model.train()
        return self

    def __exit__(self, *_: object) -> None:
        """Switch back; nothing was stored on the model."""
        self._model.eval()

    def __call__(self, loss: RecordLoss, batch: Batch) -> list[torch.Tensor]:
        """The gradients of ``loss(model, row of batch)`` for every row.

        Raises:
            TrainingError: ``vmap`` cannot trace the model's code.
        """

        def loss_of_one(
            parameters: dict[str, torch.Tensor], *record: torch.Tensor
        ) -> torch.Tensor:
            def network(*inputs: Any, **named: Any) -> Any:
                return torch.func.functional_call(
                    self._model, parameters, inputs, named
                )

            return loss(network, *(part[None] for part in record)).sum()

        of_all = torch.func.vmap(
            torch.func.grad(loss_of_one), in_dims=(None, *([0] * len(batch)))
        )
        try:
            # The fused kernels of attention have no rule for records of their own.
            with sdpa_kernel(SDPBackend.MATH):
                found = of_all(dict(self._parameters), *moved(batch, self._model))
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise TrainingError(
                "the model's code cannot be vectorised over records (torch.func): "
                f"{str(error).splitlines()[0][:200]}"
            ) from error
        return [found[name].detach() for name in self._parameters]


def gradients_of(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], *, by_rules: bool
) -> RecordGradients:
    """The way that is exact for what is trained; see the module.

    Args:
        model: The module that the loss calls.
        parameters: The trained parameters by name.
        by_rules: Whether every trained layer has an exact rule.
    """
    if by_rules:
        return OpacusGradients(model, parameters)
    return FunctionalGradients(model, parameters)


def _forget(owner: object, names: tuple[str, ...]) -> None:
    # Not getattr: PEFT's wrappers answer for the modules inside them.
    for name in names:
        vars(owner).pop(name, None)
