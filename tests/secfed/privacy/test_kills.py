"""Processes that are killed anywhere, and processes that race for the last of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from secfed.privacy.accounting import epsilon, sampled_gaussian
from secfed.privacy.budget import Budget

pytestmark = pytest.mark.slow

# One process loads the package and forks a child per attempt. A child patches
# what it calls: every statement of SQLite and every write, sync and truncation
# is a point before and after which it may kill itself. Between reserve and spend
# it writes the mark of a released round; a mark without a charge is the failure.
KILLS = """
import json, os, random, signal, sqlite3, sys, time
from secfed.privacy.accounting import sampled_gaussian
from secfed.privacy.budget import Budget

path, least = sys.argv[1], int(sys.argv[2])
EVENT = sampled_gaussian(1.0, 400.0, 1)
write, fsync, connect = os.write, os.fsync, sqlite3.connect
released, points = [], []
rng = random.Random(11)

def child(run, pipe, kill_at):
    left = [kill_at]
    def point():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def around(function):
        def called(*arguments):
            point()
            result = function(*arguments)
            point()
            return result
        return called
    class Killing(sqlite3.Connection):
        execute = around(sqlite3.Connection.execute)
        executemany = around(sqlite3.Connection.executemany)
        close = around(sqlite3.Connection.close)
    sqlite3.connect = lambda *a, **k: connect(*a, factory=Killing, **k)
    os.write, os.fsync, os.ftruncate = around(write), around(fsync), around(os.ftruncate)
    budget = Budget(path, "north").open("patients", "record", 1e3, 1e-5, fingerprint=run)
    for number in (1, 2):
        ticket = budget.reserve("digest", run, number, EVENT)
        write(pipe, f"{run} {number}\\n".encode())
        budget.spend(ticket)

def attempt(run, kill_at, seconds):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            child(run, writing, kill_at)
        except BaseException as error:
            write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        marks = [line.split() for line in pipe]
    status = os.waitpid(pid, 0)[1]
    released.extend([name, int(number)] for name, number in marks)
    # Whatever happened: the files are whole, and nothing released is missing.
    if os.path.exists(path):
        held = [(c.run_id, c.round) for a in Budget.read(path) for c in a.charges]
        assert {(n, r) for n, r in released} <= set(held), (run, kill_at)
        assert len(held) == len(set(held))
    else:
        assert not released
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)

kills = {"point": 0, "timer": 0}
# 1. Every point of a whole life, on a store that grows.
kill_at, started = 1, time.monotonic()
while (ended := attempt(f"point-{kill_at}", kill_at, None)) == signal.SIGKILL:
    kills["point"] += 1
    kill_at += 1
assert ended == 0, ended
one_life = (time.monotonic() - started) / kill_at
# 2. Any moment between them.
while kills["timer"] < max(60, least - kills["point"]):
    name = f"timer-{kills['timer']}-{rng.random()}"
    ended = attempt(name, 0, rng.random() * 1.2 * one_life)
    assert ended in (0, signal.SIGKILL), ended
    kills["timer"] += ended == signal.SIGKILL
    one_life *= 0.97 if ended == 0 else 1.0
print(json.dumps({"kills": kills, "released": released}))
"""


def test_what_was_released_is_always_recorded_whenever_a_process_is_killed(tmp_path):
    path = tmp_path / "budget.sqlite"
    ran = subprocess.run(
        [sys.executable, "-c", KILLS, str(path), "200"],
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    found = json.loads(ran.stdout)
    assert found["kills"]["point"] >= 100
    assert sum(found["kills"].values()) >= 200
    released = {(run, number) for run, number in found["released"]}
    assert len(released) >= 50
    (account,) = Budget.read(path)
    charged = {(charge.run_id, charge.round): charge for charge in account.charges}
    assert released <= charged.keys()
    # Control: the kills came at both sides of every step. Some reserved and did
    # not release, some released and did not settle.
    assert len(charged) > len(released)
    assert {charged[mark].state for mark in released} == {"reserved", "spent"}
    events = [charged[mark].event for mark in released]
    assert account.spent_epsilon >= epsilon(events, account.population.delta)


RACE = """
import os, sys
from secfed.errors import BudgetExceededError
from secfed.privacy.accounting import epsilon, sampled_gaussian
from secfed.privacy.budget import Budget

folder, races, racers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
EVENT = sampled_gaussian(1.0, 20.0, 1)
LIMIT = epsilon([EVENT] * 3, 1e-5)

def racer(path, name, gate):
    budget = Budget(path, "north").open("patients", "record", LIMIT, 1e-5)
    os.read(gate, 1)  # Ends when the starter closes its side.
    try:
        budget.reserve("digest", name, 1, EVENT)
    except BudgetExceededError:
        return 7
    return 0

for race in range(races):
    path = os.path.join(folder, f"{race}.sqlite")
    if race % 2:  # Every other time they also race to create the file.
        held = Budget(path, "north").open("patients", "record", LIMIT, 1e-5)
        for number in (1, 2):
            held.reserve("digest", "before", number, EVENT)
    gate, starter = os.pipe()
    children = []
    for number in range(racers):
        pid = os.fork()
        if pid == 0:
            os.close(starter)
            try:
                os._exit(racer(path, f"racer-{number}", gate))
            except BaseException as error:
                os.write(2, repr(error).encode())
                os._exit(1)
        children.append(pid)
    os.close(gate)
    os.close(starter)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    wins = 1 if race % 2 else min(3, racers)
    assert sorted(codes) == [0] * wins + [7] * (racers - wins), (race, codes)
    (account,) = Budget.read(path)
    assert account.spent_epsilon == LIMIT
"""


def test_processes_that_race_for_the_last_of_a_budget_take_it_once(tmp_path):
    command = [sys.executable, "-c", RACE, str(tmp_path), "40", "4"]
    subprocess.run(command, check=True, timeout=300)
    event = sampled_gaussian(1.0, 20.0, 1)
    for path in tmp_path.glob("*.sqlite"):
        (account,) = Budget.read(path)
        assert [charge.event for charge in account.charges] == [event] * 3
