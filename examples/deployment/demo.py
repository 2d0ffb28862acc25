"""One coordinator and four sites as processes; one site is killed in a round.

Run from the project's folder: ``make demo-deployment``. Nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parties import Parties, set_up

_EXAMPLE = Path(__file__).resolve().parent.parent / "icd10_hospitals"
_KILLED = "harbour-maternity"
_KILL_ROUND = 2
_WAITS = ("--joining", "600", "--training", "900", "--phase", "120")


def main() -> int:
    """Run the demo; the exit code is the coordinator's."""
    parser = argparse.ArgumentParser(description=__doc__)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    parser.add_argument("--out", type=Path, default=Path("runs", f"deployment-{stamp}"))
    folder = parser.parse_args().out.resolve()
    policy = _EXAMPLE / "site.toml"
    parties = set_up(folder, _EXAMPLE / "study.toml", policy, _WAITS)
    _say(f"folders of all parties: {folder}")
    try:
        process = parties.start_coordinator()
        for site in parties.study.sites:
            parties.start_site(site)
        _follow(parties)
        code = process.wait()
    finally:
        parties.stop()
    _say(parties.log("coordinator")[-2000:])
    return code


def _follow(parties: Parties) -> None:
    """Print every phase and who answered; kill a site, and start it again later."""
    killed = back = False
    before: dict[str, Any] = {}
    while parties.processes["coordinator"].poll() is None:
        time.sleep(0.2)
        now = _status(parties)
        if now == before:
            continue
        before = now
        where = f"round {now['round']}/{now['rounds']}  {now['phase']}"
        _say(f"{where:<40} {' '.join(now['sites'])}")
        training = now["phase"] == "local training"
        if training and now["round"] == _KILL_ROUND and not killed:
            parties.kill(_KILLED)
            killed = True
            _say(f"kill -9 {_KILLED}")
        if killed and not back and now["round"] > _KILL_ROUND:
            parties.start_site(_KILLED)
            back = True
            _say(f"{_KILLED} is started again")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _status(parties: Parties) -> dict[str, Any]:
    path = parties.run / "private" / "status.json"
    if not path.is_file():
        return {"round": 0, "rounds": 0, "phase": "starting", "sites": []}
    told: dict[str, Any] = json.loads(path.read_bytes())
    told.pop("changed", None)
    return told


if __name__ == "__main__":
    sys.exit(main())
