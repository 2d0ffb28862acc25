"""Causal language models: the GPT-2 family and the Llama family.

A token sees those before it and no other, and its position is its place in the
block. So a block can be padded at the right without a mask, the states below the
first adapted layer depend on the block alone, and caching them is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import nn

from secfed.errors import ModelError
from secfed.models.base import (
    AnswerFeatures,
    Architecture,
    BaseModel,
    TokenFeatures,
    compute_dtype,
    compute_states,
    module_list,
    offline_transformers,
    open_folder,
)
from secfed.models.device import device_of, on_device
from secfed.models.quantisation import made_exact, settings_for
from secfed.study.sections import ModelSection

__all__ = [
    "Decoder",
    "decoder_of",
    "encode_answers",
    "encode_blocks",
    "load_causal_model",
]

_KNOWN: Final = "GPT-2 and Llama are supported"

_OWN_POSITIONS: Final = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary positions that do not depend on the longest text of the batch."""

_DROPOUTS: Final = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout")


class Decoder(Architecture, Protocol):
    """What a causal model has besides layers."""

    def top(self, network: nn.Module, /) -> tuple[nn.Module, nn.Module]:
        """The last norm and the layer that gives the logits."""
        ...


def _seen(states: torch.Tensor, past: Any) -> dict[str, Any]:
    """What a layer is told where keys and values stand before its tokens.

    Without any it needs no mask: torch takes the tokens before for granted. With some
    it would line up queries and keys at their first ones, so the mask is written out.
    """
    if past is None:
        return {}
    tokens, before = states.shape[1], past.get_seq_length()
    mask = torch.ones(tokens, before + tokens, dtype=torch.bool, device=states.device)
    return {"past_key_values": past, "attention_mask": mask.tril(before)[None, None]}


@dataclass(frozen=True)
class Gpt2:
    """Learned positions, and weights stored (in, out) in ``Conv1D``."""

    task_type: str = "CAUSAL_LM"
    transposed: bool = True

    def layers(self, network: Any, /) -> nn.ModuleList:
        """``transformer.h``."""
        return module_list(network.transformer.h, _KNOWN)

    def words(self, network: Any, tokens: torch.Tensor, /) -> torch.Tensor:
        """``wte``."""
        found: torch.Tensor = network.transformer.wte(tokens)
        return found

    def placed(
        self,
        network: Any,
        words: torch.Tensor,
        before: int,
        _segments: object = None,
        /,
    ) -> torch.Tensor:
        """Words and positions."""
        places = torch.arange(before, before + words.shape[1], device=words.device)
        states: torch.Tensor = words + network.transformer.wpe(places)
        return states

    def run(
        self,
        _network: nn.Module,
        layers: Sequence[nn.Module] | nn.ModuleList,
        states: torch.Tensor,
        _mask: torch.Tensor,
        past: Any = None,
        /,
    ) -> torch.Tensor:
        """Each block sees what is before; padding is behind."""
        seen = _seen(states, past)
        for layer in layers:
            states = layer(states, **seen)
        return states

    def top(self, network: Any, /) -> tuple[nn.Module, nn.Module]:
        """``ln_f`` and the tied head."""
        return network.transformer.ln_f, network.lm_head


@dataclass(frozen=True)
class Llama:
    """Rotary positions inside every layer."""

    task_type: str = "CAUSAL_LM"
    transposed: bool = False

    def layers(self, network: Any, /) -> nn.ModuleList:
        """``model.layers``."""
        return module_list(network.model.layers, _KNOWN)

    def words(self, network: Any, tokens: torch.Tensor, /) -> torch.Tensor:
        """``embed_tokens``."""
        found: torch.Tensor = network.model.embed_tokens(tokens)
        return found

    def placed(
        self,
        _network: Any,
        words: torch.Tensor,
        _before: int,
        _segments: object = None,
        /,
    ) -> torch.Tensor:
        """Words alone: every layer turns them by their places itself."""
        return words

    def run(
        self,
        network: Any,
        layers: Sequence[nn.Module] | nn.ModuleList,
        states: torch.Tensor,
        _mask: torch.Tensor,
        past: Any = None,
        /,
    ) -> torch.Tensor:
        """Each layer turns by the position and sees what is before."""
        before = 0 if past is None else past.get_seq_length()
        places = torch.arange(before, before + states.shape[1], device=states.device)
        turned = network.model.rotary_emb(states, places[None])
        seen = _seen(states, past)
        for layer in layers:
            states = layer(states, position_embeddings=turned, **seen)
        return states

    def top(self, network: Any, /) -> tuple[nn.Module, nn.Module]:
        """The last norm and the head, tied or not."""
        return network.model.norm, network.lm_head


_FAMILIES: Final[dict[str, Decoder]] = {"gpt2": Gpt2(), "llama": Llama()}


def decoder_of(config: Any) -> Decoder:
    """How a model with this configuration is taken apart.

    Raises:
        ModelError: It is none that is known, or its positions depend on the batch.
    """
    kind = getattr(config, "model_type", None)
    if kind not in _FAMILIES:
        raise ModelError(f"a model of type {kind!r} is not supported yet; {_KNOWN}")
    rope = getattr(config, "rope_parameters", None) or {}
    turning = rope.get("rope_type", "default")
    if turning not in _OWN_POSITIONS:
        raise ModelError(
            f"rotary positions of type {turning!r} depend on the longest text of a "
            "batch, so that one record would change another's gradient"
        )
    return _FAMILIES[kind]


def load_causal_model(section: ModelSection, base_dir: Path) -> BaseModel:
    """Load a frozen causal language model.

    Raises:
        ModelError: The folder, the digest or the architecture is wrong, or blocks
            are longer than the model's positions.
    """
    folder, digest = open_folder(section, base_dir)
    transformers = offline_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        decoder = decoder_of(config)
        for name in _DROPOUTS:
            # As for encoders: the cached prefix is exact only without dropout.
            if hasattr(config, name):
                setattr(config, name, 0.0)
        network = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            # Causal by itself; the eager one would have to be given a mask.
            attn_implementation="sdpa",
            **settings_for(transformers, section.quantisation),
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: not a usable causal model: {error}") from error
    positions = int(config.max_position_embeddings)
    if section.max_length > positions:
        raise ModelError(
            f"[model] max_length: blocks of {section.max_length} tokens, and the model "
            f"has {positions} positions"
        )
    network.requires_grad_(requires_grad=False)
    network = on_device(network.eval())
    return BaseModel(
        network=network,
        tokenizer=None,
        digest=digest,
        max_length=section.max_length,
        compute_dtype=compute_dtype(section.dtype, device_of(network)),
        architecture=decoder,
        quantisation=section.quantisation,
        rounded_digest=made_exact(decoder.layers(network), section.quantisation),
    )


def encode_blocks(
    base: BaseModel,
    blocks: Sequence[Sequence[int]],
    first_layer: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> TokenFeatures:
    """Run blocks of tokens through everything below ``first_layer``, once.

    Args:
        base: The frozen model.
        blocks: Token ids; see ``secfed.data.blocks``.
        first_layer: The lowest layer that carries an adapter.
        progress: Called with (blocks done, blocks in all).

    Raises:
        ModelError: A token is none of the model's.
    """
    tokens = torch.tensor([token for block in blocks for token in block])
    vocabulary = int(base.network.config.vocab_size)  # type: ignore[union-attr,arg-type]
    if len(tokens) and int(tokens.max()) >= vocabulary:
        raise ModelError(
            f"the tokenizer knows more tokens than the model, which has {vocabulary}: "
            "they do not belong together"
        )
    found = compute_states(base, blocks, first_layer, progress)
    return TokenFeatures(states=found.states, offsets=found.offsets, tokens=tokens)


def encode_answers(
    base: BaseModel,
    texts: Sequence[Sequence[int]],
    prompt_tokens: Sequence[int],
    first_layer: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> AnswerFeatures:
    """``encode_blocks`` of prompts with their answers.

    Args:
        base: The frozen model.
        texts: Token ids; see ``secfed.data.prompts``.
        prompt_tokens: How many of them ask; those behind answer.
        first_layer: The lowest layer that carries an adapter.
        progress: Called with (texts done, texts in all).

    Raises:
        ModelError: A token is none of the model's.
    """
    found = encode_blocks(base, texts, first_layer, progress)
    asked = [
        torch.arange(len(text)) >= first
        for text, first in zip(texts, prompt_tokens, strict=True)
    ]
    return AnswerFeatures(
        states=found.states,
        offsets=found.offsets,
        tokens=found.tokens,
        asked=torch.cat(asked),
    )
