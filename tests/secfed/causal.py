"""Small causal language models of both families, with texts in two invented languages.

Random weights made here, and a tokenizer trained on these texts: nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
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
LANGUAGES = ("tidal", "alpine")
LENGTH, HIDDEN, VOCABULARY = 12, 16, 200
TARGETS = {"gpt2": ("c_attn",), "llama": ("q_proj", "v_proj")}
RATES = ("ffa-lora", "fedavg", "fedsa-lora", "local")


def texts(language: str, count: int, seed: int) -> list[str]:
    """Documents of 20 to 40 words, each word likely to follow its neighbours."""
    rng = np.random.default_rng([seed, LANGUAGES.index(language)])
    ends = ("mar", "sal", "ond") if language == "tidal" else ("pic", "roc", "gel")
    words = [f"{chr(97 + i)}{end}" for i in range(12) for end in ends]
    found = []
    for _ in range(count):
        place, chosen = int(rng.integers(len(words))), []
        for _ in range(int(rng.integers(20, 41))):
            place = (place + int(rng.integers(1, 4))) % len(words)
            chosen.append(words[place])
        found.append(" ".join(chosen))
    return found


def write_texts(folder: Path, count: int = 90) -> None:
    rows = [
        {"doc": f"{language}-{number}", "language": language, "text": text}
        for language in LANGUAGES
        for number, text in enumerate(texts(language, count, 1))
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "texts.jsonl").write_text(lines, encoding="utf-8")


def make_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE, as both families use."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    source = [text for language in LANGUAGES for text in texts(language, 40, 2)]
    made.train_from_iterator(source, trainer)
    return made


def config_of(family: str) -> Any:
    if family == "gpt2":
        return transformers.GPT2Config(
            n_layer=2,
            n_head=2,
            n_embd=HIDDEN,
            vocab_size=VOCABULARY,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=0,
        )
    return transformers.LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=HIDDEN,
        intermediate_size=32,
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def make_model(folder: Path, family: str) -> str:
    """Save a model of this family; returns its digest."""
    torch.manual_seed(3)
    network = transformers.AutoModelForCausalLM.from_config(config_of(family))
    network.save_pretrained(folder)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def causal_values(family: str, digest: str, rounds: int = 2) -> dict[str, Any]:
    return {
        "format": 1,
        "study": {"name": "small-lm", "title": "Two languages at four sites"},
        "task": {"kind": "causal-lm"},
        "data": {
            "source": "texts.jsonl",
            "text_column": "text",
            "label_column": "language",
            "labels": list(LANGUAGES),
            "partition": {"kind": "dirichlet", "sites": list(SITES), "alpha": 3.0},
            "holdout": {"fraction": 0.2, "max_records": 40},
        },
        "model": {"path": "model", "sha256": digest, "max_length": LENGTH},
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
            "learning_rate": dict.fromkeys(RATES, 1.0),
        },
        "privacy": {
            "epsilon": 8.0,
            "delta": 1e-4,
            "unit": "record",
            "nominal_units": dict.fromkeys(SITES, 60),
        },
        "secagg": {"suite": "x25519"},
    }


def causal_study(family: str, digest: str, **changes: Any) -> Study:
    """The study with keys ``table__key`` replaced; None takes a key out."""
    values = causal_values(family, digest)
    for dotted, value in changes.items():
        table, _, key = dotted.partition("__")
        own = values.setdefault(table, {})
        if value is None:
            own.pop(key, None)
        else:
            own[key] = value
    return load_study_dict(values, "small-lm")


def causal_policy(study: Study) -> SitePolicy:
    policy = small_policy(30.0, *(rule for rule in RATES if rule != "fedavg"))
    changes = {"allowed_model_sha256": (study.model.sha256,), "delta": 1e-4}
    return policy.model_copy(update=changes)
