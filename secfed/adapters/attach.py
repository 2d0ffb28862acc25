"""How a base model gets its adapter, and the numbers that it starts from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import peft
import torch
from numpy.typing import NDArray

from secfed.adapters.model import AdaptedModel, CausalModel, SequenceClassifier
from secfed.errors import ModelError
from secfed.models import BaseModel, encode_prefix
from secfed.study.sections import AdapterSection
from secfed.types import LORA_A, LORA_B, Adapter, Tensors

__all__ = ["attach_adapter", "head_from_names", "initial_adapter"]


def attach_adapter(base: BaseModel, section: AdapterSection) -> AdaptedModel:
    """Wrap the base with PEFT's adapter of the study's kind.

    A classifier's head becomes ``modules_to_save``; a language model has none.

    Raises:
        ModelError: The study's modules, layers or rank do not fit the model.
    """
    total = len(base.layers)
    first = 0 if section.layers == 0 else total - section.layers
    if first < 0:
        raise ModelError(f"[adapter] layers: the base model has only {total} layers")
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 asks Transformers under a name that is being replaced.
            warnings.filterwarnings("ignore", message=".is_gradient_checkpointing")
            config = _CONFIGS[section.kind](base, section, first)
            network = peft.get_peft_model(base.network, config)
    except ValueError as error:
        raise ModelError(f"[adapter] target_modules: {error}") from error
    _require_targets(section, network.base_model.targeted_module_names)
    network.eval()
    causal = base.architecture.task_type == "CAUSAL_LM"
    kind = CausalModel if causal else SequenceClassifier
    model = kind(base, network, first, section.how)
    if section.how.has_rank:
        _require_rank(section.r, model)
    return model


def _lora(base: BaseModel, section: AdapterSection, first: int) -> peft.PeftConfig:
    return peft.LoraConfig(
        task_type=base.architecture.task_type,
        r=section.r,
        lora_alpha=section.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(section.target_modules),
        layers_to_transform=list(range(first, len(base.layers))),
        fan_in_fan_out=base.transposed,
        bias="none",
        use_rslora=section.kind == "rslora",
        use_dora=section.kind == "dora",
    )


_Config = Callable[[BaseModel, AdapterSection, int], peft.PeftConfig]

_CONFIGS: Final[Mapping[str, _Config]] = {"lora": _lora, "rslora": _lora}


def _require_rank(rank: int, model: AdaptedModel) -> None:
    """Refuse factors that are larger than the weight they change."""
    for name, parameter in model.named().items():
        smallest = min(parameter.shape)  # of A: r or in; of B: out or r
        if name.endswith((LORA_A, LORA_B)) and smallest < rank:
            module = name.rpartition(".")[0]
            raise ModelError(
                f"[adapter] r: {rank} is too much for {module}, whose weight has a "
                f"side of {smallest}; its change has at most that rank"
            )


def _require_targets(section: AdapterSection, found: Sequence[str]) -> None:
    """PEFT is content when one of several targets is found; we are not."""
    missing = [
        name
        for name in section.target_modules
        if not any(f".{layer}".endswith(f".{name}") for layer in found)
    ]
    if missing:
        short = sorted({layer.rpartition(".")[2] for layer in found})
        raise ModelError(
            f"[adapter] target_modules: no layer is called {', '.join(missing)}; "
            f"found were {', '.join(short)}"
        )


def initial_adapter(model: AdaptedModel, section: AdapterSection) -> Adapter:
    """The public start: A uniform on (-1/sqrt(in), 1/sqrt(in)), B and head zero.

    The same at every site, from ``[adapter] seed`` (PEFT's default law of A;
    Hu et al., ICLR 2022, section 4.1 for B = 0).
    """
    generator = np.random.default_rng(section.seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, parameter in model.named().items():
        shape = tuple(parameter.shape)
        if name.endswith(LORA_A):
            bound = 1.0 / np.sqrt(shape[1])
            value = generator.uniform(-bound, bound, size=shape)
        else:
            value = np.zeros(shape)
        tensors[name] = value.astype(np.float32)
    return Adapter(tensors=tensors, scaling=section.scaling)


def head_from_names(
    base: BaseModel, model: SequenceClassifier, names: tuple[str, ...], scale: float
) -> Tensors:
    """A public start of the head: the classes' own names, embedded by the base.

    Row c of the weight is ``scale`` times the unit embedding of name c, centred
    over the classes. Uses no record, so it costs no privacy.
    """
    features = encode_prefix(base, names, model.first_layer)
    with torch.inference_mode():
        pooled = model.pooled(*features.batch(np.arange(len(names)))).numpy()
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    weight = (scale * (unit - unit.mean(axis=0))).astype(np.float32)
    return {"head.weight": weight, "head.bias": np.zeros(len(names), np.float32)}
