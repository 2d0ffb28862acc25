"""What all base models share: opening the folder, and states computed once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secfed.errors import ModelError
from secfed.model_files import WEIGHTS, find_model
from secfed.models.device import moved
from secfed.study.sections import ModelSection

__all__ = [
    "WORDS",
    "AnswerFeatures",
    "Architecture",
    "BaseModel",
    "Features",
    "TokenFeatures",
    "answer_places",
    "compute_dtype",
    "compute_states",
    "module_list",
    "offline_transformers",
    "open_folder",
    "padded_batches",
]

_PREFIX_BATCH_TOKENS = 8192

WORDS: Final = -1
"""In place of the first adapted layer: nothing is computed below but the words, for
adapters that put something before them."""


class Architecture(Protocol):
    """How one family of models is taken apart at its layers."""

    @property
    def task_type(self) -> str:
        """PEFT's name of the task that the stock class is for."""
        ...

    @property
    def transposed(self) -> bool:
        """Whether adapted weights are stored (in, out) and not (out, in)."""
        ...

    def layers(self, network: nn.Module, /) -> nn.ModuleList:
        """The transformer layers, lowest first."""
        ...

    def words(self, network: nn.Module, tokens: torch.Tensor, /) -> torch.Tensor:
        """The words alone (n, tokens, hidden), without their places."""
        ...

    def placed(
        self,
        network: nn.Module,
        words: torch.Tensor,
        before: int,
        segments: torch.Tensor | None = None,
        /,
    ) -> torch.Tensor:
        """States below the first layer, of words with ``before`` tokens before them.

        ``segments`` are the numbers of the tokens' segments, where a model has them.
        """
        ...

    def run(
        self,
        network: nn.Module,
        layers: Sequence[nn.Module] | nn.ModuleList,
        states: torch.Tensor,
        mask: torch.Tensor,
        past: Any = None,
        /,
    ) -> torch.Tensor:
        """Apply some of the layers; ``mask`` is True where a token is real.

        Args:
            network: That the layers are of.
            layers: Lowest first.
            states: (n, tokens, hidden).
            mask: (n, tokens).
            past: Keys and values that every token sees besides; a cache of
                Transformers', for causal models only.
        """
        ...


@dataclass(frozen=True)
class BaseModel:
    """A frozen model in evaluation mode.

    ``network`` is an object of Transformers, every parameter frozen; ``tokenizer``
    is None where texts come as tokens; ``digest`` is the SHA-256 of the weights file,
    ``rounded_digest`` that of the layers as they multiply, where they are quantised.
    """

    network: nn.Module
    tokenizer: Any
    digest: str
    max_length: int
    compute_dtype: torch.dtype
    architecture: Architecture
    quantisation: str | None = None
    rounded_digest: str | None = None

    @property
    def transposed(self) -> bool:
        """Whether adapted weights lie as (in, out); quantised ones never do."""
        return self.architecture.transposed and self.quantisation is None

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, lowest first."""
        return self.architecture.layers(self.network)


@dataclass(frozen=True)
class Features:
    """Hidden states below the first adapted layer, without padding.

    ``states[offsets[i]:offsets[i + 1]]`` are the token states (tokens, hidden) of
    text i. They depend on the text and the frozen base only, so caching them is
    exact; they are as private as the text itself.
    """

    states: torch.Tensor
    offsets: NDArray[np.int64]
    _flat: ClassVar[tuple[str, ...]] = ("states",)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per text, int64 of shape (len(self),)."""
        return np.diff(self.offsets)

    def batch(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded states (n, longest, hidden) and mask (n, longest) of some rows."""
        texts = [self.states[self.offsets[i] : self.offsets[i + 1]] for i in rows]
        states = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        return states, _real(self.lengths[rows])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The texts of all parts, in their order."""
        lengths = np.concatenate([part.lengths for part in parts])
        flat = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in cls._flat
        }
        return cls(offsets=np.concatenate([[0], np.cumsum(lengths)]), **flat)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<private>)"


@dataclass(frozen=True, repr=False)
class TokenFeatures(Features):
    """The states of texts whose tokens are to be predicted.

    ``tokens`` are the texts' token ids, int64, flat as ``states``.
    """

    tokens: torch.Tensor
    _flat: ClassVar[tuple[str, ...]] = ("states", "tokens")

    def targets(self, rows: NDArray[np.int64], padding: int) -> torch.Tensor:
        """Token ids (n, longest) of some rows, padded at the right."""
        return nn.utils.rnn.pad_sequence(
            [self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in rows],
            batch_first=True,
            padding_value=padding,
        )


@dataclass(frozen=True, repr=False)
class AnswerFeatures(TokenFeatures):
    """The states of prompts with answers, of which only the answers are predicted.

    ``asked`` is True where a token belongs to the answer, bool, flat as ``states``.
    An answer is the end of its text.
    """

    asked: torch.Tensor
    _flat: ClassVar[tuple[str, ...]] = ("states", "tokens", "asked")

    def targets(self, rows: NDArray[np.int64], padding: int) -> torch.Tensor:
        """Token ids (n, longest) of answers; ``padding`` in prompts and behind."""
        tokens = super().targets(rows, padding)
        asked = nn.utils.rnn.pad_sequence(
            [self.asked[self.offsets[i] : self.offsets[i + 1]] for i in rows],
            batch_first=True,
        )
        return torch.where(asked, tokens, torch.full_like(tokens, padding))

    def prompt(self, row: int) -> torch.Tensor:
        """The token ids of a record's prompt, int64."""
        own = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        return self.tokens[own][~self.asked[own]]


def answer_places(
    targets: torch.Tensor, longest: int, nothing: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where answers are predicted, and what is right there.

    The logits at place t predict the target at t + 1.

    Args:
        targets: (n, tokens), token ids; ``nothing`` where nothing is asked.
        longest: At least the tokens of the longest answer.
        nothing: Padding, in ``targets`` and in what is returned.

    Returns:
        Places and token ids, int64 (n, longest) or fewer columns where there are fewer
        tokens; a row's answer comes first and in order.
    """
    wanted = nn.functional.pad(targets[:, 1:], (0, 1), value=nothing)
    order = (wanted == nothing).to(torch.int8).argsort(dim=1, stable=True)
    places = order[:, :longest]
    return places, wanted.gather(1, places)


def module_list(layers: object, known: str) -> nn.ModuleList:
    """The layers, unless the network has no list of them."""
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(
            f"the base model has no list of layers that secfed knows; {known}"
        )
    return layers


def open_folder(section: ModelSection, base_dir: Path) -> tuple[Path, str]:
    """The model's folder and the digest of its weights, which is the pinned one.

    Raises:
        ModelError: The folder or the digest is wrong.
    """
    folder = find_model(section, base_dir)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    if digest != section.sha256:
        raise ModelError(
            f"{folder / WEIGHTS}: sha256 is {digest}, the study pins "
            f"{section.sha256}; take the weights the study was approved for"
        )
    return folder, digest


def offline_transformers() -> Any:
    """The library, told to stay quiet and offline."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    import transformers  # noqa: PLC0415 - it reads the offline switches at import

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """``bfloat16`` where the device multiplies it natively, else float32."""
    if name == "bfloat16" and _multiplies_bfloat16(device):
        return torch.bfloat16
    return torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return native
    return _cpu_has("avx512_bf16") or _cpu_has("amx_bf16")


def _cpu_has(flag: str) -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and f" {flag}" in info.read_text(
        encoding="ascii", errors="replace"
    )


def compute_states(
    base: BaseModel,
    ids: Sequence[Sequence[int]],
    first_layer: int,
    progress: Callable[[int, int], None],
    segments: Sequence[Sequence[int]] | None = None,
) -> Features:
    """Run token ids through everything below ``first_layer``, or ``WORDS``, once.

    ``segments`` are the numbers of every token's segment, for texts of two.
    """
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    hidden = base.network.config.hidden_size  # type: ignore[union-attr]
    states = torch.empty(int(offsets[-1]), int(hidden), dtype=base.compute_dtype)  # type: ignore[arg-type]
    below, kind = base.layers[: max(first_layer, 0)], base.architecture
    done = 0
    with torch.inference_mode():
        for rows in padded_batches(lengths, np.arange(len(ids)), _PREFIX_BATCH_TOKENS):
            mask = _real(lengths[rows])
            batch = [mask, _padded([ids[i] for i in rows])]
            if segments is not None:
                batch.append(_padded([segments[i] for i in rows]))
            mask, tokens, *parts = moved(batch, base.network)
            with torch.autocast(
                tokens.device.type,
                dtype=torch.bfloat16,
                enabled=base.compute_dtype is torch.bfloat16,
            ):
                out = kind.words(base.network, tokens)
                if first_layer != WORDS:
                    out = kind.placed(base.network, out, 0, *parts)
                    out = kind.run(base.network, below, out, mask)
            out = out.cpu()
            for position, row in enumerate(rows):
                states[offsets[row] : offsets[row + 1]] = out[position, : lengths[row]]
            done += len(rows)
            progress(done, len(ids))
    return Features(states=states, offsets=offsets)


def _real(lengths: NDArray[np.int64]) -> torch.Tensor:
    """True where a token is one of the text's, bool (n, longest)."""
    places = torch.arange(int(lengths.max()))
    return places[None, :] < torch.as_tensor(lengths)[:, None]


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Whole numbers (n, longest), padded at the right by zeros."""
    return nn.utils.rnn.pad_sequence(
        [torch.as_tensor(row) for row in rows], batch_first=True
    )


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
