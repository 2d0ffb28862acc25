"""Language models on held-back records: the same as in batches, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import causal
import numpy as np
import prompted
import pytest

from secfed.errors import StudyError
from secfed.evaluation import count_tokens, outcomes
from secfed.evaluation.answers import generated, read_answer
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared, prepare
from secfed.study import Study

TABLE: dict[str, Any] = {"fraction": 0.3, "noise_multiplier": 20.0}
SITE = causal.SITES[0]


def made(study: Study, folder: Path) -> Prepared:
    update = {"allowed_metrics": ("accuracy", "loss", "f1")}
    policy = causal.causal_policy(study).model_copy(update=update)
    return prepare(study, folder, policy, NoProgress())


def found_by(ready: Prepared) -> tuple[Any, Any]:
    """Outcomes of one site's held-back records, and all of their states together."""
    held = ready.held_back[SITE]
    found = outcomes(
        ready.model, ready.start, held.texts, held.labels, held.units, ready.questions
    )
    assert len(held.texts) > 5
    return found, type(held.texts[0]).joined(list(held.texts))


def test_blocks_have_their_own_loss_and_share_of_right_tokens(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    causal.write_texts(tmp_path, 40)
    digest = causal.make_model(tmp_path / "model", "gpt2")
    table = {**TABLE, "metrics": ["accuracy", "loss"], "loss_cap": 8.0}
    ready = made(causal.causal_study("gpt2", digest, **tables(table)), tmp_path)
    found, together = found_by(ready)
    counts = count_tokens(ready.model, ready.start, together)
    assert found.loss == pytest.approx(counts.loss / counts.tokens, rel=1e-5)
    assert found.right == pytest.approx(counts.right / counts.tokens)
    assert 0 < found.loss.max() < 8


def test_answers_are_read_as_on_the_public_hold_out(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    prompted.write_pairs(tmp_path, 60)
    digest = prompted.make_model(tmp_path / "model", "gpt2")
    table = {**TABLE, "metrics": ["f1"], "min_units": 10}
    ready = made(prompted.prompted_study("gpt2", digest, **tables(table)), tmp_path)
    found, together = found_by(ready)
    questions = ready.questions
    assert questions is not None
    said = generated(ready.model, ready.start, together, questions)
    read = [read_answer(text, questions.answers) for text in said]
    assert found.answers.tolist() == read
    assert np.array_equal(found.right, found.answers == found.labels)
    # No answer at all is a miss of its class, and no false alarm of any.
    cells = ready.evaluations[SITE].contributions(found)
    assert cells[:, [0, 1, 4, 5]].sum() == cells.shape[0] * cells.max()


def test_metrics_that_a_task_lacks_are_refused() -> None:
    table = {**TABLE, "metrics": ["f1"]}
    with pytest.raises(StudyError, match="next-token prediction has no classes"):
        causal.causal_study("gpt2", "ab" * 32, **tables(table))
    table = {**TABLE, "metrics": ["loss"], "loss_cap": 4.0}
    with pytest.raises(StudyError, match="no loss"):
        prompted.prompted_study("gpt2", "ab" * 32, **tables(table))


def tables(table: dict[str, Any]) -> dict[str, Any]:
    """As keys of one table in the form that the helpers take."""
    own = {f"evaluation__{key}": value for key, value in table.items()}
    return {**own, "simulation__seed": 1}
