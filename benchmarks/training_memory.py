"""How much memory a round needs: each way to train in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

import torch
import transformers

from benchmarks.measure import peak_memory_bytes
from benchmarks.sections import MB, Section
from benchmarks.training_plans import Case, Shape, Size
from benchmarks.training_run import Run, build
from benchmarks.training_systems import SYSTEMS, Batches, Work, require_same

__all__ = ["memory"]

# Transformers loads these at their first use; they are imports, not memory of ours.
_USED: Final = (
    transformers.BertForTokenClassification,
    transformers.GPT2LMHeadModel,
    transformers.BertTokenizerFast,
    transformers.DataCollatorWithPadding,
)


def memory(run: Run) -> Iterator[Section]:
    """Peak of one round, above the interpreter and its imports."""
    section = Section("memory", "Peak memory in MB above that of the imports", "")
    section.note = (
        "VmHWM of a fresh process that loads model and data and runs one round of the "
        "steps above, minus its VmHWM after all imports. A share of it is the frozen "
        "model's. secfed's includes the states that it keeps."
    )
    for case in run.plan.memory:
        run.announce(f"memory: {case}")
        above = _above(run, case)
        ratio = above["secfed"] / above["plain"]
        section.add(
            model=case.model,
            adapter=case.adapter,
            layers=case.where,
            **{name: value / MB for name, value in above.items()},
            **{"secfed / plain": ratio},
        )
        run.at_most(f"memory, secfed / plain ({case})", 1.1, ratio, "")
    yield section


def _above(run: Run, case: Case) -> dict[str, float]:
    """By system; the processes run side by side, which memory does not notice."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = {
        name: subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", __spec__.name, name, json.dumps(asdict(case))],
            env=environment,
            stdout=subprocess.PIPE,
        )
        for name in run.plan.memory_systems
    }
    found, works = {}, {}
    for name, child in children.items():
        answer, _ = child.communicate()
        if child.returncode:
            raise RuntimeError(f"{name}: the process failed, see above")
        said = json.loads(answer)
        found[name] = said["peak"] - said["before"]
        works[name] = Work(**said["work"])
        run.tick()
    require_same(works)
    run.rounds_checked += len(works)
    return found


def _child(name: str, described: str) -> None:
    """One round of one system in this process; prints its memory."""
    torch.set_num_threads(1)
    case = _case(json.loads(described))
    before = peak_memory_bytes()
    work = SYSTEMS[name](build(case))(Batches(case.size, seed=1))
    peak = peak_memory_bytes()
    print(json.dumps({"before": before, "peak": peak, "work": asdict(work)}))  # noqa: T201


def _case(fields: dict[str, Any]) -> Case:
    size, shape = Size(**fields.pop("size")), fields.pop("shape")
    return Case(**fields, size=size, shape=Shape(**shape) if shape else None)


if __name__ == "__main__":
    _child(*sys.argv[1:])
