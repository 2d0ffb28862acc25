"""``[distillation]``: a frozen teacher, or a mentor that learns beside the student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from secfed.study.fields import Positive, Rank, Sha256, Text, Texts
from secfed.study.reading import ContradictionError, Table, nearest
from secfed.study.sections import AdapterSection, ModelSection

if TYPE_CHECKING:
    from secfed.study.definition import Study

__all__ = [
    "DistillationSection",
    "MentorSection",
    "TeacherSection",
    "check_distillation",
    "mentor_adapter",
]

_NO_TEXT: Final = (
    "a teacher that was trained on private data without a plan of its own leaks them "
    "through the student: name the public data it was trained on (trained_on), or the "
    "secfed run that released it (run)"
)

_PUBLIC_START: Final = (
    "a mentor starts at every site from public base weights, with a new adapter and a "
    "new head; leave this out, or leave mutual out and name a frozen teacher"
)


def _not_quantised(value: object) -> None:
    if value not in (None, "none"):
        raise ContradictionError("", "a teacher is not quantised: it runs once")


def _false_as_missing(value: object) -> object:
    return None if value is False else value


_Switch = Annotated[Literal[True] | None, BeforeValidator(_false_as_missing)]


class TeacherSection(ModelSection):
    """``[distillation.teacher]``: a model as in ``[model]``, and where it learned.

    A public teacher is a folder with a trained classification head, or a base with a
    public adapter of PEFT's; ``trained_on`` says on which public data. A private one
    was released by a secfed run under its own plan; ``run`` is its directory, and
    ``ledger_sha256`` pins its record, which names the adapter and what it cost. Of a
    mentor it is the public base alone.
    """

    quantisation: Annotated[None, BeforeValidator(_not_quantised)] = None
    adapter: Text | None = None
    adapter_sha256: Sha256 | None = None
    trained_on: Text | None = None
    run: Text | None = None
    ledger_sha256: Sha256 | None = None
    # Its classes in its order, where that is not the study's.
    labels: Texts | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        """Everything that pins it: what a site's policy has to allow."""
        named = (self.sha256, self.adapter_sha256, self.ledger_sha256)
        return tuple(digest for digest in named if digest is not None)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.run is None and self.trained_on is None:
            raise ContradictionError("trained_on", _NO_TEXT)
        if self.run is not None and self.trained_on is not None:
            raise ContradictionError(
                "trained_on", "a teacher is public or released by a run, not both"
            )
        for key, other in (("ledger_sha256", "run"), ("adapter_sha256", "adapter")):
            if (getattr(self, key) is None) != (getattr(self, other) is None):
                raise ContradictionError(key, f"belongs to {other}, and is needed")
        if self.run is not None and self.adapter is not None:
            raise ContradictionError("adapter", "a run has its own adapter")
        return self


class MentorSection(Table):
    """``[distillation.mentor]``: how a mentor's adapter differs from ``[adapter]``."""

    r: Rank | None = None
    lora_alpha: Positive | None = None
    target_modules: Texts | None = None
    layers: Annotated[int, Field(ge=0)] | None = None


class DistillationSection(Table):
    """``[distillation]``: a record's loss is (1 - weight) of labels, weight of teacher.

    The teacher's part is T^2 KL(teacher / T || student / T), T the temperature
    (Hinton, Vinyals and Dean, 2015, section 2).

    ``mutual``: ``teacher`` is the public base of a mentor, which learns at every site
    beside the student, with an adapter and a head of its own, and stays there. A
    record's loss is that of the labels for both, and ``weight`` of what each has to
    learn from the other; ``adaptive`` divides that part by the labels' losses of both
    (FedKD, Wu et al., Nature Communications 13:2032, 2022, adaptive mutual
    distillation, without its part for hidden states).
    """

    weight: Annotated[float, Field(ge=0, le=1)]
    # Above a hundred 32-bit probabilities differ in their last digits only.
    temperature: Annotated[float, Field(gt=0, le=100)]
    teacher: TeacherSection
    mutual: _Switch = None
    adaptive: _Switch = None
    mentor: MentorSection | None = None

    @model_validator(mode="after")
    def _mutual(self) -> Self:
        if self.mutual is None:
            for key in ("adaptive", "mentor"):
                if getattr(self, key) is not None:
                    raise ContradictionError(key, "belongs to mutual = true only")
            return self
        for key in ("run", "adapter", "labels"):
            if getattr(self.teacher, key) is not None:
                raise ContradictionError(f"teacher.{key}", _PUBLIC_START)
        if self.weight == 0:
            raise ContradictionError(
                "weight",
                "a mentor of weight 0 takes a part of the clip norm and teaches nobody",
            )
        return self


def mentor_adapter(
    section: DistillationSection, student: AdapterSection
) -> AdapterSection:
    """The mentor's adapter: the student's, but for what ``mentor`` says."""
    own = section.mentor.model_dump(exclude_none=True) if section.mentor else {}
    return student.model_copy(update=own)


def check_distillation(study: Study) -> None:
    """Refuse a teacher that the task has no use for, or a mentor that cannot learn.

    Raises:
        ContradictionError: Names the first key that does not fit.
    """
    if study.distillation is None:
        return
    if study.is_causal_lm:
        raise ContradictionError(
            "distillation",
            "belongs to [task] kind = 'classification' only: what a teacher says of "
            "every token of a vocabulary is too much to keep for every record",
        )
    _check_labels(study.distillation.teacher.labels, study.data.labels)
    if study.distillation.mutual is not None:
        _check_mutual(study)


def _check_labels(own: Texts | None, known: Texts | None) -> None:
    if own is None or known is None:
        return
    for label in (*own, *known):
        if label not in known or own.count(label) != 1:
            raise ContradictionError(
                "distillation.teacher.labels",
                f"{label!r} is not once in it and in data.labels; "
                f"{nearest(label, known)}",
            )


def _check_mutual(study: Study) -> None:
    """Refuse what a mentor cannot learn beside."""
    adapter = study.adapter
    problems = {
        "adapter.kind": (
            not adapter.how.is_product
            and "both models train factors, which exact rules for layers clip as one; "
            f"use 'lora' or 'rslora', not {adapter.kind!r}"
        ),
        "adapter.ranks": (
            adapter.ranks is not None
            and "a site without room for the student's rank has none for its mentor"
        ),
        "model.quantisation": (
            study.model.quantisation is not None
            and "what it saves of the student, a mentor takes many times"
        ),
        "training.method": (
            study.training.method == "head-only"
            and "'head-only' has no step size for the mentor's factors"
        ),
        "compare": (
            study.compare is not None
            and "belongs to `secfed run`: of a comparison's baselines 'head-only' has "
            "no step size for a mentor, and 'pooled' no site where it could stay"
        ),
    }
    for key, reason in problems.items():
        if reason:
            raise ContradictionError(key, f"mutual distillation: {reason}")
