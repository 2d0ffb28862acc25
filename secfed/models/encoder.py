"""Encoders with a classification head, BERT and its kin.

The classifier is Transformers' token classification model read at sequence
level: a linear head commutes with the mean over tokens, so

    logits = head(mean_i h_i) = mean_i head(h_i)

and the released adapter loads with plain ``peft`` on the stock class (the mean
of the token logits over the attention mask are the sequence logits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secfed.errors import ModelError
from secfed.models.base import (
    BaseModel,
    Features,
    compute_dtype,
    compute_states,
    module_list,
    offline_transformers,
    open_folder,
)
from secfed.models.quantisation import made_exact, settings_for
from secfed.study.sections import ModelSection

__all__ = ["Encoder", "encode_prefix", "load_base_model", "run_layers"]


@dataclass(frozen=True)
class Encoder:
    """BERT-like encoders; see ``Architecture``."""

    task_type: str = "TOKEN_CLS"
    transposed: bool = False

    def layers(self, network: Any) -> nn.ModuleList:
        """``encoder.layer``."""
        layers = network.base_model.encoder.layer
        return module_list(layers, "BERT-like encoders are supported")

    def words(self, network: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Words without positions and norm."""
        found: torch.Tensor = network.get_input_embeddings()(tokens)
        return found

    def placed(
        self,
        network: Any,
        words: torch.Tensor,
        before: int,
        segments: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Positions, segments and their norm."""
        states: torch.Tensor = network.base_model.embeddings(
            inputs_embeds=words, past_key_values_length=before, token_type_ids=segments
        )
        return states

    def run(
        self,
        _network: nn.Module,
        layers: Sequence[nn.Module] | nn.ModuleList,
        states: torch.Tensor,
        mask: torch.Tensor,
        past: Any = None,
    ) -> torch.Tensor:
        """Every token sees every real token of its text."""
        if past is not None:
            # Transformers' encoders would leave them out without a word.
            raise ModelError("an encoder takes no keys and values from before")
        return run_layers(layers, states, mask)


def load_base_model(
    section: ModelSection, base_dir: Path, num_labels: int
) -> BaseModel:
    """Load the frozen base with an all-zero head of ``num_labels`` classes.

    Raises:
        ModelError: The folder, the digest or the architecture is wrong.
    """
    folder, digest = open_folder(section, base_dir)
    transformers = offline_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
        network = transformers.AutoModelForTokenClassification.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            num_labels=num_labels,
            dtype=torch.float32,
            # The cached prefix is exact only without dropout below the adapters,
            # and the DP noise regularises more than dropout would.
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **settings_for(transformers, section.quantisation),
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: not a usable encoder: {error}") from error
    if not hasattr(network, "classifier") or not hasattr(network.base_model, "encoder"):
        raise ModelError(f"{folder}: {type(network).__name__} is not supported yet")
    nn.init.zeros_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    network.requires_grad_(requires_grad=False)
    network.eval()
    kind = Encoder()
    return BaseModel(
        network=network,
        tokenizer=tokenizer,
        digest=digest,
        max_length=section.max_length,
        compute_dtype=compute_dtype(section.dtype),
        architecture=kind,
        quantisation=section.quantisation,
        rounded_digest=made_exact(kind.layers(network), section.quantisation),
    )


def encode_prefix(
    base: BaseModel,
    texts: Sequence[str],
    first_layer: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    pairs: Sequence[str] = (),
) -> Features:
    """Run the texts through everything below ``first_layer``, once.

    Args:
        base: The frozen model.
        texts: Any number of texts; each is cut at ``base.max_length`` tokens.
        first_layer: The lowest layer that carries an adapter.
        progress: Called with (texts done, texts in all).
        pairs: A second text for each; together they have ``base.max_length`` tokens,
            and the longer one is cut first.
    """
    found = base.tokenizer(
        list(texts),
        list(pairs) or None,
        truncation=True,
        max_length=base.max_length,
        padding=False,
    )
    segments = found.get("token_type_ids") if pairs else None
    return compute_states(base, found["input_ids"], first_layer, progress, segments)


def run_layers(
    layers: Sequence[nn.Module] | nn.ModuleList,
    states: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Apply an encoder's layers; ``mask`` is True where a token is real."""
    attention = mask[:, None, None, :]
    for layer in layers:
        out = layer(states, attention)
        states = out[0] if isinstance(out, tuple) else out
    return states
