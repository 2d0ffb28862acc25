"""PEFT's names of an adapter's parameters, and ours: one table for every kind."""

from __future__ import annotations

from typing import Final

from secfed.types import HEAD, IA3, LORA_A, LORA_B, LORA_R, MAGNITUDE, VIRTUAL

__all__ = ["CORE", "FACTOR", "HEAD_LAYER", "PEFT_PREFIX", "file_name", "own_name"]

PEFT_PREFIX: Final = "base_model.model."
HEAD_LAYER: Final = "classifier"
FACTOR, CORE = ".lora_B.default", 0
"""Where the core of ``B @ R @ A`` stands: before B, in a sequence of two layers."""

_PARTS: Final = (
    (LORA_A, ".lora_A.default.weight", ".lora_A.weight"),
    (LORA_R, f"{FACTOR}.{CORE}.weight", None),
    (LORA_B, f"{FACTOR}.{CORE + 1}.weight", None),
    (LORA_B, f"{FACTOR}.weight", ".lora_B.weight"),
    (MAGNITUDE, ".lora_magnitude_vector.default.weight", ".lora_magnitude_vector"),
    (IA3, ".ia3_l.default", ".ia3_l"),
)
"""What a name ends with: ours, a parameter's, and a tensor's in a released file."""

_WHOLE: Final = {"prompt_encoder.default.embedding.weight": VIRTUAL}
_SAVED_HEAD: Final = f"{HEAD_LAYER}.modules_to_save.default."


def own_name(peft_name: str) -> str | None:
    """Our name of a parameter of the PEFT model; None for those of the base."""
    if peft_name in _WHOLE:
        return _WHOLE[peft_name]
    if _SAVED_HEAD in peft_name:
        return HEAD + peft_name.rpartition(_SAVED_HEAD)[2]
    for own, theirs, _ in _PARTS:
        if peft_name.endswith(theirs):
            return peft_name.removeprefix(PEFT_PREFIX).removesuffix(theirs) + own
    return None


def file_name(own: str, *, in_modules: bool = True) -> str:
    """The name of one of our tensors in the file that plain PEFT loads.

    Args:
        own: Of a tensor that plain PEFT knows; a core or a folded change is none.
        in_modules: Whether the adapter sits in modules. PEFT wraps a model whose
            input it changes once less.

    Raises:
        KeyError: Plain PEFT has no such tensor.
    """
    if own == VIRTUAL:
        return "prompt_embeddings"
    prefix = PEFT_PREFIX if in_modules else "base_model."
    if own.startswith(HEAD):
        return f"{prefix}{HEAD_LAYER}.{own.removeprefix(HEAD)}"
    for suffix, _, in_file in _PARTS:
        if own.endswith(suffix) and in_file is not None:
            return prefix + own.removesuffix(suffix) + in_file
    raise KeyError(f"plain PEFT has no tensor like {own}")
