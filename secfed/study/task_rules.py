"""What a study's task asks of its other tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from secfed.study.reading import ContradictionError, nearest

if TYPE_CHECKING:
    from secfed.study.definition import Study

__all__ = ["check_task"]

_HEAD_ONLY: Final = "head-only"


def check_task(study: Study) -> None:
    """Refuse tables that do not fit the task.

    Raises:
        ContradictionError: Names the first key that does not fit.
    """
    _check_texts(study)
    if study.is_causal_lm:
        _check_no_head(study)
        _check_categories(study)
    else:
        _check_classification(study)
    if study.is_prompted:
        _check_answers(study)
    _check_positive(study)


def _check_texts(study: Study) -> None:
    """Which columns are read; a prompt names its own."""
    data = study.data
    if study.is_causal_lm and data.text_pair_column is not None:
        raise ContradictionError(
            "data.text_pair_column",
            "belongs to classification; a prompt names its columns itself",
        )
    if study.is_causal_lm and data.holdout.subgroup_column is not None:
        raise ContradictionError(
            "data.holdout.subgroup_column",
            "belongs to classification; texts are scored by data.label_column",
        )
    if study.is_prompted and data.text_column is not None:
        raise ContradictionError(
            "data.text_column", "the columns are those that task.prompt names"
        )
    if not (study.is_prompted or data.is_builtin or data.text_column):
        raise ContradictionError(
            "data.text_column", "required unless the text is built in"
        )


def _check_classification(study: Study) -> None:
    """Classes are declared, and the classifier has a step size."""
    required: dict[str, object] = {
        "training.head_learning_rate": study.training.head_learning_rate
    }
    if not study.data.is_builtin:
        required["data.label_column"] = study.data.label_column
        required["data.labels"] = study.data.labels
    for key, value in required.items():
        if value is None:
            raise ContradictionError(
                key, "required where [task] kind is 'classification', the default"
            )


def _check_no_head(study: Study) -> None:
    """Nothing speaks of a classifier."""
    compare, kind = study.compare, study.task.kind if study.task else ""
    methods = compare.methods if compare else ()
    baselines = compare.baselines if compare else ()
    asked = {
        "training.head_learning_rate": study.training.head_learning_rate,
        "training.class_weights": study.training.class_weights,
        "adapter.head_init": study.adapter.head_init != "zero" or None,
        "training.method": study.training.method == _HEAD_ONLY or None,
        "compare.methods": _HEAD_ONLY in methods or None,
        "compare.baselines": _HEAD_ONLY in baselines or None,
    }
    for key, value in asked.items():
        if value is not None:
            raise ContradictionError(
                key,
                f"[task] kind = {kind!r} has no classification head"
                + ('; write ["non-private"] or []' if "baselines" in key else ""),
            )


def _check_categories(study: Study) -> None:
    """Labels of texts are categories, and are there where sites need them."""
    kind = study.data.partition.kind
    unlabelled = not study.data.is_builtin and study.data.label_column is None
    if kind in {"home", "dirichlet"} and unlabelled:
        raise ContradictionError(
            "data.label_column",
            f"required: partition.kind = {kind!r} divides by it",
        )


def _check_answers(study: Study) -> None:
    """Every label has an answer, and no prompt gives it away."""
    if study.data.labels is None or study.task is None:
        raise ContradictionError(
            "data.labels", "required with [task] kind = 'prompted-lm'"
        )
    answers, labels = study.task.answers or {}, study.data.labels
    for label in labels:
        if label not in answers:
            raise ContradictionError(
                f"task.answers.{label}", "this label has no answer"
            )
    for label in answers:
        if label not in labels:
            raise ContradictionError(
                f"task.answers.{label}", f"no such label; {nearest(label, labels)}"
            )
    template = study.task.template
    if template is not None and study.data.label_column in template.columns:
        raise ContradictionError(
            "task.prompt", f"{study.data.label_column!r} is what is asked for"
        )


def _check_positive(study: Study) -> None:
    positive = study.task.positive if study.task else None
    labels = study.data.labels or ()
    if positive is not None and positive not in labels:
        raise ContradictionError(
            "task.positive",
            f"no label {positive!r} in data.labels; {nearest(positive, labels)}",
        )
