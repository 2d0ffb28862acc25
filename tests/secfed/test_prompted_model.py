"""Prompts and answers: what is cut, what is asked, gradients, and what is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prompted import ANSWERS, LENGTH, TARGETS, make_model, make_tokenizer
from small import randomised
from torch import nn

from secfed.adapters import attach_adapter, initial_adapter
from secfed.errors import ModelError
from secfed.evaluation import Questions, constant_answers, constant_scores
from secfed.evaluation.answers import generated, read_answer, score_answers
from secfed.evaluation.rouge import rouge_means
from secfed.models import AnswerFeatures, encode_answers, load_causal_model
from secfed.study.sections import AdapterSection, ModelSection
from secfed.tokens import answer_tokens, end_token, load_tokenizer, prompt_tokens
from secfed.training import AnswerLoss, CausalLoss, OpacusGradients, TokenRecords
from secfed.training.losses import IGNORED
from secfed.training.selftest import check_independence
from secfed.types import Adapter

TEXTS = [
    f"{word} & {word[::-1]} =>"
    for word in ("amar", "bsal", "cond", "apic", "broc", "cgel")
]
LABELS = np.array([0, 1, 0, 1, 1, 0])


class Tiny:
    """A saved model with adapters on its upper layer, and six questions."""

    def __init__(self, folder: Path, family: str) -> None:
        section = ModelSection(
            path=folder.name, sha256=make_model(folder, family), max_length=LENGTH
        )
        adapter = AdapterSection(
            r=2, lora_alpha=4.0, target_modules=TARGETS[family], layers=1
        )
        self.base = load_causal_model(section, folder.parent)
        self.model = attach_adapter(self.base, adapter)
        self.start = initial_adapter(self.model, adapter)
        self.busy = randomised(self.start, 0.5)
        self.tokenizer = load_tokenizer(folder)
        end = end_token(folder)
        answers = tuple(ANSWERS.values())
        self.answers = answer_tokens(self.tokenizer, answers, end)
        self.questions = Questions(
            self.tokenizer, answers, end, max(map(len, self.answers))
        )
        self.prompts = list(prompt_tokens(self.tokenizer, TEXTS, LENGTH - 3))
        self.features = self.encoded(LABELS)

    def encoded(self, labels: np.ndarray) -> AnswerFeatures:
        ids = [
            prompt + self.answers[label]
            for prompt, label in zip(self.prompts, labels.tolist(), strict=True)
        ]
        lengths = [len(prompt) for prompt in self.prompts]
        return encode_answers(self.base, ids, lengths, self.model.first_layer)

    def records(self) -> TokenRecords:
        return TokenRecords(self.features, LABELS, np.arange(6), 6)

    def says(self, adapter: Adapter) -> list[str]:
        """The slow obvious version: the whole model, one token after the other."""
        self.model.write(adapter.tensors)
        found = []
        for prompt in self.prompts:
            ids = list(prompt)
            for _ in range(self.questions.longest):
                with torch.inference_mode():
                    logits = self.model.network(input_ids=torch.tensor([ids])).logits
                ids.append(int(logits[0, -1].argmax()))
                if ids[-1] == self.questions.end:
                    break
            new = [t for t in ids[len(prompt) :] if t != self.questions.end]
            found.append(self.tokenizer.decode(new).strip())
        return found


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tiny]:
    torch.set_num_threads(1)
    return Tiny(tmp_path_factory.mktemp(request.param) / "model", request.param)


# Tokens


def test_a_prompt_is_cut_at_its_beginning_behind_the_first_token() -> None:
    tokenizer = make_tokenizer(special=True)
    text = "amar bsal cond dmar esal =>"
    (whole,) = prompt_tokens(tokenizer, [text], 1000)
    encoded = tokenizer.encode(text).ids
    # What the tokenizer puts at the end would stand between prompt and answer.
    assert whole == tuple(encoded[:-1])
    (cut,) = prompt_tokens(tokenizer, [text], 4)
    assert cut == (whole[0], *whole[-3:])
    with pytest.raises(ModelError, match="no room for a prompt"):
        list(prompt_tokens(tokenizer, [text], 1))


def test_an_answer_ends_and_has_nothing_before_it() -> None:
    tokenizer = make_tokenizer(special=True)
    for text, ids in zip(
        ANSWERS.values(),
        answer_tokens(tokenizer, list(ANSWERS.values()), 0),
        strict=True,
    ):
        assert ids[-1] == 0
        assert tokenizer.decode(list(ids[:-1])) == text
    with pytest.raises(ModelError, match="no token of the answer"):
        answer_tokens(tokenizer, [""], 0)


@pytest.mark.parametrize("content", ["{}", '{"eos_token_id": null}', "[]", "{"])
def test_without_an_end_answers_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        end_token(tmp_path)


def test_of_several_ends_the_first_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": [7, 9]}')
    assert end_token(tmp_path) == 7


# The loss


def test_only_answers_are_asked(tiny: Tiny) -> None:
    rows = np.array([0, 1, 4])
    _, _, targets = tiny.records().batch(rows)
    for target, row in zip(targets.tolist(), rows.tolist(), strict=True):
        asked = [token for token in target if token != IGNORED]
        assert tuple(asked) == tiny.answers[LABELS[row]]
        assert set(target[: len(tiny.prompts[row])]) == {IGNORED}


def test_the_loss_is_that_of_all_places_and_of_the_record_alone(tiny: Tiny) -> None:
    tiny.model.write(tiny.busy.tensors)
    loss, records = AnswerLoss(tiny.questions.longest), tiny.records()
    everybody = records.batch(np.arange(6))
    with torch.inference_mode():
        found = loss(tiny.model, *everybody)
        torch.testing.assert_close(found, CausalLoss()(tiny.model, *everybody))
        for row in range(6):
            alone = loss(tiny.model, *records.batch(np.array([row])))
            torch.testing.assert_close(alone[0], found[row], atol=1e-5, rtol=1e-5)
            ids = torch.tensor([tiny.prompts[row] + tiny.answers[LABELS[row]]])
            logits = tiny.model.network(input_ids=ids).logits[0]
            first = len(tiny.prompts[row])
            own = nn.functional.cross_entropy(logits[first - 1 : -1], ids[0, first:])
            torch.testing.assert_close(found[row], own, atol=1e-5, rtol=1e-5)


def test_gradients_of_records_are_their_own(tiny: Tiny) -> None:
    tiny.model.write(tiny.busy.tensors)
    chosen = tiny.model.set_trainable(list(tiny.busy.tensors))
    loss, records = AnswerLoss(tiny.questions.longest), tiny.records()
    with OpacusGradients(tiny.model, chosen) as gradients:
        check_independence(gradients, loss, records)
        together = gradients(loss, records.batch(np.arange(6)))
    for row in range(6):
        own = loss(tiny.model, *records.batch(np.array([row]))).sum()
        alone = torch.autograd.grad(own, list(chosen.values()))
        for one, all_rows in zip(alone, together, strict=True):
            torch.testing.assert_close(all_rows[row], one, atol=1e-5, rtol=1e-4)


# What is said


def test_the_text_is_what_the_whole_model_says_greedily(tiny: Tiny) -> None:
    for adapter in (tiny.start, tiny.busy):
        wanted = tiny.says(adapter)
        # Whatever the right answers are: they only say what is computed twice.
        for labels in (LABELS, 1 - LABELS):
            features = tiny.encoded(labels)
            found = generated(tiny.model, adapter, features, tiny.questions)
            assert found == wanted


def test_a_taught_model_says_the_answers(tiny: Tiny) -> None:
    """Trained on its questions without privacy: better answers, and all scores say so.

    Two ranks on one frozen layer of noise do not learn all six.
    """
    tiny.model.write(tiny.start.tensors)
    chosen = tiny.model.set_trainable(list(tiny.start.tensors))
    optimizer = torch.optim.Adam(chosen.values(), lr=0.03)
    loss, batch = AnswerLoss(tiny.questions.longest), tiny.records().batch(np.arange(6))
    for _ in range(300):
        optimizer.zero_grad()
        loss(tiny.model, *batch).sum().backward()
        optimizer.step()
    taught = Adapter(tensors=tiny.model.read(), scaling=tiny.start.scaling)
    line = score_answers(tiny.model, taught, tiny.features, LABELS, tiny.questions)
    said = generated(tiny.model, taught, tiny.features, tiny.questions)
    assert said == tiny.says(taught)
    right = (
        np.array([read_answer(text, tiny.questions.answers) for text in said]) == LABELS
    )
    assert line["accuracy"] == pytest.approx(right.mean())
    before = score_answers(
        tiny.model, tiny.start, tiny.features, LABELS, tiny.questions
    )
    assert right.any()
    assert before["accuracy"] == 0
    assert line["perplexity"] < before["perplexity"]
    assert line["rouge_1"] > before["rouge_1"]
    assert before["unparsed"] > 0


def test_sampling_is_repeated_by_its_public_seed(tiny: Tiny) -> None:
    warm = replace(tiny.questions, temperature=5.0, seed=3)
    state = torch.random.get_rng_state()
    first = generated(tiny.model, tiny.busy, tiny.features, warm)
    assert generated(tiny.model, tiny.busy, tiny.features, warm) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    other = replace(warm, seed=4)
    assert generated(tiny.model, tiny.busy, tiny.features, other) != first
    cold = replace(warm, temperature=1e-4)
    greedy = generated(tiny.model, tiny.busy, tiny.features, tiny.questions)
    assert generated(tiny.model, tiny.busy, tiny.features, cold) == greedy


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("equivalent", 0),
        (" Equivalent.", 0),
        ("not  EQUIVALENT", 1),
        ("not equivalent, I think", 1),
        ("equivalently", -1),
        ("they are equivalent", -1),
        ("", -1),
    ],
)
def test_a_text_is_read_as_the_answer_it_begins_with(text: str, label: int) -> None:
    assert read_answer(text, (" equivalent", " not equivalent")) == label
    swapped = {0: 1, 1: 0, -1: -1}[label]
    assert read_answer(text, ("not equivalent", "equivalent")) == swapped


def test_the_longest_of_several_answers_is_meant() -> None:
    assert read_answer("new york", ("new", "new york")) == 1
    assert read_answer("new york", ("new york", "new")) == 0


def test_always_saying_equivalent_has_a_high_rouge_and_knows_nothing() -> None:
    """MRPC's shares: why the label leads the table and not ROUGE."""
    labels = np.array([1] * 675 + [0] * 325)
    answers = (" not equivalent", " equivalent")
    questions = Questions(make_tokenizer(), answers, 0, 3, positive=1)
    constants = constant_scores(labels, 2, 1)
    found = constant_answers(labels, constants, questions)
    assert list(found) == ["not equivalent", "equivalent"]
    always = found["equivalent"]
    # F of one word of two: 2/3.
    assert always["rouge_1"] == pytest.approx(0.675 + 0.325 * 2 / 3)
    assert always["accuracy"] == pytest.approx(0.675)
    assert always["f1"] == pytest.approx(2 * 0.675 / 1.675)
    assert always["matthews"] == 0
    assert always["rouge_2"] == 0
    assert "perplexity" not in always


def test_rouge_counts_every_text_once() -> None:
    found = rouge_means(["a b c", "a b c", "x"], ["a b d", "a b d", "x"])
    assert found["rouge_1"] == pytest.approx((2 * 2 / 3 + 1) / 3)
    assert found["rouge_2"] == pytest.approx((2 * 1 / 2 + 0) / 3)
    assert found["rouge_l"] == found["rouge_lsum"] == pytest.approx(7 / 9)
