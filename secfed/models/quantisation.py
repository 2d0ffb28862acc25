"""Frozen weights in four or eight bits, kept the same at all sites.

``nf4``: bitsandbytes, 4-bit NormalFloat in blocks of 64 (Dettmers et al., NeurIPS 2023,
section 3). ``int8``: torchao, 8 bits with one scale per output. Transformers loads
both, so that whoever uses a released adapter makes the same base with its settings.

What holds. Rounding a weight looks at its own block or row only, in float32, so the
packed weights follow from the pinned file, the library's version and the device's kind:
``packed_digest`` names them, and two loads on one machine, with any number of threads,
give the same. Every use multiplies with ``dense``, the packed weights multiplied out:
training, the cached prefix and evaluation see one function, and the gradient is of that
function. The product itself is a floating-point sum as in any other layer, equal to the
last bit on equal processors only.

What had to be switched off. On processors with AVX512-BF16, bitsandbytes repacks its
weights as soon as a layer runs outside of training, and from then on multiplies in
bfloat16: evaluation would see another function than training, biases would change their
type in place, and layers whose sides are no multiples of 32 fail.
"""

from __future__ import annotations

import hashlib
import importlib.util
from typing import Any, Final

import torch
from torch import nn

from secfed.errors import ModelError

__all__ = [
    "PACKAGES",
    "dense_weight",
    "is_quantised",
    "made_exact",
    "packed_digest",
    "settings_for",
]

PACKAGES: Final = {"nf4": "bitsandbytes", "int8": "torchao"}
_KEPT: Final = ["classifier", "lm_head"]
"""Never quantised: the trained head, and the layer that gives the logits."""


def settings_for(transformers: Any, quantisation: str | None) -> dict[str, Any]:
    """What ``from_pretrained`` is told; nothing where nothing is quantised.

    Raises:
        ModelError: The package that quantises is not installed.
    """
    if quantisation is None:
        return {}
    package = PACKAGES[quantisation]
    if importlib.util.find_spec(package) is None:
        raise ModelError(
            f"[model] quantisation = {quantisation!r} needs the package {package}, "
            "which is not installed: pip install 'secfed[quantised]'"
        )
    if quantisation == "nf4":
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=_KEPT,
        )
    else:
        # Not imported where it is not asked for.
        from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415

        config = transformers.TorchAoConfig(
            Int8WeightOnlyConfig(), modules_to_not_convert=_KEPT
        )
    # Rounded on the processor: the packed weights are the same wherever they go.
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def made_exact(layers: nn.ModuleList, quantisation: str | None) -> str | None:
    """Refuse layers of which a matrix stayed as it was; make the others exact.

    Returns:
        ``packed_digest`` of the layers; None where nothing is quantised.

    Raises:
        ModelError: The library left a matrix alone; the message names it.
    """
    if quantisation is None:
        return None
    for name, module in layers.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        weight = getattr(module, "weight", None)
        matrix = isinstance(weight, torch.Tensor) and weight.dim() > 1
        if matrix and not is_quantised(module):
            raise ModelError(
                f"[model] quantisation = {quantisation!r} leaves {name} "
                f"({type(module).__name__}) as it is; use another, or none"
            )
    return packed_digest(layers)


def is_quantised(layer: nn.Module) -> bool:
    """Whether a layer's weight is packed, and not a plain matrix."""
    weight: Any = layer.weight
    return hasattr(weight, "quant_state") or hasattr(weight, "qdata")


def dense_weight(layer: nn.Module) -> torch.Tensor:
    """A layer's weight as it multiplies: packed ones multiplied out, float32."""
    weight: Any = layer.weight
    made: torch.Tensor = weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415

        made = dequantize_4bit(weight.data, weight.quant_state)
    elif hasattr(weight, "qdata"):
        made = weight.dequantize()
    return made


def packed_digest(layers: nn.ModuleList) -> str:
    """SHA-256 (hex) of bare layers' weights as they multiply, in the layers' order.

    Of the multiplied-out numbers: they are what all sites have to agree on, however
    a library lays out the packed ones.
    """
    found = hashlib.sha256()
    for name, module in layers.named_modules():
        if hasattr(module, "weight") and is_quantised(module):
            found.update(name.encode() + b"\0")
            dense = dense_weight(module).float().contiguous()
            found.update(dense.numpy(force=True).tobytes())
    return found.hexdigest()
