"""Prompted studies on the small language models: which language are two lines in?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from causal import LANGUAGES, SITES, TARGETS, causal_values, config_of, texts

from secfed.study import Study, load_study_dict

PROMPT = "{first} & {second} {{x}} =>"
ANSWERS = {"tidal": " tidal sea", "alpine": " rock"}
LENGTH = 24
VOCABULARY = 200


def write_pairs(folder: Path, count: int = 90) -> None:
    """Two lines of two or three words each, and their language."""
    rows = []
    for language in LANGUAGES:
        words = [" ".join(text.split()[:5]) for text in texts(language, count, 7)]
        for number, line in enumerate(words):
            first, second = line.split()[:2], line.split()[2:]
            rows.append(
                {
                    "id": f"{language}-{number}",
                    "language": language,
                    "first": " ".join(first),
                    "second": " ".join(second),
                }
            )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "pairs.jsonl").write_text(lines, encoding="utf-8")


def make_tokenizer(*, special: bool = False) -> tokenizers.Tokenizer:
    """Bytes and some words; ``special`` adds a first and a last token to texts."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>", "<|begin|>"],
        initial_alphabet=sorted(set(" &{}=>")),
        show_progress=False,
    )
    source = [text for language in LANGUAGES for text in texts(language, 40, 2)]
    source += [PROMPT.replace("{{", "{").replace("}}", "}"), *ANSWERS.values()] * 50
    made.train_from_iterator(source, trainer)
    if special:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|begin|> $A <|end|>",
            special_tokens=[("<|begin|>", 1), ("<|end|>", 0)],
        )
    return made


def make_model(folder: Path, family: str, *, special: bool = False) -> str:
    torch.manual_seed(3)
    config = config_of(family)
    config.initializer_range = 0.3  # So that an adapter can say something else.
    network = transformers.AutoModelForCausalLM.from_config(config)
    network.save_pretrained(folder)
    make_tokenizer(special=special).save(str(folder / "tokenizer.json"))
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def prompted_values(family: str, digest: str, rounds: int = 2) -> dict[str, Any]:
    values = causal_values(family, digest, rounds)
    values["task"] = {
        "kind": "prompted-lm",
        "prompt": PROMPT,
        "answers": dict(ANSWERS),
    }
    del values["data"]["text_column"]
    values["data"]["source"] = "pairs.jsonl"
    values["data"]["holdout"]["max_records"] = 30
    values["data"]["partition"] = {"kind": "iid", "sites": list(SITES)}
    values["model"]["max_length"] = LENGTH
    values["adapter"]["target_modules"] = list(TARGETS[family])
    values["privacy"]["nominal_units"] = dict.fromkeys(SITES, 34)
    return values


def prompted_study(family: str, digest: str, **changes: Any) -> Study:
    """The study with keys ``table__key`` replaced; None takes a key out."""
    values = prompted_values(family, digest)
    for dotted, value in changes.items():
        table, _, key = dotted.partition("__")
        own = values.setdefault(table, {})
        if value is None:
            own.pop(key, None)
        else:
            own[key] = value
    return load_study_dict(values, "prompted")
