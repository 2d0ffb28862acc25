"""A tiny student (BERT), its mentor (DistilBERT), and a study in which both learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from encoders import TARGETS, make_encoder, pair_policy, pair_values, write_pairs

from secfed.canonical import file_sha256
from secfed.model_files import WEIGHTS
from secfed.policy import SitePolicy
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared, prepare
from secfed.study import Study, load_study_dict

MENTOR_LENGTH = 8
"""Fewer tokens than the student's: the two need not see the same."""


def make_folder(folder: Path, count: int = 160) -> Path:
    """Texts, the student's base and the mentor's."""
    write_pairs(folder, count)
    make_encoder(folder / "model")
    make_encoder(folder / "mentor", "distilbert")
    return folder


def mentored_values(folder: Path, **own: Any) -> dict[str, Any]:
    values = pair_values("bert", file_sha256(folder / "model" / WEIGHTS))
    values["training"] |= {"expected_batch": 8}
    sites = values["data"]["partition"]["sites"]
    values["privacy"]["nominal_units"] = dict.fromkeys(sites, 30)
    values["simulation"] = {"seed": 3}
    values["distillation"] = {
        "weight": 0.7,
        "temperature": 2.0,
        "mutual": True,
        "teacher": {
            "path": "mentor",
            "sha256": file_sha256(folder / "mentor" / WEIGHTS),
            "max_length": MENTOR_LENGTH,
            "trained_on": "nothing: random weights",
        },
        "mentor": {"r": 3, "target_modules": list(TARGETS["distilbert"]), "layers": 2},
        **own,
    }
    return values


def mentored(folder: Path, method: str = "ffa-lora", **own: Any) -> Study:
    values = mentored_values(folder, **own)
    values["training"] |= {"method": method, "learning_rate": {method: 1.0}}
    return load_study_dict(values, "pairs")


def policy_for(study: Study) -> SitePolicy:
    digests = study.teacher.digests if study.teacher else ()
    return pair_policy(study).model_copy(update={"allowed_teacher_sha256": digests})


def prepared_for(study: Study, folder: Path) -> Prepared:
    return prepare(study, folder, policy_for(study), NoProgress())
