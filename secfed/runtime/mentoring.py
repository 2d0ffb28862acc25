"""A study's mentor in a run: it learns beside the student, and stays at the site.

Its tensors are the site's own, as those that some rules keep: they lie in the site's
private folder from round to round and enter no message (``kept``). They are clipped and
noised with the student's, so the plan's epsilon holds for both together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from secfed.adapters import (
    ModelPair,
    SequenceClassifier,
    attach_adapter,
    head_from_names,
    initial_adapter,
    marked,
    parted,
)
from secfed.errors import ModelError
from secfed.models import BaseModel, encode_prefix, load_base_model
from secfed.runtime.kept import KeptTensors
from secfed.strategies.base import moved
from secfed.study import Study
from secfed.training import LocalUpdate, PairedRecords, PrivateRecords
from secfed.types import Adapter, LabelledTexts, Tensors

__all__ = ["Mentor", "open_mentor", "without_mentor"]


@dataclass(frozen=True)
class Mentor:
    """The second model of every site.

    Attributes:
        base: Its public base.
        pair: The student and it, as they train.
        start: Its public start, the same at every site, under marked names.
    """

    base: BaseModel
    pair: ModelPair
    start: Tensors

    def beside(self, records: PrivateRecords, texts: LabelledTexts) -> PrivateRecords:
        """The records with the states that it starts from; encoded once, then kept."""
        first = self.pair.mentor.first_layer
        return PairedRecords(
            features=records.features,
            labels=records.labels,
            units=records.units,
            num_units=records.num_units,
            mentor=encode_prefix(self.base, texts.texts, first, pairs=texts.pairs),
        )

    def before(self, kept: KeptTensors, round_number: int) -> Tensors:
        """What it knows at one site when a round begins."""
        return parted(kept.before(round_number))[1] or self.start


def open_mentor(
    study: Study,
    base_dir: Path,
    student: SequenceClassifier,
    label_names: tuple[str, ...],
    head_scale: float,
) -> Mentor | None:
    """Open the mentor that a study asks for; None where it asks for none.

    Args:
        study: The study.
        base_dir: Folder that relative paths start from.
        student: The model that travels.
        label_names: The study's classes, in its order.
        head_scale: Of a head that is made from their names.

    Raises:
        ModelError: A file is missing, or another one than was pinned, or the adapter
            does not fit.
    """
    section = study.mentor_adapter
    if section is None or study.teacher is None:
        return None
    base = load_base_model(study.teacher, base_dir, len(label_names))
    model = attach_adapter(base, section)
    if not isinstance(model, SequenceClassifier):
        raise ModelError("[distillation.teacher]: a mentor is a classifier")
    start = initial_adapter(model, section)
    if section.head_init == "names":
        model.write(start.tensors)
        start = start.replaced(head_from_names(base, model, label_names, head_scale))
    return Mentor(base, ModelPair(student, model), marked(start.tensors))


def without_mentor(update: LocalUpdate, before: Tensors) -> tuple[LocalUpdate, Tensors]:
    """The student's update alone, and what the mentor knows now.

    Args:
        update: Of both, or of a student alone.
        before: What the mentor knew; empty where there is none.

    Raises:
        RoundAbortedError: A number of the mentor's is not finite.
    """
    change, mentors = parted(update.change)
    clean = update.noiseless
    students = replace(
        update, change=change, noiseless=None if clean is None else parted(clean)[0]
    )
    return students, moved(Adapter(before, 1.0), mentors).tensors
