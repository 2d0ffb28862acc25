"""Small encoders saved as a study finds them, and a study of pairs of texts.

Random weights and a tokenizer of whole words made here: nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from small import small_policy

from secfed.policy import SitePolicy
from secfed.study import Study, load_study_dict

SITES = ("north", "east", "south", "west")
WORDS = tuple(f"{a}{b}" for a in "bdfgklm" for b in ("ar", "el", "op"))
LENGTH = 16
METHODS = ("ffa-lora", "fedavg")
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
}
TARGETS = {"bert": ("query", "value"), "distilbert": ("q_lin", "v_lin")}


def write_pairs(folder: Path, count: int = 240) -> None:
    """Tab-separated: two lines, 1 where they begin with the same word (two in three)."""
    rng = np.random.default_rng(5)
    lines = ["Quality\t#1 String\t#2 String"]
    for _ in range(count):
        first = list(rng.choice(WORDS, size=4))
        second = list(rng.choice(WORDS, size=3))
        same = bool(rng.random() < 2 / 3)
        second[0] = (
            first[0] if same else rng.choice([w for w in WORDS if w != first[0]])
        )
        lines.append(f'{int(same)}\t"{" ".join(first)}\t{" ".join(second)}')
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def config_of(family: str) -> Any:
    known = len(WORDS) + 5
    if family == "distilbert":
        return transformers.DistilBertConfig(
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=32,
            vocab_size=known,
            max_position_embeddings=32,
        )
    return transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=known,
        max_position_embeddings=32,
    )


def make_encoder(folder: Path, family: str = "bert") -> str:
    torch.manual_seed(3)
    config = config_of(family)
    config.initializer_range = 0.3
    transformers.AutoModelForTokenClassification.from_config(config).save_pretrained(
        folder
    )
    known = [*SPECIAL.values(), '"', *WORDS]
    vocabulary = {word: number for number, word in enumerate(known)}
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"])
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    kind = (
        transformers.DistilBertTokenizerFast
        if family == "distilbert"
        else transformers.BertTokenizerFast
    )
    kind(
        tokenizer_object=made,
        **SPECIAL,
    ).save_pretrained(folder)
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def pair_values(family: str, digest: str, rounds: int = 2) -> dict[str, Any]:
    return {
        "format": 1,
        "study": {"name": "pairs", "title": "Do two lines begin alike?"},
        "task": {"kind": "classification", "score": "f1", "positive": "1"},
        "data": {
            "source": "pairs.txt",
            "format": "tsv",
            "text_column": "#1 String",
            "text_pair_column": "#2 String",
            "label_column": "Quality",
            "labels": ["0", "1"],
            "partition": {"kind": "iid", "sites": list(SITES)},
            "holdout": {"fraction": 0.2},
        },
        "model": {
            "path": "model",
            "sha256": digest,
            "max_length": LENGTH,
            "dtype": "float32",
        },
        "adapter": {
            "r": 2,
            "lora_alpha": 4.0,
            "target_modules": list(TARGETS[family]),
            "layers": 1,
        },
        "training": {
            "method": "ffa-lora",
            "rounds": rounds,
            "steps_per_round": 2,
            "expected_batch": 16,
            "optimizer": "sgd",
            "head_learning_rate": 1.0,
            "learning_rate": dict.fromkeys(METHODS, 1.0),
        },
        "privacy": {
            "epsilon": 8.0,
            "delta": 1e-4,
            "unit": "record",
            "nominal_units": dict.fromkeys(SITES, 40),
        },
        "secagg": {"suite": "x25519"},
    }


def pair_study(family: str, digest: str, **changes: Any) -> Study:
    """The study with keys ``table__key`` or tables replaced; None takes a key out."""
    values = pair_values(family, digest)
    for dotted, value in changes.items():
        table, _, key = dotted.partition("__")
        if not key:
            values[table] = value
            continue
        own = values.setdefault(table, {})
        if value is None:
            own.pop(key, None)
        else:
            own[key] = value
    return load_study_dict(values, "pairs")


def pair_policy(study: Study) -> SitePolicy:
    policy = small_policy(40.0, "head-only")
    changes = {"allowed_model_sha256": (study.model.sha256,), "delta": 1e-4}
    return policy.model_copy(update=changes)
