"""``[distillation]``: a frozen teacher, and how much of a record's loss is its word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Self

from pydantic import BeforeValidator, Field, model_validator

from secfed.study.reading import ContradictionError, Table, nearest
from secfed.study.sections import ModelSection, Sha256, Text, Texts

if TYPE_CHECKING:
    from secfed.study.definition import Study

__all__ = ["DistillationSection", "TeacherSection", "check_distillation"]

_NO_TEXT: Final = (
    "a teacher that was trained on private data without a plan of its own leaks them "
    "through the student: name the public data it was trained on (trained_on), or the "
    "secfed run that released it (run)"
)


def _not_quantised(value: object) -> None:
    if value not in (None, "none"):
        raise ContradictionError("", "a teacher is not quantised: it runs once")


def _not_mutual(value: object) -> None:
    if value not in (None, False):
        raise ContradictionError(
            "",
            "mutual distillation (FedKD) is not offered: a teacher that learns from "
            "private records beside the student has to be clipped and noised jointly "
            "with it and kept at every site; name a frozen teacher",
        )


class TeacherSection(ModelSection):
    """``[distillation.teacher]``: a model as in ``[model]``, and where it learned.

    A public teacher is a folder with a trained classification head, or a base with a
    public adapter of PEFT's; ``trained_on`` says on which public data. A private one
    was released by a secfed run under its own plan; ``run`` is its directory, and
    ``ledger_sha256`` pins its record, which names the adapter and what it cost.
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


class DistillationSection(Table):
    """``[distillation]``: a record's loss is (1 - weight) of labels, weight of teacher.

    The teacher's part is T^2 KL(teacher / T || student / T), T the temperature
    (Hinton, Vinyals and Dean, 2015, section 2).
    """

    weight: Annotated[float, Field(ge=0, le=1)]
    # Above a hundred 32-bit probabilities differ in their last digits only.
    temperature: Annotated[float, Field(gt=0, le=100)]
    teacher: TeacherSection
    # Always none: a study that asks for it is told why.
    mutual: Annotated[None, BeforeValidator(_not_mutual)] = None


def check_distillation(study: Study) -> None:
    """Refuse a teacher that the task has no use for.

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
    own, known = study.distillation.teacher.labels, study.data.labels
    if own is None or known is None:
        return
    for label in (*own, *known):
        if label not in known or own.count(label) != 1:
            raise ContradictionError(
                "distillation.teacher.labels",
                f"{label!r} is not once in it and in data.labels; "
                f"{nearest(label, known)}",
            )
