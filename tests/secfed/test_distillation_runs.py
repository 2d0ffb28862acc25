"""Teachers as they are opened, and whole runs that distil one, on tiny encoders."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from encoders import (
    config_of,
    make_encoder,
    pair_policy,
    pair_values,
    write_pairs,
)
from safetensors.numpy import load_file, save_file

from secfed.adapters import AdapterFiles, Teacher, load_teacher
from secfed.canonical import file_sha256, parse_json
from secfed.data import load_sites
from secfed.errors import ModelError, PolicyError
from secfed.models import open_teacher
from secfed.policy import SitePolicy
from secfed.privacy.budget import Budget
from secfed.runtime.local import run_study
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import prepare
from secfed.study import Study, load_study_dict
from secfed.study.distillation import TeacherSection
from secfed.training import DistilledRecords
from secfed.types import LabelledTexts
from secfed.verify import verify_run

LABELS = ("0", "1")
TEXTS = LabelledTexts(
    texts=("bar del fop", "gar", "kel lop mar bel dop"),
    labels=np.zeros(3, dtype=np.int64),
    pairs=("bar", "gel fop", "lel"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, a base, and two teachers with heads of their own."""
    torch.set_num_threads(1)
    made = tmp_path_factory.mktemp("distillation")
    write_pairs(made, 160)
    make_encoder(made / "model")
    shutil.copytree(made / "model", made / "tokens")
    shutil.copytree(made / "model", made / "sequences")
    torch.manual_seed(6)
    config = config_of("bert")
    config.initializer_range = 0.3
    for kind, name in (("Token", "tokens"), ("Sequence", "sequences")):
        auto = getattr(transformers, f"AutoModelFor{kind}Classification")
        auto.from_config(config).save_pretrained(made / name)
    return made


def section(folder: Path, name: str, **more: Any) -> TeacherSection:
    values = {
        "path": name,
        "sha256": file_sha256(folder / name / "model.safetensors"),
        "max_length": 16,
        "trained_on": "nothing: random weights",
    }
    return TeacherSection.model_validate(values | more)


# What a teacher says


def test_the_word_on_a_text_is_the_stock_models_and_depends_on_it_alone(
    folder: Path,
) -> None:
    teacher = load_teacher(section(folder, "sequences"), folder, LABELS, None)
    together = teacher.logits(TEXTS)
    for row, (text, pair) in enumerate(zip(TEXTS.texts, TEXTS.pairs, strict=True)):
        ids = teacher.base.tokenizer(text, pair, return_tensors="pt")
        with torch.inference_mode():
            alone = teacher.base.network(**ids).logits[0].numpy()
        np.testing.assert_allclose(together[row], alone, rtol=1e-5, atol=1e-6)
    assert together.std() > 0.01


def test_tokens_are_averaged_without_padding(folder: Path) -> None:
    teacher = load_teacher(section(folder, "tokens"), folder, LABELS, None)
    ids = teacher.base.tokenizer(TEXTS.texts[1], TEXTS.pairs[1], return_tensors="pt")
    with torch.inference_mode():
        mean = teacher.base.network(**ids).logits[0].mean(0).numpy()
    np.testing.assert_allclose(teacher.logits(TEXTS)[1], mean, rtol=1e-5, atol=1e-6)


def test_classes_are_put_into_the_studys_order(folder: Path) -> None:
    def said(**more: Any) -> Any:
        own = section(folder, "sequences", **more)
        return load_teacher(own, folder, LABELS, None).logits(TEXTS)

    assert np.array_equal(said(labels=("1", "0")), said()[:, ::-1])
    assert np.array_equal(said(labels=("0", "1")), said())


def test_no_records_have_no_words(folder: Path) -> None:
    teacher = load_teacher(section(folder, "tokens"), folder, LABELS, None)
    assert teacher.logits(LabelledTexts((), np.zeros(0, np.int64))).shape == (0, 2)


def without_head(path: Path) -> None:
    held = load_file(path / "model.safetensors")
    kept = {name: own for name, own in held.items() if "classifier" not in name}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})


def another_kind(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps(config | {"architectures": ["BertModel"]})
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [(without_head, "these are missing"), (another_kind, "no classification head")],
)
def test_a_folder_without_a_trained_head_is_refused(
    damage: Callable[[Path], None], words: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "sequences", tmp_path / "other")
    damage(tmp_path / "other")
    with pytest.raises(ModelError, match=words):
        load_teacher(section(tmp_path, "other"), tmp_path, LABELS, None)


def test_other_weights_or_classes_are_refused(folder: Path) -> None:
    wrong = section(folder, "tokens", sha256="0" * 64)
    with pytest.raises(ModelError, match="the study pins"):
        load_teacher(wrong, folder, LABELS, None)
    with pytest.raises(ModelError, match="has 2 classes, the study 3"):
        open_teacher(section(folder, "tokens"), folder, 3, own_head=True)
    own = section(folder, "tokens", labels=("0", "2"))
    with pytest.raises(ModelError, match="not the classes of the study"):
        load_teacher(own, folder, LABELS, None)


# Whole runs


def study_of(folder: Path, seed: int | None = 3, **tables: Any) -> Study:
    values = pair_values("bert", file_sha256(folder / "model" / "model.safetensors"))
    values["training"] |= {"expected_batch": 8}
    values["privacy"]["nominal_units"] = dict.fromkeys(
        values["privacy"]["nominal_units"], 30
    )
    if seed is not None:
        values["simulation"] = {"seed": seed}
    return load_study_dict(values | tables, "pairs")


def taught(folder: Path, weight: float, seed: int | None = 3) -> Study:
    teacher = section(folder, "sequences").model_dump(mode="json", exclude_none=True)
    table = {"weight": weight, "temperature": 2.0, "teacher": teacher}
    return study_of(folder, seed, distillation=table)


def policy_for(study: Study, budgets: Path | None = None) -> SitePolicy:
    allowed: dict[str, Any] = {
        "allowed_teacher_sha256": study.teacher.digests if study.teacher else ()
    }
    if budgets is not None:
        allowed["budget_dir"] = str(budgets)
    return pair_policy(study).model_copy(update=allowed)


def run(study: Study, folder: Path, out: Path, budgets: Path | None = None) -> Path:
    run_study(study, folder, out, policy_for(study, budgets), NoProgress())
    return out


def last_adapter(out: Path) -> dict[str, Any]:
    return load_file(out / "adapters" / "round-002.safetensors")


def sent(out: Path) -> list[int]:
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["bytes_up"] for line in lines]


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rehearsal without a teacher; later itself the teacher."""
    return run(study_of(folder), folder, tmp_path_factory.mktemp("runs") / "plain")


def test_a_site_refuses_a_teacher_that_it_does_not_name(folder: Path) -> None:
    study = taught(folder, 0.5)
    with pytest.raises(PolicyError, match="is not in allowed_teacher_sha256"):
        prepare(study, folder, pair_policy(study), NoProgress())


@pytest.mark.slow
def test_weight_zero_is_the_plain_run_to_the_bit_and_more_is_another(
    folder: Path, plain: Path, tmp_path: Path
) -> None:
    before = last_adapter(plain)
    zero = last_adapter(run(taught(folder, 0.0), folder, tmp_path / "zero"))
    half = last_adapter(run(taught(folder, 0.5), folder, tmp_path / "half"))
    # Only the student travels: the same tensors, in the same order and shapes.
    shapes = [(name, value.shape) for name, value in before.items()]
    assert [(name, value.shape) for name, value in zero.items()] == shapes
    assert [(name, value.shape) for name, value in half.items()] == shapes
    assert all(np.array_equal(zero[name], before[name]) for name in before)
    assert any(not np.array_equal(half[name], before[name]) for name in before)
    assert sent(tmp_path / "half") == sent(plain)
    statement = parse_json((tmp_path / "half/statement.json").read_bytes())
    assert statement["self_test"]["independence"].startswith("passed")
    assert statement["teacher"]["trained_on"] == "nothing: random weights"
    report = verify_run(tmp_path / "half")
    assert report.passed, report


@pytest.mark.slow
def test_every_site_keeps_the_teachers_word_on_its_own_records(folder: Path) -> None:
    study = taught(folder, 0.5)
    prepared = prepare(study, folder, policy_for(study), NoProgress())
    teacher = load_teacher(section(folder, "sequences"), folder, LABELS, None)
    data = load_sites(study, folder)
    for site, held in prepared.records.items():
        assert isinstance(held, DistilledRecords)
        expected = teacher.logits(data.sites[site].records)
        np.testing.assert_allclose(held.teacher, expected, rtol=1e-5, atol=1e-6)


def released(teacher: Path, seed: int | None) -> Callable[[Path], Study]:
    """A study that distils what that run released."""

    def study(folder: Path) -> Study:
        own = study_of(folder).model
        table = {
            "weight": 0.5,
            "temperature": 2.0,
            "teacher": {
                "path": "model",
                "sha256": own.sha256,
                "max_length": own.max_length,
                "run": str(teacher),
                "ledger_sha256": file_sha256(teacher / "ledger.jsonl"),
            },
        }
        return study_of(folder, seed, distillation=table)

    return study


def teacher_of(run_dir: Path, folder: Path, **more: Any) -> Teacher:
    weights = file_sha256(run_dir / "adapter" / "adapter_model.safetensors")
    files = AdapterFiles(run_dir / "adapter", more.pop("weights", weights))
    return load_teacher(section(folder, "model", **more), folder, LABELS, files)


def test_a_released_adapter_teaches_as_it_was_scored(folder: Path, plain: Path) -> None:
    from secfed.adapters import load_adapter  # noqa: PLC0415
    from secfed.evaluation import predict  # noqa: PLC0415

    study = study_of(folder)
    prepared = prepare(study, folder, policy_for(study), NoProgress())
    adapter = load_adapter(plain / "adapters/round-002.safetensors", prepared.start)
    logits = predict(prepared.model, adapter, prepared.holdout)
    held = load_sites(study, folder).holdout
    said = teacher_of(plain, folder).logits(held)
    np.testing.assert_allclose(said, logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="not the teacher's adapter"):
        teacher_of(plain, folder, weights="0" * 64)


def test_an_adapter_with_other_tensors_is_refused(
    folder: Path, plain: Path, tmp_path: Path
) -> None:
    shutil.copytree(plain / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    held = load_file(path)
    held.pop(next(name for name in held if "lora_A" in name))
    save_file(held, path)
    with pytest.raises(ModelError, match="does not fit the teacher's base"):
        teacher_of(tmp_path, folder)


@pytest.mark.slow
def test_a_rehearsed_teacher_is_charged_to_the_students_sites(
    folder: Path, plain: Path, tmp_path: Path
) -> None:
    out = run(released(plain, seed=4)(folder), folder, tmp_path / "student")
    statement = parse_json((out / "statement.json").read_bytes())
    assert "training follows from a public seed" in statement["headline"]
    site = statement["sites"]["north"]
    assert site["with_named_runs"]["epsilon"] > site["epsilon"]
    budget = Budget.read(out / "private/sites/north/budget.sqlite")[0]
    assert len({charge.run_id for charge in budget.charges}) == 2
    assert budget.spent_epsilon == pytest.approx(site["with_named_runs"]["epsilon"])
    report = verify_run(out)
    assert report.passed, report


@pytest.mark.slow
def test_a_teacher_in_the_same_budget_is_charged_once_and_stays_private(
    folder: Path, tmp_path: Path
) -> None:
    budgets = tmp_path / "budgets"
    teacher = run(study_of(folder, None), folder, tmp_path / "teacher", budgets)
    before = Budget.read(budgets / "north" / "budget.sqlite")[0]
    student = released(teacher, None)(folder)
    out = run(student, folder, tmp_path / "student", budgets)
    after = Budget.read(budgets / "north" / "budget.sqlite")[0]
    assert (len(before.charges), len(after.charges)) == (2, 4)
    statement = parse_json((out / "statement.json").read_bytes())
    assert statement["private"] is True
    composed = statement["sites"]["north"]["with_named_runs"]["epsilon"]
    assert composed == pytest.approx(after.spent_epsilon)
    # A rehearsed teacher's noise is public, so it teaches in rehearsals only.
    ledger = (teacher / "ledger.jsonl").read_bytes()
    assert hashlib.sha256(ledger).hexdigest() == statement["teacher"]["ledger_sha256"]


def test_a_rehearsed_teacher_does_not_teach_in_earnest(
    folder: Path, plain: Path, tmp_path: Path
) -> None:
    study = released(plain, seed=None)(folder)
    with pytest.raises(PolicyError, match="follows from the simulation seed"):
        prepare(study, folder, policy_for(study, tmp_path), NoProgress())
