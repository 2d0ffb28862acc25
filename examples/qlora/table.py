"""NF4 against bf16 against fp32, at four sites and in one place: the study's table.

Every cell is one private training run in a process of its own, so that its peak memory
is its own: a base (``fp32``, ``bf16``, ``nf4``, ``int8``), a place (``federated``: the
study as it stands, with masks; ``central``: all records in one place at the same
epsilon, see ``secfed.runtime.pooled``) and a seed. What is done is not run again.

Example: python examples/qlora/table.py --out runs/qlora
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secfed.policy import SitePolicy
    from secfed.runtime.setup import Prepared
    from secfed.study import Study
    from secfed.types import Adapter

HERE = Path(__file__).parent
BASES: Mapping[str, tuple[str, str]] = {
    "fp32": ("float32", "none"),
    "bf16": ("bfloat16", "none"),
    "nf4": ("float32", "nf4"),
    "int8": ("float32", "int8"),
}
"""``[model] dtype`` and ``quantisation``."""
PLACES = ("federated", "central")
MEBIBYTE = 2**20


def main() -> None:
    """Run what is missing, or one cell, and print the table."""
    options = _options()
    if options.cell:
        base, place, seed = options.cell
        print(json.dumps(run_cell(options.study, base, place, int(seed))))  # noqa: T201
        return
    cells = [
        _cell(options, base, place, seed)
        for seed in options.seeds
        for base in options.bases
        for place in PLACES
    ]
    print("\n".join(table(cells)))  # noqa: T201


def _cell(
    options: argparse.Namespace, base: str, place: str, seed: int
) -> dict[str, Any]:
    """One cell's numbers: kept from an earlier call, or from a fresh process."""
    kept = options.out / f"{base}-{place}-s{seed}.json"
    if not kept.is_file():
        command = [sys.executable, __file__, "--study", str(options.study)]
        command += ["--out", str(options.out), "--cell", base, place, str(seed)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
        options.out.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stdout.splitlines()[-1] + "\n", encoding="utf-8")
    found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
    return found


def run_cell(path: Path, base: str, place: str, seed: int) -> dict[str, Any]:
    """Train once; hold-out scores at the start and at the end, and memory."""
    from secfed.cli.output import quiet_libraries  # noqa: PLC0415
    from secfed.policy import load_policy  # noqa: PLC0415
    from secfed.runtime.progress import NoProgress  # noqa: PLC0415
    from secfed.runtime.setup import prepare  # noqa: PLC0415
    from secfed.study import load_study  # noqa: PLC0415

    quiet_libraries()
    study = with_base(load_study(path), base).with_seed(seed)
    policy = load_policy(path.parent / "site.toml")
    prepared = prepare(study, path.resolve().parent, policy, NoProgress())
    before = loss_and_score(prepared, prepared.start)
    if place == "central":
        last = train_centrally(study, prepared)
    else:
        last = train_federated(study, policy, prepared)
    after = loss_and_score(prepared, last)
    return {
        "base": base,
        "place": place,
        "seed": seed,
        "loss_before": before[0],
        "loss_after": after[0],
        "score_before": before[1],
        "score_after": after[1],
        "frozen_mib": frozen_bytes(prepared) / MEBIBYTE,
        # Kilobytes on Linux.
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def with_base(study: Study, base: str) -> Study:
    """The study over another base; nothing else changes."""
    from secfed.study import load_study_dict  # noqa: PLC0415

    values = study.canonical()
    values["model"]["dtype"], values["model"]["quantisation"] = BASES[base]
    return load_study_dict(values, f"study {study.name} over {base}")


def train_federated(study: Study, policy: SitePolicy, prepared: Prepared) -> Adapter:
    """The study as it stands, masks and evidence included; its last adapter."""
    from secfed.adapters import load_adapter  # noqa: PLC0415
    from secfed.runtime.arms import Arm  # noqa: PLC0415
    from secfed.runtime.local import run_arm  # noqa: PLC0415
    from secfed.runtime.progress import NoProgress  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        (run / "private").mkdir()
        arm = Arm(name=study.training.method, study=study)
        private = run / "private"
        run_arm(arm, prepared, run, private, "qlora", policy, NoProgress())
        rounds = study.training.rounds
        last = run / "adapters" / f"round-{rounds:03d}.safetensors"
        return load_adapter(last, prepared.start)


def train_centrally(study: Study, prepared: Prepared) -> Adapter:
    """All records in one place, at the same epsilon and with as many noisy steps."""
    from secfed.runtime.pooled import pooled_plan  # noqa: PLC0415
    from secfed.runtime.setup import random_stream  # noqa: PLC0415
    from secfed.strategies.base import moved  # noqa: PLC0415
    from secfed.training import pooled_records, train_privately  # noqa: PLC0415

    plan = pooled_plan(study, prepared.plans)
    records = pooled_records([prepared.records[site] for site in study.sites])
    adapter = prepared.start
    for number in range(1, study.training.rounds + 1):
        update = train_privately(
            prepared.model,
            adapter,
            tuple(adapter.tensors),
            records,
            plan,
            study.training,
            study.training.learning_rate[study.training.method],
            random_stream(study, "central", str(number)),
            loss=prepared.loss,
        )
        adapter = moved(adapter, update.change)
    return adapter


def loss_and_score(prepared: Prepared, adapter: Adapter) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy, on the public hold-out."""
    import torch  # noqa: PLC0415

    from secfed.evaluation import count_tokens, predict  # noqa: PLC0415
    from secfed.models import TokenFeatures  # noqa: PLC0415

    if isinstance(prepared.holdout, TokenFeatures):
        scores = count_tokens(prepared.model, adapter, prepared.holdout).scores()
        if scores is None:
            raise SystemExit("the hold-out is empty")
        return math.log(scores.perplexity), scores.token_accuracy
    logits = torch.from_numpy(predict(prepared.model, adapter, prepared.holdout))
    labels = torch.from_numpy(prepared.holdout_labels)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    right = (logits.argmax(dim=1) == labels).double().mean()
    return float(loss), float(right)


def frozen_bytes(prepared: Prepared) -> int:
    """What the layers' frozen numbers take, packed as they are; no embeddings."""
    held = {
        id(parameter): _bytes_of(parameter)
        for parameter in prepared.base.layers.parameters()
        if not parameter.requires_grad
    }
    return sum(held.values())


def _bytes_of(weight: Any) -> int:
    """Of a weight, and of the scales that it is multiplied out with."""
    if hasattr(weight, "qdata"):
        return int(weight.qdata.nbytes + weight.scale.nbytes)
    scales = weight.quant_state.absmax.nbytes if hasattr(weight, "quant_state") else 0
    return int(weight.nbytes + scales)


def table(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each base and place: means over seeds, and their spread."""
    yield "| base | place | seeds | loss, start | its fall | score | peak | layers |"
    yield "| --- | --- | --: | --: | --: | --: | --: | --: |"
    for key in dict.fromkeys((cell["base"], cell["place"]) for cell in cells):
        own = [cell for cell in cells if (cell["base"], cell["place"]) == key]
        fall = [cell["loss_before"] - cell["loss_after"] for cell in own]
        yield (
            f"| {key[0]} | {key[1]} | {len(own)} "
            f"| {_mean([cell['loss_before'] for cell in own])} | {_mean(fall)} "
            f"| {_mean([cell['score_after'] for cell in own])} "
            f"| {max(cell['peak_mib'] for cell in own):.0f} MiB "
            f"| {own[0]['frozen_mib']:.1f} MiB |"
        )


def _mean(values: Sequence[float]) -> str:
    """The mean, and half the range over seeds where there are several."""
    spread = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):.3f}" + (
        f" ± {spread:.3f}" if len(values) > 1 else ""
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, default=HERE / "study.toml")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bases", nargs="+", default=["fp32", "bf16", "nf4"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
