"""A language model's answers on the public hold-out: which label, and which words.

A prompt is continued greedily, and the text is read as one of the answers. As long as
the likeliest token is the right one, the pass that measures the right answer's
perplexity shows it too, over cached states; what leaves the right answer is continued
by the whole model. The two agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from secfed.adapters import AdaptedModel
from secfed.evaluation.classes import Scores, score
from secfed.evaluation.generation import continued
from secfed.evaluation.rouge import rouge_means
from secfed.evaluation.texts import LOGIT_TOKENS, NOTHING, TokenCounts
from secfed.models import AnswerFeatures, answer_places, moved, padded_batches
from secfed.study.task import normalised
from secfed.types import Adapter

__all__ = [
    "Questions",
    "constant_answers",
    "generated",
    "read_answer",
    "score_answers",
]

_NO_ANSWER = -1


@dataclass(frozen=True)
class Questions:
    """What a prompted study asks, and how its model is made to speak.

    Attributes:
        tokenizer: Of the model.
        answers: The text of every label, in their order.
        end: The token that ends an answer.
        longest: Tokens of the longest answer, with its end.
        positive: The label whose F1 is wanted.
        temperature: Of sampling; None takes the likeliest token.
        seed: Public, of sampling.
    """

    tokenizer: Tokenizer = field(repr=False)
    answers: tuple[str, ...]
    end: int
    longest: int
    positive: int | None = None
    temperature: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class _Forced:
    """What the model would say at every place of the right answers.

    Attributes:
        counts: Loss, right tokens and tokens of every record.
        wanted: The right tokens (n, longest), ``NOTHING`` behind them.
        likeliest: The model's tokens there, given the right ones before.
    """

    counts: TokenCounts
    wanted: NDArray[np.int64]
    likeliest: NDArray[np.int64]


def score_answers(
    model: AdaptedModel,
    adapter: Adapter,
    features: AnswerFeatures,
    labels: NDArray[np.int64],
    questions: Questions,
) -> dict[str, float]:
    """Scores of the labels that were read, then of words and of tokens.

    Returns:
        Those of ``Scores``; ``unparsed``, the share of texts that are no answer, which
        are wrong; ROUGE by ``rouge.ROUGE``; ``perplexity``, of the right answers'
        tokens, ends included.
    """
    model.write(adapter.tensors)
    model.eval()
    forced = _forced(model, features, questions.longest)
    texts = _spoken(model, features, forced, questions)
    found = np.array([read_answer(text, questions.answers) for text in texts])
    line = score(labels, found, len(questions.answers), questions.positive).line()
    line["unparsed"] = float((found == _NO_ANSWER).mean())
    line |= rouge_means(texts, [questions.answers[label] for label in labels])
    spoken = forced.counts.scores()
    return line | ({} if spoken is None else {"perplexity": spoken.perplexity})


def generated(
    model: AdaptedModel,
    adapter: Adapter,
    features: AnswerFeatures,
    questions: Questions,
) -> list[str]:
    """The text that follows every prompt."""
    model.write(adapter.tensors)
    model.eval()
    forced = _forced(model, features, questions.longest)
    return _spoken(model, features, forced, questions)


def constant_answers(
    labels: NDArray[np.int64], constants: Sequence[Scores], questions: Questions
) -> dict[str, dict[str, float]]:
    """What a model scores that gives the same answer to everyone, by answer."""
    wanted = [questions.answers[label] for label in labels]
    return {
        " ".join(answer.split()): scores.line()
        | {"unparsed": 0.0}
        | rouge_means([answer] * len(wanted), wanted)
        for answer, scores in zip(questions.answers, constants, strict=True)
    }


def read_answer(text: str, answers: Sequence[str]) -> int:
    """The number of the answer with which a text begins, or -1.

    Capitals and white space do not count; a word is not cut: "equivalently" is not
    "equivalent". Of several answers it is the longest.
    """
    said, best = normalised(text), _NO_ANSWER
    for number, answer in enumerate(answers):
        plain = normalised(answer)
        behind = said[len(plain) : len(plain) + 1]
        longer = best == _NO_ANSWER or len(plain) > len(normalised(answers[best]))
        if said.startswith(plain) and not behind.isalnum() and longer:
            best = number
    return best


def _forced(model: AdaptedModel, features: AnswerFeatures, longest: int) -> _Forced:
    """One pass over the right answers."""
    count = len(features)
    wanted = np.full((count, longest), NOTHING, dtype=np.int64)
    likeliest, loss = wanted.copy(), np.zeros(count)
    with torch.inference_mode():
        everything = np.arange(count)
        for rows in padded_batches(features.lengths, everything, 8 * LOGIT_TOKENS):
            targets = features.targets(rows, NOTHING)
            told = answer_places(targets, longest, NOTHING)
            whole = (*features.batch(rows), *told)
            *batch, places, asked = moved(whole, model)
            logits = model(*batch, places)
            each = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1),
                asked.flatten(),
                reduction="none",
                ignore_index=NOTHING,
            ).view_as(asked)
            loss[rows] = each.double().sum(dim=1).numpy(force=True)
            wanted[rows, : asked.shape[1]] = asked.numpy(force=True)
            best = logits.argmax(dim=2).numpy(force=True)
            likeliest[rows, : asked.shape[1]] = best
    here = wanted != NOTHING
    counts = TokenCounts(
        loss=loss,
        right=((likeliest == wanted) & here).sum(axis=1),
        tokens=here.sum(axis=1),
    )
    return _Forced(counts, wanted, likeliest)


def _spoken(
    model: AdaptedModel, features: AnswerFeatures, forced: _Forced, questions: Questions
) -> list[str]:
    """The texts, greedy or sampled."""
    if questions.temperature is not None:
        prompts = [features.prompt(row) for row in range(len(features))]
        ids = continued(
            model,
            prompts,
            questions.longest,
            questions.end,
            temperature=questions.temperature,
            seed=questions.seed,
        )
    else:
        ids = _greedy(model, features, forced, questions)
    return [
        questions.tokenizer.decode(
            [token for token in own if token != questions.end], skip_special_tokens=True
        ).strip()
        for own in ids
    ]


def _greedy(
    model: AdaptedModel, features: AnswerFeatures, forced: _Forced, questions: Questions
) -> list[list[int]]:
    """The likeliest tokens after every prompt."""
    found = [
        _until_wrong(wanted, likeliest)
        for wanted, likeliest in zip(
            forced.wanted.tolist(), forced.likeliest.tolist(), strict=True
        )
    ]
    open_rows = [
        row
        for row, ids in enumerate(found)
        if ids[-1] != questions.end and len(ids) < questions.longest
    ]
    if open_rows:
        prompts = [
            torch.cat([features.prompt(row), torch.tensor(found[row])])
            for row in open_rows
        ]
        fewest = min(len(found[row]) for row in open_rows)
        rest = continued(model, prompts, questions.longest - fewest, questions.end)
        for row, ids in zip(open_rows, rest, strict=True):
            found[row] = (found[row] + ids)[: questions.longest]
    return found


def _until_wrong(wanted: list[int], likeliest: list[int]) -> list[int]:
    """The model's tokens, up to the first that is not the right one."""
    ids: list[int] = []
    for right, token in zip(wanted, likeliest, strict=True):
        if right == NOTHING:
            break
        ids.append(token)
        if token != right:
            break
    return ids
