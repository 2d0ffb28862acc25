"""secfed against the machine: keystream, addition, threads, memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.cases import is_playable
from benchmarks.measure import load_average
from benchmarks.secagg_machine import (
    CIPHERS,
    keystream_rate,
    masking_against_machine,
    threads_against_one,
    threads_are_known,
)
from benchmarks.secagg_memory import server_memory
from benchmarks.secagg_run import Run
from benchmarks.sections import GB, MB, MS, Section

__all__ = ["against_machine", "memory", "threads"]

_MASKING_GOAL = 0.8
_THREADS_GOAL = 1.7
_MEMORY_GOAL_MB = 200


def against_machine(run: Run) -> Iterator[Section]:
    """The machine's own pace, and the client's masking as a share of it."""
    rates = Section(
        "machine",
        "The machine: keystream, and keystream plus addition",
        "GB per CPU second in this process, 16 streams, chunks of 128 KiB, buffers "
        "and cipher contexts made before.",
    )
    run.announce("the machine's own pace")
    for cipher in CIPHERS:
        for dtype in (np.uint16, np.uint32, np.uint64):
            length = run.plan.rate_length
            pure, added = (
                keystream_rate(
                    cipher, dtype, length, add=add, repetitions=run.plan.repetitions
                ).scaled(1 / GB)
                for add in (False, True)
            )
            name = np.dtype(dtype).name
            rates.add(cipher=cipher, element=name, alone=pure, with_addition=added)
            run.tick()
    yield rates
    yield _masking(run)


def _masking(run: Run) -> Section:
    section = Section(
        "masking",
        "Client masking as a share of AES-256-CTR plus addition",
        "Pairs in turn, one client's masks over one vector. Masking is from the keys "
        "of the streams to the masked vector. The whole step also opens boxes, "
        "agrees on keys, encodes and signs.",
    )
    for case in run.playable(run.plan.masking):
        run.announce(f"masking against the machine, {case}")
        found = masking_against_machine(case, run.plan.repetitions)
        share = found.yardstick.over(found.masking)
        section.add(
            clients=case.clients,
            elements=case.length,
            ring_bits=case.ring_bits,
            machine_ms=found.yardstick.scaled(MS),
            masking_ms=found.masking.scaled(MS),
            step_ms=found.step.scaled(MS),
            masking_share=share,
            step_share=found.yardstick.over(found.step),
        )
        name = f"client masking, share of the machine's pace ({case.ring_bits} bits)"
        run.at_least(name, _MASKING_GOAL, share.median, "")
        run.tick()
    return section


def threads(run: Run) -> Iterator[Section]:
    """Two threads against one: elapsed time, so only an idle machine shows it."""
    if not threads_are_known():
        run.left_out.append("threads: not in this version of the protocol")
        return
    section = Section(
        "threads",
        "Two threads against one",
        "Elapsed milliseconds, pairs in turn. Other work on the machine lowers the "
        "ratio; the load average counts this process too.",
    )
    run.announce("two threads against one")
    load = load_average()
    for found in threads_against_one(run.plan.threads, run.plan.repetitions):
        speedup = found.one.over(found.two)
        section.add(
            step=found.step,
            clients=found.case.clients,
            elements=found.case.length,
            one_thread_ms=found.one.scaled(MS),
            two_threads_ms=found.two.scaled(MS),
            speedup=speedup,
            load_average_before=load,
        )
        # The steps around the masks have a part that one thread does.
        if found.step == "masks alone":
            name = f"two threads against one, {found.step} (load average {load:.2f})"
            run.at_least(name, _THREADS_GOAL, speedup.median, "times")
        run.tick()
    yield section


def memory(run: Run) -> Iterator[Section]:
    """The server's process alone."""
    section = Section(
        "memory",
        "Server memory",
        "MB of resident memory of a fresh process that runs the server alone: after "
        "its imports, at its highest, and the difference. A tenth of the clients "
        "drop out.",
    )
    for case in run.plan.memory:
        if not is_playable(case):
            run.left_out.append(f"memory: not in this version of the protocol: {case}")
            continue
        run.announce(f"server memory, {case}")
        found = server_memory(case, 10, run.tick)
        run.sums_checked += 1
        section.add(
            clients=case.clients,
            parameters=case.length,
            graph=case.graph,
            ring_bits=case.ring_bits,
            before_MB=found.before / MB,
            peak_MB=found.peak / MB,
            above_MB=found.above / MB,
        )
        if case == run.plan.memory[-1]:
            name = f"server memory above the interpreter's, {case}"
            run.at_most(name, _MEMORY_GOAL_MB, found.above / MB, "MB")
    yield section
