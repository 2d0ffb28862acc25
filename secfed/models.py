"""Base models: found by path or package, checked by digest, loaded offline.

The only module that touches Transformers. A study names a model by a local path
or by an installed package that carries the weights; nothing is ever downloaded
(PITFALLS 30), only ``model.safetensors`` is read, and its SHA-256 must be the one
that the study pins.

The classifier is Transformers' token classification model read at sequence
level: a linear head commutes with the mean over tokens, so

    logits = head(mean_i h_i) = mean_i head(h_i)

and the released adapter loads with plain ``peft`` on the stock class (the mean
of the token logits over the attention mask are the sequence logits).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secfed.errors import ModelError
from secfed.model_files import WEIGHTS, find_model
from secfed.study.sections import ModelSection

__all__ = [
    "BaseModel",
    "Features",
    "encode_prefix",
    "find_model",
    "load_base_model",
    "padded_batches",
]

_PREFIX_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class BaseModel:
    """A frozen encoder with an untrained head, and its tokenizer.

    ``network`` is a token classification model in evaluation mode, every
    parameter frozen; ``digest`` is the SHA-256 of its weights file.
    """

    network: nn.Module
    tokenizer: Any
    digest: str
    max_length: int
    compute_dtype: torch.dtype

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's transformer layers, lowest first."""
        layers = self.network.base_model.encoder.layer  # type: ignore[union-attr]
        assert_module_list(layers)
        return layers  # type: ignore[return-value]


@dataclass(frozen=True)
class Features:
    """Hidden states below the first adapted layer, without padding.

    ``states[offsets[i]:offsets[i + 1]]`` are the token states (tokens, hidden) of
    text i. They depend on the text and the frozen base only, so caching them is
    exact; they are as private as the text itself.
    """

    states: torch.Tensor
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per text, int64 of shape (len(self),)."""
        return np.diff(self.offsets)

    def batch(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded states (n, longest, hidden) and mask (n, longest) of some rows."""
        texts = [self.states[self.offsets[i] : self.offsets[i + 1]] for i in rows]
        lengths = torch.as_tensor(self.lengths[rows])
        states = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        mask = torch.arange(states.shape[1])[None, :] < lengths[:, None]
        return states, mask

    def __repr__(self) -> str:
        return "Features(<private>)"


def assert_module_list(layers: object) -> None:
    """Refuse a network whose encoder is not a list of layers."""
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(
            "the base model's encoder has no list of layers that secfed knows; "
            "BERT-like encoders are supported"
        )


def load_base_model(
    section: ModelSection, base_dir: Path, num_labels: int
) -> BaseModel:
    """Load the frozen base with an all-zero head of ``num_labels`` classes.

    Raises:
        ModelError: The folder, the digest or the architecture is wrong.
    """
    folder = find_model(section, base_dir)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    if digest != section.sha256:
        raise ModelError(
            f"{folder / WEIGHTS}: sha256 is {digest}, the study pins "
            f"{section.sha256}; take the weights the study was approved for"
        )
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    import transformers  # noqa: PLC0415 - it reads the offline switches at import

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
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
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: not a usable encoder: {error}") from error
    if not hasattr(network, "classifier") or not hasattr(network.base_model, "encoder"):
        raise ModelError(f"{folder}: {type(network).__name__} is not supported yet")
    nn.init.zeros_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    network.requires_grad_(requires_grad=False)
    network.eval()
    return BaseModel(
        network=network,
        tokenizer=tokenizer,
        digest=digest,
        max_length=section.max_length,
        compute_dtype=compute_dtype(section.dtype),
    )


def compute_dtype(name: str) -> torch.dtype:
    """``bfloat16`` where the processor multiplies it natively, else float32."""
    if name == "bfloat16" and (
        torch.cuda.is_available() or _cpu_has("avx512_bf16") or _cpu_has("amx_bf16")
    ):
        return torch.bfloat16
    return torch.float32


def _cpu_has(flag: str) -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and f" {flag}" in info.read_text(
        encoding="ascii", errors="replace"
    )


def encode_prefix(
    base: BaseModel,
    texts: Sequence[str],
    first_layer: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Features:
    """Run the texts through everything below ``first_layer``, once.

    Args:
        base: The frozen model.
        texts: Any number of texts; each is cut at ``base.max_length`` tokens.
        first_layer: The lowest layer that carries an adapter.
        progress: Called with (texts done, texts in all).
    """
    ids = base.tokenizer(
        list(texts), truncation=True, max_length=base.max_length, padding=False
    )["input_ids"]
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    hidden = base.network.config.hidden_size  # type: ignore[union-attr]
    states = torch.empty(int(offsets[-1]), int(hidden), dtype=base.compute_dtype)  # type: ignore[arg-type]
    done = 0
    with torch.inference_mode():
        for rows in padded_batches(lengths, np.arange(len(ids)), _PREFIX_BATCH_TOKENS):
            tokens = nn.utils.rnn.pad_sequence(
                [torch.as_tensor(ids[i]) for i in rows], batch_first=True
            )
            mask = (
                torch.arange(tokens.shape[1])[None, :]
                < torch.as_tensor(lengths[rows])[:, None]
            )
            with torch.autocast(
                "cpu",
                dtype=torch.bfloat16,
                enabled=base.compute_dtype is torch.bfloat16,
            ):
                out = base.network.base_model.embeddings(input_ids=tokens)  # type: ignore[union-attr,operator]
                out = run_layers(base.layers[:first_layer], out, mask)
            for position, row in enumerate(rows):
                states[offsets[row] : offsets[row + 1]] = out[position, : lengths[row]]
            done += len(rows)
            progress(done, len(ids))
    return Features(states=states, offsets=offsets)


def run_layers(
    layers: Sequence[nn.Module] | nn.ModuleList,
    states: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Apply transformer layers; ``mask`` is True where a token is real."""
    attention = mask[:, None, None, :]
    for layer in layers:
        out = layer(states, attention)
        states = out[0] if isinstance(out, tuple) else out
    return states


def padded_batches(
    lengths: NDArray[np.int64], rows: NDArray[np.int64], max_tokens: int
) -> Iterator[NDArray[np.int64]]:
    """Split ``rows`` into batches of similar length and bounded padded size."""
    ordered = rows[np.argsort(lengths[rows], kind="stable")]
    start = 0
    for end in range(1, len(ordered) + 1):
        full = end == len(ordered) or (
            (end + 1 - start) * int(lengths[ordered[end]]) > max_tokens
        )
        if full:
            yield ordered[start:end]
            start = end
