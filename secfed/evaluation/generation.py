"""Text by a language model, token after token, through the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from secfed.adapters import AdaptedModel
from secfed.models import device_of, moved, padded_batches

__all__ = ["continued"]

_BATCH_TOKENS: Final = 2048


def continued(
    model: AdaptedModel,
    prompts: Sequence[torch.Tensor],
    new_tokens: int,
    end: int,
    *,
    temperature: float | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """What the model says next: at most ``new_tokens``, up to the end of the text.

    Args:
        model: With the adapter that is asked for already written into it.
        prompts: Token ids, int64, one tensor per prompt.
        new_tokens: At most so many are generated.
        end: The token that ends a text; it is the last one where it comes.
        temperature: Of sampling from the whole vocabulary; None takes the likeliest
            token.
        seed: Public, of sampling; nobody else's generator is moved.
    """
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    found: list[list[int]] = [[] for _ in prompts]
    on_gpu = device_of(model).type == "cuda"
    gpus = range(torch.cuda.device_count() if on_gpu else 0)
    with torch.random.fork_rng(devices=gpus), torch.inference_mode():
        torch.manual_seed(seed)
        for rows in padded_batches(lengths, np.arange(len(prompts)), _BATCH_TOKENS):
            some = _generate(
                model, [prompts[i] for i in rows], new_tokens, end, temperature
            )
            for row, ids in zip(rows.tolist(), some.tolist(), strict=True):
                found[row] = _ended(ids, end)
    return found


def _generate(
    model: AdaptedModel,
    prompts: Sequence[torch.Tensor],
    new_tokens: int,
    end: int,
    temperature: float | None,
) -> torch.Tensor:
    """New tokens (n, at most ``new_tokens``) of some prompts, padded at the left."""
    ids = nn.utils.rnn.pad_sequence(
        list(prompts), batch_first=True, padding_value=end, padding_side="left"
    )
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = torch.arange(ids.shape[1])[None, :] >= ids.shape[1] - lengths[:, None]
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature is not None:
        sampling = {
            "do_sample": True,
            "temperature": temperature,
            "top_k": 0,
            "top_p": 1.0,
        }
    ids, mask = moved([ids, mask], model)
    network: Any = model.network.get_base_model()
    with model.precision(ids.device):
        out: torch.Tensor = network.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            max_new_tokens=new_tokens,
            eos_token_id=end,
            pad_token_id=end,
            repetition_penalty=1.0,
            **sampling,
        )
    return out[:, ids.shape[1] :].cpu()


def _ended(ids: list[int], end: int) -> list[int]:
    """Up to the first end, with it."""
    return ids[: ids.index(end) + 1] if end in ids else ids
