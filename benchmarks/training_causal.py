"""A GPT-2 model with random weights on the same text; any size, any device.

secfed's causal model and its parts for private steps (records in micro-batches, cached
states, per-record gradients, clipping, noise), with sizes and a device that studies
cannot name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.training_encoder import tokenizer, wordings
from benchmarks.training_plans import Case, Shape
from benchmarks.training_subject import Subject, start, trained
from secfed.adapters import CausalModel
from secfed.models import (
    BaseModel,
    Features,
    compute_dtype,
    decoder_of,
    padded_batches,
)
from secfed.study.kinds import KINDS
from secfed.training import PrivateRecords, causal_lm
from secfed.training.losses import IGNORED

__all__ = ["causal", "natural_tokens", "random_tokens"]

_RANK, _ALPHA = 8, 16.0
_PREFIX_TOKENS = 8192
_AT_ONCE = 16_384  # tokens, on an accelerator

Tokens = Sequence[Sequence[int]]


class Logits(nn.Module):
    """PEFT's causal model with its logits as the only output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Token logits (n, tokens, vocabulary), float32."""
        found = self.network(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        )
        logits: torch.Tensor = found.logits.float()
        return logits


@dataclass(frozen=True, repr=False)
class TextRecords(PrivateRecords):
    """Cached states with a target per token instead of a class per record."""

    tokens: tuple[torch.Tensor, ...] = ()
    device: str = "cpu"

    @property
    def micro_batch_tokens(self) -> int:
        """An accelerator wants more at once than a processor."""
        return super().micro_batch_tokens if self.device == "cpu" else _AT_ONCE

    def batch(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """Padded states (n, longest, hidden), mask and targets (n, longest)."""
        states, mask = self.features.batch(rows)
        targets = nn.utils.rnn.pad_sequence(
            [self.tokens[i] for i in rows], batch_first=True, padding_value=IGNORED
        )
        return tuple(part.to(self.device) for part in (states, mask, targets))


def causal(
    case: Case,
    tokens: Callable[[Case], Tokens],
    *,
    exact: bool = False,
    device: str = "cpu",
) -> Subject:
    """A random GPT-2 with a new adapter; ``exact``: float32 throughout."""
    assert case.shape is not None
    wanted = "float32" if exact else "bfloat16"
    dtype = compute_dtype(wanted, torch.device(device))
    network = _network(case.shape, case.size.max_length, device)
    first = case.shape.layers - case.layers if case.layers else 0
    with warnings.catch_warnings():
        # PEFT asks Transformers under a name that is being replaced.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing")
        wrapped = peft.get_peft_model(network, _lora(case.shape, first))
    length = case.size.max_length
    base = BaseModel(network, None, "", length, dtype, decoder_of(network.config))
    model = CausalModel(base, wrapped, first, KINDS["lora"])
    adapter = start(model, _ALPHA / _RANK)
    ids = tokens(case)
    return Subject(
        case=case,
        network=Logits(wrapped),
        model=model,
        adapter=adapter,
        trains=trained(adapter, case.method),
        examples=[{"input_ids": list(row)} for row in ids],
        collate=_collate,
        plain_loss=_plain_loss,
        loss=_loss,
        encode=lambda: _encode(network, ids, model, device),
        device=device,
    )


def _network(shape: Shape, positions: int, device: str) -> Any:
    """On an accelerator in bfloat16, as a large frozen base is kept."""
    import transformers  # noqa: PLC0415 - slow, and not needed by every part

    config = transformers.GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=positions,
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.GPT2LMHeadModel(config)
    network = network.to(device=device, dtype=dtype)
    return network.requires_grad_(requires_grad=False).eval()


def _lora(shape: Shape, first: int) -> peft.LoraConfig:
    return peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=_RANK,
        lora_alpha=_ALPHA,
        lora_dropout=0.0,
        target_modules=["c_attn"],
        layers_to_transform=list(range(first, shape.layers)),
        fan_in_fan_out=True,
        bias="none",
    )


def natural_tokens(case: Case) -> Tokens:
    """The diagnosis wordings in the words of the study's encoder."""
    texts = list(wordings(case.size.records).texts)
    found = tokenizer()(texts, truncation=True, max_length=case.size.max_length)
    ids: Tokens = found["input_ids"]
    return ids


def random_tokens(case: Case) -> Tokens:
    """Random tokens; lengths are uniform from an eighth of the limit up to it."""
    assert case.shape is not None
    source = np.random.default_rng(0)
    longest = case.size.max_length
    lengths = source.integers(longest // 8, longest, case.size.records, endpoint=True)
    return [source.integers(0, case.shape.vocabulary, n).tolist() for n in lengths]


def _collate(rows: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
    """As Transformers' collator for language models: -100 where there is padding."""
    ids = [torch.as_tensor(row["input_ids"]) for row in rows]
    pad = nn.utils.rnn.pad_sequence
    labels = pad(ids, batch_first=True, padding_value=IGNORED)
    return {
        "input_ids": labels.clamp(min=0),
        "attention_mask": (labels != IGNORED).long(),
        "labels": labels,
    }


def _plain_loss(
    logits: torch.Tensor, batch: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """As Transformers computes it, but the mean is over each record's own tokens."""
    labels = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    each = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED
    )
    return each.view_as(labels).sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


def _loss(
    network: nn.Module, states: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    return causal_lm(network(states, mask), targets)


def _encode(network: Any, ids: Tokens, model: CausalModel, device: str) -> TextRecords:
    """Run the tokens through everything below the first adapted block, once."""
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    hidden = network.config.hidden_size
    states = torch.empty(int(offsets[-1]), hidden, dtype=model.compute_dtype)
    tokens = tuple(torch.as_tensor(row) for row in ids)
    body, enabled = network.transformer, model.compute_dtype is torch.bfloat16
    with (
        torch.inference_mode(),
        torch.autocast(device, dtype=torch.bfloat16, enabled=enabled),
    ):
        for rows in padded_batches(lengths, np.arange(len(ids)), _PREFIX_TOKENS):
            padded = nn.utils.rnn.pad_sequence(
                [tokens[i] for i in rows], batch_first=True
            ).to(device)
            places = torch.arange(padded.shape[1], device=device)
            out = body.wte(padded) + body.wpe(places)
            for block in body.h[: model.first_layer]:
                out = block(out)
            for position, row in enumerate(rows):
                states[offsets[row] : offsets[row + 1]] = out[position, : lengths[row]]
    count = len(ids)
    return TextRecords(
        Features(states, offsets),
        np.zeros(count, dtype=np.int64),
        np.arange(count),
        count,
        tokens,
        device,
    )
