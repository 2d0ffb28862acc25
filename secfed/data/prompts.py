"""Records become a prompt and its answer: what a language model is taught to say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from secfed.data.records import RecordTable
from secfed.model_files import find_model
from secfed.study import Study
from secfed.tokens import answer_tokens, end_token, load_tokenizer, prompt_tokens

__all__ = ["records_to_prompts"]


def records_to_prompts(table: RecordTable, study: Study, base_dir: Path) -> RecordTable:
    """Tokens of every record's prompt, followed by those of its label's answer.

    Guarantees:
        No record is left out or added. An answer is never cut. A prompt is cut at its
        beginning, to what leaves room for the longest answer of the study: its length
        says nothing about its own.

    Raises:
        ModelError: The base model or its tokenizer is not here, or ``max_length`` has
            no room for a prompt.
    """
    folder = find_model(study.model, base_dir)
    tokenizer = load_tokenizer(folder)
    texts = (study.task.answers if study.task else None) or {}
    answers = answer_tokens(
        tokenizer, [texts[name] for name in table.label_names], end_token(folder)
    )
    room = study.model.max_length - max(map(len, answers))
    prompts = list(prompt_tokens(tokenizer, table.texts, room))
    labels = table.labels.tolist()
    return replace(
        table,
        tokens=tuple(
            prompt + answers[label]
            for prompt, label in zip(prompts, labels, strict=True)
        ),
        prompt_tokens=tuple(map(len, prompts)),
    )
