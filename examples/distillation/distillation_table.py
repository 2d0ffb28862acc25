"""Does a teacher help? Full fine-tuning, LoRA and LoRA-KD, central and federated.

The table of the second system (Fed-KD-LoRA), on CoLA and SST-2. Part of each data set
is declared public and trains the teacher; the rest is at four sites. Every cell is a
process of its own, and what is done is not run again.

Example: python examples/distillation/distillation_table.py --out runs/distillation
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from full_training import Recipe

    from secfed.runtime.setup import Prepared
    from secfed.study import Study

HERE: Final = Path(__file__).parent
DATASETS: Final = ("cola", "sst2")
SCORES: Final = {"cola": "matthews", "sst2": "accuracy"}
OPEN: Final = "NOT PRIVATE, unmasked"
ROWS: Final[Mapping[str, tuple[str, str, str]]] = {
    "constant": ("always the same answer", "", ""),
    "teacher": ("the teacher itself", "public records", "of public records"),
    "central-full": ("full fine-tuning", "one place", OPEN),
    "central-full-kd": ("full fine-tuning, KD", "one place", OPEN),
    "central-lora": ("LoRA", "one place", "private, unmasked"),
    "federated-full": ("full fine-tuning", "federated", OPEN),
    "federated-lora": ("LoRA", "federated", "private, masked"),
    "federated-lora-kd": ("LoRA-KD", "federated", "private, masked"),
    "federated-lora-mutual": ("LoRA-KD, mutual", "federated", "private, masked"),
}
"""What is trained, where, and what protects the sites' records."""

_WHEN_ASKED: Final = ("federated-lora-mutual",)
"""Rows of ``--rows`` only: a second model learns at every site and takes its time."""

_RANKED: Final = (
    "central-lora",
    "federated-lora",
    "federated-lora-kd",
    "federated-lora-mutual",
)
Cell = dict[str, Any]
Steps = tuple[float, float]
STEPS: Final[Mapping[tuple[str, str], Steps]] = {
    ("sst2", "central-lora"): (1.0, 20.0),
    ("sst2", "federated-lora"): (1.0, 6.0),
    ("sst2", "federated-lora-kd"): (1.0, 2.0),
}
"""Step sizes of adapter and head, by data set and row: what ``step_search.py`` found
for the small studies. Where there is none, those of the study."""


def main() -> None:
    """Run what is missing, or one cell, and print the table."""
    options = options_of(sys.argv[1:])
    if options.cell:
        row, dataset, rank, seed = options.cell
        print(json.dumps(run_cell(options, row, dataset, int(rank), int(seed))))  # noqa: T201
        return
    cells = [
        cell_of(options, row, dataset, rank, seed)
        for dataset in options.datasets
        for seed in options.seeds
        for row in options.rows
        for rank in (options.ranks if row in _RANKED else [0])
    ]
    print("\n".join(table(cells)))  # noqa: T201


def cell_of(
    options: argparse.Namespace, row: str, dataset: str, rank: int, seed: int
) -> Cell:
    """One cell's numbers: kept from an earlier call, or from a fresh process."""
    kept = options.out / dataset / f"{row}-r{rank}-s{seed}.json"
    if not kept.is_file():
        command = [sys.executable, __file__, *options.argv]
        command += ["--cell", row, dataset, str(rank), str(seed)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stdout.splitlines()[-1] + "\n", encoding="utf-8")
    found: Cell = json.loads(kept.read_text("utf-8"))
    return found


def run_cell(
    options: argparse.Namespace, row: str, dataset: str, rank: int, seed: int
) -> Cell:
    """Train once, score on the public hold-out."""
    from divided_texts import divide  # noqa: PLC0415

    from secfed.cli.output import quiet_libraries  # noqa: PLC0415

    quiet_libraries()
    divide(dataset, options.out / dataset, options.public_share)
    named: Cell = {"row": row, "dataset": dataset, "rank": rank, "seed": seed}
    if row in _RANKED:
        steps = None if options.full else STEPS.get((dataset, row))
        return named | adapted(options, row, dataset, rank, seed, steps)
    return named | _whole(options, row, dataset, seed)


# Adapters, private


def adapted(
    options: argparse.Namespace,
    row: str,
    dataset: str,
    rank: int,
    seed: int,
    steps: Steps | None,
    scored_on: str = "holdout",
) -> Cell:
    """LoRA under the study's plan: masked at four sites, or all in one place."""
    mutual = row.endswith("-mutual")
    kd = mutual or row.endswith("-kd")
    study = study_of(
        options,
        dataset,
        rank=rank,
        kd=kd,
        mutual=mutual,
        steps=steps,
        scored_on=scored_on,
    )
    prepared = _prepared(options, study.with_seed(seed), dataset)
    train = _in_one_place if row.startswith("central") else _federated
    return train(study.with_seed(seed), prepared)


def study_of(
    options: argparse.Namespace,
    dataset: str,
    *,
    rank: int,
    kd: bool,
    mutual: bool = False,
    steps: Steps | None = None,
    scored_on: str = "holdout",
) -> Study:
    """The shipped study of the data set, over the sites' part of it.

    ``mutual``: the teacher's weights are where a mentor starts, with a new head.
    ``steps``: of adapter and head, for the federated rule and the one place alike.
    """
    from divided_texts import study_over  # noqa: PLC0415

    from secfed.runtime.pooled import RULE  # noqa: PLC0415

    adapter: dict[str, Any] = {"r": rank, "lora_alpha": 2.0 * rank}
    training: dict[str, Any] = {"method": options.method}
    if steps is not None:
        training["learning_rate"] = dict.fromkeys((options.method, RULE), steps[0])
        training["head_learning_rate"] = steps[1]
    changes: dict[str, dict[str, Any]] = {"adapter": adapter, "training": training}
    if options.student is not None:
        changes["model"] = _by_path(options.student) | {
            "package": None,
            "subfolder": None,
        }
        adapter["target_modules"] = options.targets
    if kd:
        changes["distillation"] = {
            "weight": options.weight,
            "temperature": options.temperature,
            "teacher": _teacher(options, dataset),
        }
    if mutual:
        changes["distillation"] |= {
            "mutual": True,
            "adaptive": True,
            "mentor": {"target_modules": options.mentor_targets},
        }
    return study_over(
        dataset,
        options.out / dataset,
        full=options.full,
        records=options.records,
        scored_on=scored_on,
        changes=changes,
    )


def _by_path(folder: Path) -> dict[str, str]:
    from secfed.canonical import file_sha256  # noqa: PLC0415

    path = folder.resolve()
    return {"path": str(path), "sha256": file_sha256(path / "model.safetensors")}


def _teacher(options: argparse.Namespace, dataset: str) -> dict[str, Any]:
    """``[distillation.teacher]``: the caller's, or the one that was trained here."""
    named = dict(options.teacher or []).get(dataset)
    folder = Path(named) if named else options.out / dataset / "teacher"
    if not (folder / "model.safetensors").is_file():
        raise SystemExit(f"{folder}: no teacher there; run the row 'teacher' first")
    trained_on = f"the public part of {dataset}, none of whose texts is at a site"
    return _by_path(folder) | {
        "max_length": 64 if options.full else 32,
        "dtype": "bfloat16",
        "trained_on": options.trained_on if named else trained_on,
    }


def _prepared(options: argparse.Namespace, study: Study, dataset: str) -> Prepared:
    from secfed.runtime.progress import NoProgress  # noqa: PLC0415
    from secfed.runtime.setup import prepare  # noqa: PLC0415

    return prepare(study, options.out, policy_of(study, dataset), NoProgress())


def policy_of(study: Study, dataset: str) -> Any:
    """The shipped policy of the data set, with this student and teacher allowed."""
    from secfed.policy import load_policy  # noqa: PLC0415

    policy = load_policy(HERE.parent / dataset / "site.toml")
    allowed = {
        "allowed_model_sha256": (study.model.sha256,),
        "allowed_teacher_sha256": study.teacher.digests if study.teacher else (),
    }
    return policy.model_copy(update=allowed)


def _federated(study: Study, prepared: Prepared) -> Cell:
    """The study as it stands, masks and evidence included."""
    from secfed.runtime.arms import Arm  # noqa: PLC0415
    from secfed.runtime.local import run_arm  # noqa: PLC0415
    from secfed.runtime.progress import NoProgress  # noqa: PLC0415

    dataset = study.name.removesuffix("-full")
    with tempfile.TemporaryDirectory() as name:
        run, private = Path(name), Path(name) / "private"
        private.mkdir()
        arm = Arm(name=study.training.method, study=study)
        policy = policy_of(study, dataset)
        done = run_arm(arm, prepared, run, private, "table", policy, NoProgress())
    return {
        "score": done["final"][SCORES[dataset]],
        "trainable": done["trainable"],
        "epsilon": done["epsilon_max"],
    }


def _in_one_place(study: Study, prepared: Prepared) -> Cell:
    """All records in one place, at the same epsilon and with as many noisy steps."""
    from secfed.report.results import POOLED  # noqa: PLC0415
    from secfed.runtime.arms import Arm  # noqa: PLC0415
    from secfed.runtime.pooled import RULE, pooled_plan, run_pooled  # noqa: PLC0415
    from secfed.runtime.progress import NoProgress  # noqa: PLC0415

    arm = Arm(name=POOLED, study=study.with_method(RULE), kind=POOLED)
    with tempfile.TemporaryDirectory() as name:
        plan = pooled_plan(study, prepared.plans)
        done = run_pooled(arm, prepared, plan, Path(name) / "p.json", NoProgress())
    return {
        "score": done["final"][SCORES[study.name.removesuffix("-full")]],
        "trainable": done["trainable"],
        "epsilon": done["epsilon_max"],
    }


# Every weight, not private


def _whole(options: argparse.Namespace, row: str, dataset: str, seed: int) -> Cell:
    """Full fine-tuning, the teacher, and the constant answer."""
    from divided_texts import read_labelled  # noqa: PLC0415
    from full_training import Student, train_everywhere, train_fully  # noqa: PLC0415

    folder = options.out / dataset
    kd = row.endswith("-kd") or (row == "teacher" and bool(options.teacher))
    study = study_of(options, dataset, rank=options.ranks[0], kd=kd)
    labels = study.data.labels or ()
    if row == "constant":
        return _scored(dataset, folder, labels, None)
    if row == "teacher" and options.teacher:
        return _scored(dataset, folder, labels, _spoken(study, folder / "holdout.tsv"))
    student, recipe = Student(study, options.out, seed), _recipe(options)
    public = row == "teacher"
    part = folder / ("public.tsv" if public else "sites.tsv")
    limit = options.public_records if public else options.records
    held = read_labelled(part, labels, limit)
    if row == "federated-full":
        train_everywhere(student, _shares(held, len(study.sites)), recipe, seed)
    else:
        said = _spoken(study, part, limit) if kd else None
        train_fully(student, held, recipe, seed, said)
    if public and seed == options.seeds[0]:
        student.save(folder / "teacher")
    hold = read_labelled(folder / "holdout.tsv", labels, sys.maxsize)
    found = _scored(dataset, folder, labels, student.predict(hold.texts))
    return found | {"trainable": student.trainable}


def _recipe(options: argparse.Namespace) -> Recipe:
    from full_training import Recipe  # noqa: PLC0415

    return Recipe(
        options.epochs,
        options.batch,
        options.learning_rate,
        options.weight,
        options.temperature,
    )


def _shares(held: Any, count: int) -> list[Any]:
    """Equal shares of the records, as the study's ``iid`` partition has them."""
    return [
        type(held)(held.texts[own::count], held.labels[own::count])
        for own in range(count)
    ]


def _spoken(study: Study, path: Path, limit: int = sys.maxsize) -> Any:
    """What the study's teacher says of the records of a file."""
    import numpy as np  # noqa: PLC0415
    from divided_texts import read_labelled  # noqa: PLC0415

    from secfed.runtime.teaching import open_teaching  # noqa: PLC0415
    from secfed.types import LabelledTexts  # noqa: PLC0415

    labels = study.data.labels or ()
    held = read_labelled(path, labels, limit)
    texts = LabelledTexts(held.texts, np.array(held.labels))
    teaching = open_teaching(study, path.parent, labels, speaks=True)
    if teaching is None or teaching.teacher is None:
        raise SystemExit("the study names no teacher")
    return teaching.teacher.logits(texts)


def _scored(dataset: str, folder: Path, labels: tuple[str, ...], logits: Any) -> Cell:
    """The score that decides; without logits that of the best constant answer."""
    import numpy as np  # noqa: PLC0415
    from divided_texts import read_labelled  # noqa: PLC0415

    from secfed.evaluation import score  # noqa: PLC0415

    hold = np.array(read_labelled(folder / "holdout.tsv", labels, sys.maxsize).labels)
    answers = (
        np.full(len(hold), np.bincount(hold).argmax())
        if logits is None
        else logits.argmax(axis=1)
    )
    found = score(hold, answers, len(labels), None)
    value = getattr(found, SCORES[dataset])
    return {"score": float(value), "trainable": 0, "epsilon": None}


# The table


def table(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each row and rank: means over seeds, and their spread."""
    datasets = list(dict.fromkeys(cell["dataset"] for cell in cells))
    named = " | ".join(f"{name}, {SCORES[name]}" for name in datasets)
    yield f"| what | where | protection | rank | trained | epsilon | {named} |"
    yield "| --- | --- | --- | --: | --: | --: |" + " --: |" * len(datasets)
    keys = dict.fromkeys((cell["row"], cell["rank"]) for cell in cells)
    for row, rank in sorted(keys, key=lambda key: (list(ROWS).index(key[0]), key[1])):
        own = [cell for cell in cells if (cell["row"], cell["rank"]) == (row, rank)]
        scores = [
            _mean([cell["score"] for cell in own if cell["dataset"] == name])
            for name in datasets
        ]
        parts = [*ROWS[row], str(rank or ""), *_sizes(own), *scores]
        yield f"| {' | '.join(parts)} |"


def _sizes(cells: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Numbers trained, and the worst epsilon; empty where there is none."""
    trained = int(cells[0]["trainable"])
    epsilon = max(cell["epsilon"] or 0.0 for cell in cells)
    return f"{trained:,}" if trained else "", f"{epsilon:.3g}" if epsilon else ""


def _mean(values: Sequence[float]) -> str:
    """Times 100; half the range over seeds where there are several."""
    if not values:
        return ""
    spread = 100 * (max(values) - min(values)) / 2
    return f"{100 * statistics.fmean(values):.1f}" + (
        f" ± {spread:.1f}" if len(values) > 1 else ""
    )


def _usual_rows() -> list[str]:
    return [row for row in ROWS if row not in _WHEN_ASKED]


def options_of(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; ``argv`` of what is found is for a cell's process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    add("--rows", nargs="+", choices=list(ROWS), default=_usual_rows())
    add("--ranks", type=int, nargs="+", default=[2, 8])
    add("--seeds", type=int, nargs="+", default=[0])
    add("--full", action="store_true", help="study_full.toml of the data sets")
    add("--method", default="ffa-lora", help="aggregation rule of the LoRA rows")
    add("--records", type=int, default=4000, help="of all sites together")
    add("--public-share", type=float, default=0.4)
    add("--public-records", type=int, default=3000, help="that train the teacher")
    add("--weight", type=float, default=0.5, help="of the teacher's part of the loss")
    add("--temperature", type=float, default=2.0)
    add("--epochs", type=int, default=1, help="of full fine-tuning")
    add("--batch", type=int, default=32)
    add("--learning-rate", type=float, default=1e-4)
    add("--student", type=Path, help="folder of another encoder, as DistilBERT's")
    add("--targets", nargs="+", default=["q_lin", "v_lin"], help="of --student")
    add("--mentor-targets", nargs="+", default=["query", "value"])
    add(
        "--teacher",
        nargs=2,
        action="append",
        metavar=("DATASET", "FOLDER"),
        help="a trained public classifier, as a BERT fine-tuned on other records",
    )
    add("--trained-on", default="", help="which public data trained --teacher")
    add("--cell", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.argv = list(argv)
    if options.teacher and not options.trained_on:
        parser.error("--trained-on: say which public data trained the teacher")
    return options


if __name__ == "__main__":
    main()
