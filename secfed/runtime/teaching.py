"""A study's teacher in a run: what it says of every record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secfed.adapters import AdapterFiles, Teacher, load_teacher
from secfed.canonical import digest, parse_json
from secfed.errors import ModelError, PolicyError
from secfed.runtime.earlier import read_evidence
from secfed.study import Study
from secfed.teacher_ledger import TeacherRun, read_teacher_run
from secfed.training import DistilledRecords, PrivateRecords
from secfed.types import LabelledTexts

__all__ = ["Teaching", "open_teaching"]

_LEDGER: Final = "ledger.jsonl"


@dataclass(frozen=True)
class Teaching:
    """The teacher of a study, opened.

    Attributes:
        teacher: None where no records are held.
        run: Of a private teacher; None of a public one.
    """

    teacher: Teacher | None
    run: TeacherRun | None

    def taught(self, records: PrivateRecords, texts: LabelledTexts) -> PrivateRecords:
        """The records with the teacher's word on each; said once, then kept."""
        if self.teacher is None:
            return records
        return DistilledRecords(
            features=records.features,
            labels=records.labels,
            units=records.units,
            num_units=records.num_units,
            teacher=self.teacher.logits(texts),
        )


def open_teaching(
    study: Study, base_dir: Path, label_names: tuple[str, ...], *, speaks: bool
) -> Teaching | None:
    """Check and open the frozen teacher that a study names; None where it names none.

    Args:
        study: The study.
        base_dir: Folder that relative paths start from.
        label_names: The study's classes, in its order.
        speaks: Whether there are records to speak of; else only what a private
            teacher cost is read.

    Raises:
        ModelError: A file is missing, or another one than was pinned.
        LedgerError, PolicyError: A private teacher without a plan of its own, or one
            whose cost cannot be composed.
    """
    section = study.teacher
    if section is None or study.mentor_adapter is not None:
        return None
    run = files = None
    if section.run is not None:
        folder = base_dir / section.run
        run = read_teacher_run(read_evidence(folder / _LEDGER), study)
        _require_labels(folder, run, label_names)
        files = AdapterFiles(
            folder / "adapter", run.release.adapter_sha256, run.release.config_sha256
        )
    elif section.adapter is not None:
        files = AdapterFiles(base_dir / section.adapter, str(section.adapter_sha256))
    teacher = load_teacher(section, base_dir, label_names, files) if speaks else None
    return Teaching(teacher, run)


def _require_labels(
    folder: Path, run: TeacherRun, label_names: tuple[str, ...]
) -> None:
    """The teacher's study has the same classes in the same order."""
    try:
        study = parse_json(read_evidence(folder / "study.json"))
        if digest(study) != run.costs.study_digest:
            raise ModelError(f"{folder}: study.json is not the one of its ledger")
        labels = study["data"].get("labels")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: study.json cannot be read: {error}") from error
    if labels is not None and tuple(labels) != label_names:
        raise PolicyError(
            f"[distillation.teacher] run: its classes are {', '.join(labels)}; the "
            f"study's are {', '.join(label_names)}"
        )
