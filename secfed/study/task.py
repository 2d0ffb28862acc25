"""``[task]``: what the model learns to do, and the score that decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, Final, Literal, Self

from pydantic import StringConstraints, model_validator

from secfed.study.fields import Positive, Seed, Text
from secfed.study.reading import ContradictionError, Table

__all__ = ["SCORES", "PromptTemplate", "TaskSection", "normalised", "parse_prompt"]

SCORES: Final = ("accuracy", "macro-f1", "f1", "matthews")

_CAUSAL: Final = "causal-lm"
_PROMPTED: Final = "prompted-lm"


@dataclass(frozen=True)
class PromptTemplate:
    """Text with places for columns.

    Attributes:
        literals: What stands before every column, and after the last one.
        columns: The columns' names, one fewer than literals.
    """

    literals: tuple[str, ...]
    columns: tuple[str, ...]

    def filled(self, values: Mapping[str, str]) -> str:
        """The text with every column's value; values are copied as they stand."""
        parts = [self.literals[0]]
        for column, literal in zip(self.columns, self.literals[1:], strict=True):
            parts += [values[column], literal]
        return "".join(parts)


def parse_prompt(text: str) -> PromptTemplate:
    """Read ``"... {column} ..."``; ``{{`` and ``}}`` stand for braces.

    Raises:
        ContradictionError: A brace is left open, a place has no name or a format,
            or there is no place.
    """
    literals, columns = [""], []
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ContradictionError("prompt", f"{error}; write {{{{ for a brace") from None
    for literal, name, form, conversion in parts:
        literals[-1] += literal
        if name is None:
            continue
        if not name.strip() or form or conversion:
            raise ContradictionError(
                "prompt", "a place holds the name of a column and nothing else"
            )
        columns.append(name)
        literals.append("")
    if not columns:
        raise ContradictionError("prompt", "name a column, as in {sentence}")
    return PromptTemplate(tuple(literals), tuple(columns))


def normalised(text: str) -> str:
    """Text without its capitals and with single spaces: how answers are compared."""
    return " ".join(text.casefold().split())


class TaskSection(Table):
    """``[task]``: without it, to classify texts, and accuracy decides."""

    kind: Literal["classification", "causal-lm", "prompted-lm"]
    # None is accuracy: a study that says nothing keeps its digest.
    score: Literal["accuracy", "macro-f1", "f1", "matthews"] | None = None
    # The label whose F1 is meant.
    positive: Text | None = None
    prompt: Annotated[str, StringConstraints(min_length=1, max_length=8000)] | None = (
        None
    )
    # Label to the text that is learned and asked for, as it follows the prompt.
    answers: Mapping[Text, Text] | None = None
    # Of generation for scores; without it the likeliest token is taken.
    temperature: Positive | None = None
    generation_seed: Seed | None = None

    @property
    def template(self) -> PromptTemplate | None:
        """The prompt, taken apart; None where the task has none."""
        return None if self.prompt is None else parse_prompt(self.prompt)

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        needed = {"prompt": self.prompt, "answers": self.answers}
        optional = {
            "temperature": self.temperature,
            "generation_seed": self.generation_seed,
        }
        for key, value in (needed | optional).items():
            if value is not None and self.kind != _PROMPTED:
                raise ContradictionError(key, f"belongs to kind = {_PROMPTED!r} only")
        for key, value in needed.items():
            if value is None and self.kind == _PROMPTED:
                raise ContradictionError(key, f"required with kind = {_PROMPTED!r}")
        if (self.generation_seed is None) != (self.temperature is None):
            raise ContradictionError(
                "generation_seed", "sampling has a temperature and a public seed, both"
            )
        return self

    @model_validator(mode="after")
    def _scored(self) -> Self:
        for key, value in (("score", self.score), ("positive", self.positive)):
            if value is not None and self.kind == _CAUSAL:
                raise ContradictionError(
                    key, f"kind = {_CAUSAL!r} has no classes; perplexity decides"
                )
        if self.score == "f1" and self.positive is None:
            raise ContradictionError(
                "positive", "required with score = 'f1': the label that is looked for"
            )
        return self

    @model_validator(mode="after")
    def _answered(self) -> Self:
        if self.prompt is not None:
            parse_prompt(self.prompt)
        seen: dict[str, str] = {}
        for label, answer in (self.answers or {}).items():
            plain = normalised(answer)
            if not plain:
                raise ContradictionError(f"answers.{label}", "an answer has no text")
            if plain in seen:
                raise ContradictionError(
                    f"answers.{label}", f"reads like the answer of {seen[plain]!r}"
                )
            seen[plain] = label
        return self
