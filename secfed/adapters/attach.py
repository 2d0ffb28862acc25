"""How a base model gets its adapter, and the numbers that it starts from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import peft
import torch
from numpy.typing import NDArray

from secfed.adapters.model import AdaptedModel, CausalModel, SequenceClassifier
from secfed.errors import ModelError
from secfed.models import WORDS, BaseModel, encode_prefix, moved
from secfed.study.sections import AdapterSection
from secfed.types import IA3, LORA_A, LORA_B, MAGNITUDE, VIRTUAL, Adapter, Tensors

__all__ = ["attach_adapter", "head_from_names", "initial_adapter"]

_PREFIX_STD: Final = 0.02


def attach_adapter(base: BaseModel, section: AdapterSection) -> AdaptedModel:
    """Wrap the base with PEFT's adapter of the study's kind.

    A classifier's head becomes ``modules_to_save``; a language model has none.

    Raises:
        ModelError: The study's modules, layers or rank do not fit the model.
    """
    total = len(base.layers)
    if section.layers > total:
        raise ModelError(f"[adapter] layers: the base model has only {total} layers")
    first = total - section.layers if section.layers else 0
    if not section.how.in_modules:
        _require_room(base, section)
        first = WORDS
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 asks Transformers under a name that is being replaced.
            warnings.filterwarnings("ignore", message=".is_gradient_checkpointing")
            config = _CONFIGS[section.kind](base, section, first)
            network = peft.get_peft_model(base.network, config)
    except ValueError as error:
        raise ModelError(f"[adapter] target_modules: {error}") from error
    if section.how.in_modules:
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


def _ia3(base: BaseModel, section: AdapterSection, first: int) -> peft.PeftConfig:
    # PEFT chooses no layers for IA3, so its modules are named one by one.
    upper = {id(m) for layer in list(base.layers)[first:] for m in layer.modules()}
    names = [n for n, m in base.network.named_modules() if id(m) in upper]
    return peft.IA3Config(
        task_type=base.architecture.task_type,
        target_modules=_called(names, section.target_modules),
        feedforward_modules=_called(names, section.feedforward_modules),
        fan_in_fan_out=base.transposed,
    )


def _called(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    return [n for n in names if any(f".{n}".endswith(f".{end}") for end in targets)]


def _prompt(base: BaseModel, section: AdapterSection, _first: int) -> peft.PeftConfig:
    return peft.PromptTuningConfig(
        task_type=base.architecture.task_type,
        num_virtual_tokens=section.virtual_tokens,
    )


def _prefix(base: BaseModel, section: AdapterSection, _first: int) -> peft.PeftConfig:
    if base.architecture.task_type != "CAUSAL_LM":
        raise ModelError(
            "[adapter] kind: 'prefix' needs a causal language model; Transformers' "
            "encoders leave out keys and values that come from before the text"
        )
    return peft.PrefixTuningConfig(
        task_type=base.architecture.task_type,
        num_virtual_tokens=section.virtual_tokens,
    )


_Config = Callable[[BaseModel, AdapterSection, int], peft.PeftConfig]

_CONFIGS: Final[Mapping[str, _Config]] = {
    "lora": _lora,
    "rslora": _lora,
    "dora": _lora,
    "ia3": _ia3,
    "prompt": _prompt,
    "prefix": _prefix,
}


def _require_room(base: BaseModel, section: AdapterSection) -> None:
    """Virtual tokens take positions, of which a model has so many."""
    config: Any = base.network.config
    positions = int(config.max_position_embeddings)
    if section.virtual_tokens + base.max_length > positions:
        raise ModelError(
            f"[adapter] virtual_tokens: {section.virtual_tokens} before texts of "
            f"{base.max_length} tokens, and the model has {positions} positions"
        )


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


def count_parameters(base: BaseModel, section: AdapterSection) -> tuple[int, int]:
    """Numbers that PEFT would train, and all numbers of the model with its adapter.

    Shapes are enough: ``base`` may have no weights (``models.shapes_of``). A tied
    weight counts once; a head that is trained counts twice in all numbers, because
    PEFT keeps the one it started from.

    Raises:
        ModelError: The study's modules, layers or rank do not fit the model.
    """
    parameters = list(attach_adapter(base, section).network.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained, sum(p.numel() for p in parameters)


def initial_adapter(model: AdaptedModel, section: AdapterSection) -> Adapter:
    """The public start, the same at every site, from ``[adapter] seed`` and the base.

    - A is uniform on (-1/sqrt(in), 1/sqrt(in)), B and the head are zero (PEFT's
      default law of A; Hu et al., ICLR 2022, section 4.1 for B = 0);
    - DoRA's magnitudes are the lengths of the frozen weights' rows, so that nothing
      changes (Liu et al., ICML 2024, equation 5);
    - IA3's factors are one (Liu et al., NeurIPS 2022, section 3.3);
    - a prompt is words of the model's, drawn at random (Lester et al., EMNLP 2021,
      section 3.2), a prefix small numbers, as GPT-2 starts its own weights.
    """
    generator = np.random.default_rng(section.seed)
    frozen = model.base_weights() if section.kind == "dora" else {}
    tensors = {
        name: _initial(model, name, tuple(parameter.shape), generator, frozen)
        for name, parameter in model.named().items()
    }
    return Adapter(tensors=tensors, scaling=section.scaling)


def _initial(
    model: AdaptedModel,
    name: str,
    shape: tuple[int, ...],
    generator: np.random.Generator,
    frozen: Tensors,
) -> NDArray[np.float32]:
    value: NDArray[Any] = np.zeros(shape)
    if name.endswith(LORA_A):
        bound = 1.0 / np.sqrt(shape[1])
        value = generator.uniform(-bound, bound, size=shape)
    elif name.endswith(MAGNITUDE):
        value = np.linalg.norm(frozen[name.removesuffix(MAGNITUDE)], axis=1)
    elif name.endswith(IA3):
        value = np.ones(shape)
    elif name == VIRTUAL and model.kind.name == "prompt":
        words = model.network.get_base_model().get_input_embeddings().weight
        chosen = generator.integers(len(words), size=len(value))
        value = words[torch.from_numpy(chosen)].float().numpy(force=True)
    elif name == VIRTUAL:
        value = generator.normal(0.0, _PREFIX_STD, size=shape)
    return value.astype(np.float32)


def head_from_names(
    base: BaseModel, model: SequenceClassifier, names: tuple[str, ...], scale: float
) -> Tensors:
    """A public start of the head: the classes' own names, embedded by the base.

    Row c of the weight is ``scale`` times the unit embedding of name c, centred
    over the classes. Uses no record, so it costs no privacy.
    """
    features = encode_prefix(base, names, model.first_layer)
    with torch.inference_mode():
        batch = moved(features.batch(np.arange(len(names))), model)
        pooled = model.pooled(*batch).numpy(force=True)
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    weight = (scale * (unit - unit.mean(axis=0))).astype(np.float32)
    return {"head.weight": weight, "head.bias": np.zeros(len(names), np.float32)}
