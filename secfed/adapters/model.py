"""The adapted model: what trains, is read and is written."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from torch import nn

from secfed.adapters.names import FACTOR, PEFT_PREFIX, own_name
from secfed.errors import ModelError
from secfed.models import (
    BaseModel,
    decoder_of,
    dense_weight,
    device_of,
    is_quantised,
)
from secfed.study.kinds import AdapterKind
from secfed.types import LORA_A, LORA_R, MERGED, Tensors

__all__ = ["AdaptedModel", "CausalModel", "SequenceClassifier"]


class AdaptedModel(nn.Module):
    """The layers from the first adapted one up, and what is above, over cached states.

    ``forward`` maps token states (n, tokens, hidden) and a mask (n, tokens) to
    logits. It shares its parameters with ``network``, the whole PEFT model.
    """

    def __init__(
        self,
        base: BaseModel,
        network: peft.PeftModel,
        first: int,
        kind: AdapterKind,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.upper = nn.ModuleList(list(base.layers)[max(first, 0) :])
        self.virtual = _virtual_tokens(network)
        self.architecture = base.architecture
        self.compute_dtype = base.compute_dtype
        self.first_layer = first
        self._network = [network]  # in a list: not a submodule, counted once
        self._frozen: dict[str, torch.Tensor] = {}  # base weights before folding

    @property
    def network(self) -> peft.PeftModel:
        """The whole PEFT model."""
        return self._network[0]

    def precision(self, device: torch.device) -> torch.autocast:
        """The number format of the frozen part, as a context."""
        enabled = self.compute_dtype is torch.bfloat16
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)

    def through(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The last layer's states at the places of the text.

        Virtual tokens stand before every text, and are embedded for each: so the
        gradient of every record is its own.
        """
        inner, kind = self.network.get_base_model(), self.architecture
        if self.virtual is None:
            return kind.run(inner, self.upper, states, mask)
        rows, count = len(states), self.virtual.num_embeddings
        if self.kind.name == "prefix":
            placed = kind.placed(inner, states, count)
            past = self.network.get_prompt(rows)
            return kind.run(inner, self.upper, placed, mask, past)
        numbers = torch.arange(count, device=states.device).expand(rows, count)
        words = torch.cat([self.virtual(numbers), states], dim=1)
        seen = torch.cat([mask.new_ones(rows, count), mask], dim=1)
        placed = kind.placed(inner, words, 0)
        return kind.run(inner, self.upper, placed, seen)[:, count:]

    def named(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters under their names in ``Adapter.tensors``."""
        found: dict[str, nn.Parameter] = {}
        for name, parameter in self.network.named_parameters():
            short = own_name(name)
            if short is not None:
                found[short] = parameter
        return dict(sorted(found.items()))

    def read(self) -> Tensors:
        """A copy of the adapter's current numbers, float32."""
        return {
            name: parameter.detach().to(torch.float32).numpy(force=True).copy()
            for name, parameter in self.named().items()
        }

    def write(self, tensors: Tensors) -> None:
        """Set every adapter number; names and shapes must match exactly.

        A core ``R`` and a folded change are added to the model or taken out of it,
        as the adapter has them or not.

        Raises:
            ModelError: The adapter does not fit the model.
        """
        factors = {n: v for n, v in tensors.items() if not n.endswith(MERGED)}
        self._set_cores(present=any(name.endswith(LORA_R) for name in factors))
        parameters = self.named()
        if parameters.keys() != factors.keys():
            odd = sorted(parameters.keys() ^ factors.keys())
            raise ModelError(f"adapter tensors do not fit the model: {odd[:4]}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(_checked(name, factors[name], parameter.shape))
            self._fold(
                {
                    n.removesuffix(MERGED): tensors[n]
                    for n in tensors
                    if n not in factors
                }
            )

    def base_weights(self) -> dict[str, NDArray[np.float32]]:
        """The frozen weight (out, in) of every adapted module, nothing folded in."""
        return {
            module: _upright(layer, self._frozen.get(module, dense_weight(layer)))
            .float()
            .numpy(force=True)
            .copy()
            for module, layer in self._base_layers().items()
        }

    def _base_layers(self) -> dict[str, nn.Linear]:
        """The adapted layers; Transformers' ``Conv1D`` has the same weight, turned."""
        found = {}
        for name in self.named():
            if name.endswith(LORA_A):
                module = name.removesuffix(LORA_A)
                layer = self.network.get_submodule(PEFT_PREFIX + module)
                found[module] = layer.get_base_layer()
        return found

    def _fold(self, merged: Tensors) -> None:
        """Set the frozen weights to the base's plus ``merged``; others as they were."""
        layers = self._base_layers()
        for module in self._frozen.keys() | merged.keys():
            layer = layers.get(module)
            if layer is None or not _is_foldable(layer):
                raise ModelError(f"{module}: nothing can be folded into this layer")
            weight = layer.weight
            original = self._frozen.setdefault(module, weight.detach().clone())
            if module not in merged:
                weight.copy_(self._frozen.pop(module))
                continue
            shape = _upright(layer, weight).shape
            change = _checked(module + MERGED, merged[module], shape)
            weight.copy_(original + _upright(layer, change.to(weight.device)))

    def _set_cores(self, *, present: bool) -> None:
        """Put a trainable (r, r) layer between the factors, or take it out."""
        for name, layer in list(self.network.named_modules()):
            if not name.endswith(FACTOR) or isinstance(layer, nn.Sequential) == present:
                continue
            factor = layer if present else layer[-1]
            rank = factor.in_features
            device = device_of(factor)
            core = nn.Linear(int(rank), int(rank), bias=False, device=device)
            parent = self.network.get_submodule(name.rpartition(".")[0])
            parent["default"] = nn.Sequential(core, factor) if present else factor

    def set_trainable(self, names: Collection[str]) -> dict[str, nn.Parameter]:
        """Let exactly these tensors require gradients; returns them."""
        self.requires_grad_(requires_grad=False)
        chosen = {n: p for n, p in self.named().items() if n in names}
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        return chosen


class SequenceClassifier(AdaptedModel):
    """The adapted layers, the mean over real tokens, and the head."""

    def __init__(
        self, base: BaseModel, network: peft.PeftModel, first: int, kind: AdapterKind
    ) -> None:
        super().__init__(base, network, first, kind)
        self.head = network.get_base_model().classifier

    def pooled(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean of the last layer's states over the real tokens, float32."""
        with self.precision(states.device):
            top = self.through(states, mask)
        weights = mask[:, :, None].to(torch.float32)
        return (top.float() * weights).sum(1) / weights.sum(1)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Sequence logits (n, classes), float32."""
        logits: torch.Tensor = self.head(self.pooled(states, mask))
        return logits


class CausalModel(AdaptedModel):
    """The adapted layers, the last norm, and the frozen layer of the vocabulary."""

    def __init__(
        self, base: BaseModel, network: peft.PeftModel, first: int, kind: AdapterKind
    ) -> None:
        super().__init__(base, network, first, kind)
        inner = network.get_base_model()
        self.norm, self.vocabulary = decoder_of(inner.config).top(inner)

    def forward(
        self,
        states: torch.Tensor,
        mask: torch.Tensor,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token logits (n, tokens, vocabulary), float32.

        ``places`` (n, k), int64, asks for those of k places in every row only: the
        layer of the vocabulary is most of the work where few layers are adapted.
        """
        with self.precision(states.device):
            top = self.through(states, mask)
            if places is not None:
                top = torch.take_along_dim(top, places[:, :, None], dim=1)
            logits: torch.Tensor = self.vocabulary(self.norm(top))
        return logits.float()


def _virtual_tokens(network: peft.PeftModel) -> nn.Embedding | None:
    """Where the numbers of virtual tokens are kept; None where there are none."""
    encoders = getattr(network, "prompt_encoder", None)
    if encoders is None:
        return None
    found: nn.Embedding = encoders["default"].embedding
    return found


def _is_transposed(layer: nn.Module) -> bool:
    """Whether a layer keeps its weight as (in, out): Transformers' ``Conv1D``."""
    return type(layer).__name__ == "Conv1D"


def _is_foldable(layer: nn.Module) -> bool:
    """Whether a layer is its weight and nothing else: not one of a quantised base."""
    plain = type(layer) is nn.Linear or _is_transposed(layer)
    return plain and not is_quantised(layer)


def _upright(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """A layer's own weight as (out, in), or such a matrix as the layer keeps it."""
    return weight.T if _is_transposed(layer) else weight


def _checked(
    name: str, value: NDArray[np.float32], shape: tuple[int, ...]
) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(value))
    if tensor.dtype is not torch.float32:
        raise ModelError(
            f"{name}: {tensor.dtype}; the numbers of an adapter are float32"
        )
    if tensor.shape != shape:
        raise ModelError(
            f"{name}: shape {tuple(tensor.shape)}, the model needs {tuple(shape)}"
        )
    return tensor
