"""Encoders with a classification head: BERT and its kin, and DistilBERT.

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
from typing import Any, Final

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
from secfed.models.device import device_of, on_device
from secfed.models.quantisation import made_exact, settings_for
from secfed.study.sections import ModelSection

__all__ = ["Encoder", "encode_prefix", "load_base_model", "run_layers"]

_DROPOUTS: Final = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
)


@dataclass(frozen=True)
class Encoder:
    """BERT-like encoders; see ``Architecture``."""

    task_type: str = "TOKEN_CLS"
    transposed: bool = False

    def layers(self, network: Any) -> nn.ModuleList:
        """``encoder.layer``, or ``transformer.layer`` of DistilBERT."""
        body = network.base_model
        stack = getattr(body, "encoder", None) or getattr(body, "transformer", None)
        layers = getattr(stack, "layer", None)
        return module_list(layers, "BERT-like encoders and DistilBERT are supported")

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
        """Positions, segments (DistilBERT has none) and their norm."""
        embeddings = network.base_model.embeddings
        places = torch.arange(before, before + words.shape[1], device=words.device)
        more: dict[str, Any] = {"position_ids": places[None]}
        if hasattr(embeddings, "token_type_embeddings"):
            more["token_type_ids"] = segments
        states: torch.Tensor = embeddings(input_ids=None, inputs_embeds=words, **more)
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
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, num_labels=num_labels
        )
        for name in _DROPOUTS:
            # The cached prefix is exact only without dropout below the adapters,
            # and the DP noise regularises more than dropout would.
            if hasattr(config, name):
                setattr(config, name, 0.0)
        network = transformers.AutoModelForTokenClassification.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            **settings_for(transformers, section.quantisation),
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: not a usable encoder: {error}") from error
    body = network.base_model
    known = hasattr(body, "encoder") or hasattr(body, "transformer")
    if not hasattr(network, "classifier") or not known:
        raise ModelError(f"{folder}: {type(network).__name__} is not supported yet")
    nn.init.zeros_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    network.requires_grad_(requires_grad=False)
    network = on_device(network.eval())
    kind = Encoder()
    return BaseModel(
        network=network,
        tokenizer=tokenizer,
        digest=digest,
        max_length=section.max_length,
        compute_dtype=compute_dtype(section.dtype, device_of(network)),
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
