"""Which layers cannot be trained privately; asked before the first step.

A layer is refused by name where per-record gradients would not be exact, or
where one record's activations reach another's: then clipping bounds nobody.
What a list of layers cannot know, such as a mean over the batch inside a forward
method, the self-test finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import nn

from secfed.errors import TrainingError

__all__ = ["EXACT_LAYERS", "preflight"]

EXACT_LAYERS: Final[tuple[type[nn.Module], ...]] = (
    nn.Linear,
    nn.Embedding,
    nn.LayerNorm,
)
"""Opacus' rules that our tests compare with gradients of single records. A
subclass is another layer: its forward method may do something else."""

_BATCH_STATISTICS: Final = (nn.modules.batchnorm._BatchNorm,)  # noqa: SLF001
_OWN_STATISTICS: Final = (nn.modules.instancenorm._InstanceNorm,)  # noqa: SLF001
_RANDOM: Final = (nn.modules.dropout._DropoutNd,)  # noqa: SLF001
_SHOWN = 5


def preflight(model: nn.Module, *, by_rules: bool = True) -> None:
    """Refuse a model that cannot be trained privately, naming every reason.

    Args:
        model: With ``requires_grad`` set as it will be trained.
        by_rules: Whether gradients come from rules for layers (Opacus). Without
            rules (``torch.func``) any differentiable parameter will do.

    Raises:
        TrainingError: At least one layer is refused; each is named.
    """
    problems = [
        *_trainable(model, by_rules=by_rules),
        *_dtypes(model),
        *(
            f"{name or 'the model'} ({type(module).__name__}) {reason}"
            for name, module in model.named_modules()
            for reason in _mixes(module)
        ),
    ]
    if problems:
        more = len(problems) - _SHOWN
        listed = "".join(f"\n  - {problem}" for problem in problems[:_SHOWN])
        raise TrainingError(
            f"this model cannot be trained privately:{listed}"
            + (f"\n  - and {more} more" if more > 0 else "")
        )


def _trainable(model: nn.Module, *, by_rules: bool) -> Iterator[str]:
    """1. something is trained, 2. in float32, 3. in layers that have a rule."""
    found = False
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        trained = {key: p for key, p in own.items() if p.requires_grad}
        found |= bool(trained)
        for key, parameter in trained.items():
            if parameter.dtype is not torch.float32:
                yield (
                    f"{name}.{key} is trained in {parameter.dtype}: small noise would "
                    "be rounded away; keep adapters in float32"
                )
        if trained and by_rules and type(module) not in EXACT_LAYERS:
            yield f"{name} ({type(module).__name__}) {_no_rule(module, trained)}"
    if not found:
        yield (
            "no parameter is trainable: the adapter found no layer, or nothing of "
            "it is trained"
        )


def _no_rule(module: nn.Module, trained: dict[str, nn.Parameter]) -> str:
    parameters = ", ".join(trained)
    if isinstance(module, nn.ParameterDict | nn.ParameterList):
        return (
            f"holds the raw parameters {parameters}, which no layer's forward pass "
            "shows to Opacus (IA3 and VeRA are made of these)"
        )
    if "Dora" in type(module).__name__:
        return (
            "is DoRA's magnitude: its gradient needs the norm of the merged weight, "
            "for which Opacus has no rule; use LoRA"
        )
    return f"trains {parameters}, and its type has no rule that was found exact"


def _dtypes(model: nn.Module) -> Iterator[str]:
    """Frozen weights in two floating types do not multiply."""
    first: dict[torch.dtype, str] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.requires_grad:
            first.setdefault(parameter.dtype, name)
    if len(first) > 1:
        places = ", ".join(f"{name} in {dtype}" for dtype, name in first.items())
        yield f"the frozen weights mix types: {places}; load the base in one"


def _mixes(module: nn.Module) -> Iterator[str]:
    """Ways in which a module's own forward pass lets records meet."""
    if isinstance(module, _BATCH_STATISTICS):
        yield "normalises with statistics of the batch"
    elif isinstance(module, _OWN_STATISTICS) and module.track_running_stats:
        yield "keeps running statistics of private records"
    if isinstance(module, _RANDOM) and module.p > 0:
        yield (
            f"drops at random (p = {module.p:g}) from torch's generator, so that the "
            "self-test cannot repeat itself; set it to 0"
        )
    if getattr(module, "gradient_checkpointing", False) and not _reentrant(module):
        yield (
            "uses gradient checkpointing that is not reentrant, which loses "
            "per-record gradients; set use_reentrant=True or switch it off"
        )
    if type(module).__name__ == "Linear8bitLt" and _outlier_threshold(module) > 0:
        yield (
            "chooses its outlier columns over the whole batch; load it with "
            "llm_int8_threshold=0"
        )


def _reentrant(module: nn.Module) -> bool:
    """Whether Transformers' checkpointing function says so itself."""
    function = getattr(module, "_gradient_checkpointing_func", None)
    return bool(getattr(function, "keywords", {}).get("use_reentrant", False))


def _outlier_threshold(module: nn.Module) -> float:
    return float(getattr(getattr(module, "state", None), "threshold", 0.0))
