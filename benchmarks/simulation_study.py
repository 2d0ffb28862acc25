"""A study of many sites with a tiny model; everything is made here, nothing loaded.

The encoder has two layers of 16 and random weights; a text is four invented words, and
its class is whether the first begins with a letter of the first half. What is measured
is the way of messages; what is learned is of no interest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import tokenizers
import torch
import transformers

__all__ = ["write_study"]

_WORDS: Final = tuple(f"{a}{b}" for a in "bdfgklm" for b in ("ar", "el", "op"))
_SPECIAL: Final = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
}
_UNITS: Final = 50
_HOLDOUT: Final = 60
_SEED: Final = 5


def write_study(folder: Path, sites: int, rounds: int) -> Path:
    """Model, records, study and policy of so many sites; returns the study's file."""
    digest = _make_encoder(folder / "model")
    # A tenth more than is needed: sites declare what they hold at least.
    _write_texts(folder / "texts.tsv", int(sites * _UNITS * 1.1) + 2 * _HOLDOUT)
    names = [f"site-{number:04d}" for number in range(sites)]
    study = folder / "study.toml"
    study.write_text(_toml(_study(names, digest, rounds)), encoding="utf-8")
    (folder / "site.toml").write_text(_toml(_policy(digest)), encoding="utf-8")
    return study


def _write_texts(path: Path, count: int) -> None:
    draw = np.random.default_rng(_SEED)
    words = draw.choice(_WORDS, size=(count, 4))
    lines = [f"{int(row[0][0] < 'g')}\t{' '.join(row)}" for row in words]
    path.write_text("\n".join(["label\ttext", *lines]) + "\n", encoding="utf-8")


def _make_encoder(folder: Path) -> str:
    """Save a small BERT with its tokenizer; returns the digest of its weights."""
    torch.manual_seed(_SEED)
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=len(_WORDS) + len(_SPECIAL),
        max_position_embeddings=16,
        initializer_range=0.3,
    )
    transformers.BertModel(config).save_pretrained(folder)
    known = [*_SPECIAL.values(), *_WORDS]
    vocabulary = {word: number for number, word in enumerate(known)}
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token=_SPECIAL["unk_token"])
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, **_SPECIAL
    ).save_pretrained(folder)
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def _study(names: list[str], digest: str, rounds: int) -> dict[str, Any]:
    return {
        "format": 1,
        "study": {"name": "many-sites", "title": f"{len(names)} sites, a tiny model"},
        "data": {
            "source": "texts.tsv",
            "format": "tsv",
            "text_column": "text",
            "label_column": "label",
            "labels": ["0", "1"],
            "partition": {"kind": "iid", "sites": names},
            "holdout": {"fraction": 0.05, "max_records": _HOLDOUT},
        },
        "model": {
            "path": "model",
            "sha256": digest,
            "max_length": 8,
            "dtype": "float32",
        },
        "adapter": {
            "r": 2,
            "lora_alpha": 4.0,
            "target_modules": ["query", "value"],
            "layers": 1,
        },
        "training": {
            "method": "ffa-lora",
            "rounds": rounds,
            "steps_per_round": 1,
            "expected_batch": 10,
            "optimizer": "sgd",
            "head_learning_rate": 1.0,
            "learning_rate": {"ffa-lora": 1.0},
        },
        "privacy": {
            "epsilon": 8.0,
            "delta": 1e-5,
            "unit": "record",
            "nominal_units": dict.fromkeys(names, _UNITS),
        },
        "simulation": {"seed": _SEED},
    }


def _policy(digest: str) -> dict[str, Any]:
    return {
        "format": 1,
        "population": "invented-texts",
        "max_epsilon": 30.0,
        "delta": 1e-5,
        "min_units": 10,
        "min_sites": 3,
        "allowed_methods": ["ffa-lora"],
        "allowed_model_sha256": [digest],
        "require_mode": "malicious",
    }


def _toml(values: Mapping[str, Any], table: str = "") -> str:
    """Nested tables as TOML; strings, numbers, lists of strings and tables only."""
    plain = {k: v for k, v in values.items() if not isinstance(v, dict)}
    lines = [f"[{table}]"] if table else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    parts = ["\n".join(lines)]
    for key, value in values.items():
        if isinstance(value, dict):
            parts.append(_toml(value, f"{table}.{key}" if table else key))
    return "\n\n".join(parts) + "\n"
