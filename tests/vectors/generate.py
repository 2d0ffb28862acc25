"""Writes the vectors of the secure sum, or compares them bit for bit.

    python -m tests.vectors.generate                      write
    python -m tests.vectors.generate --check              compare, write nothing
    python -m tests.vectors.generate --new-encapsulations write, with fresh ML-KEM

Encapsulations of the hybrid suite are read from the files that exist, because the
library draws their randomness itself; everything else follows from the code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocols.agreement import KemSecret
from tests.vectors.making import by_clients, by_servers, failures, rounds
from tests.vectors.making.derivations import derivations
from tests.vectors.making.encapsulations import Encapsulations, Link, MissingError
from tests.vectors.making.encodings import encodings, invalid_encodings
from tests.vectors.making.play import Game, UnexpectedEndError

DIRECTORY = Path(__file__).resolve().parent / "secagg"

FAILURES = (*by_servers.FAILURES, *by_clients.FAILURES)


def recorded(directory: Path, name: str) -> dict[Link, KemSecret]:
    """The encapsulations that the file of one round holds."""
    path = directory / "rounds" / f"{name}.json"
    if not path.exists():
        return {}
    return {
        Link(one["client"], one["peer"], one["key"]): KemSecret(
            bytes.fromhex(one["ciphertext"]), bytes.fromhex(one["secret"])
        )
        for one in json.loads(path.read_text("utf-8"))["encapsulations"]
    }


def played(directory: Path, *, new_encapsulations: bool) -> dict[str, Game]:
    """Every round that ends with a sum, by name."""
    games = {}
    for spec in rounds.ROUNDS:
        known = {} if new_encapsulations else recorded(directory, spec.name)
        pairs = Encapsulations(known, may_make=new_encapsulations)
        games[spec.name] = game = Game(spec, pairs).play()
        if game.result is None:
            raise UnexpectedEndError(f"{spec.name}: {game.refusal}")
    return games


def failed(failure: failures.Failure, games: Mapping[str, Game]) -> dict[str, Any]:
    """One round that ends with a refusal."""
    base = games[failure.base]
    pairs = Encapsulations(base.encapsulations.pairs, may_make=False)
    game = Game(failures.spec_of(failure, base.spec), pairs).play()
    return failures.as_json(failure, game, base)


def contents(directory: Path, *, new_encapsulations: bool = False) -> dict[str, Any]:
    """The content of every file, by its path in ``directory``."""
    games = played(directory, new_encapsulations=new_encapsulations)
    files: dict[str, Any] = {"derivations": derivations(games)}
    for name, content in encodings(games).items():
        files[f"messages/{name}"] = content
    for name, content in invalid_encodings(games).items():
        files[f"messages/invalid/{name}"] = content
    for name, game in games.items():
        files[f"rounds/{name}"] = rounds.as_json(game)
    for failure in FAILURES:
        files[f"rounds/failing/{failure.name}"] = failed(failure, games)
    return {f"{name}.json": content for name, content in files.items()}


def generated(directory: Path, *, new_encapsulations: bool = False) -> dict[str, str]:
    """The text of every file, by its path in ``directory``."""
    made = contents(directory, new_encapsulations=new_encapsulations)
    return {
        path: json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        for path, content in made.items()
    }


def first_difference(directory: Path, texts: Mapping[str, str]) -> str:
    """Where the files differ from ``texts``; empty if nowhere."""
    present = {str(path.relative_to(directory)) for path in directory.rglob("*.json")}
    for path in sorted(texts.keys() | present):
        if path not in texts:
            return f"{path}: nothing makes this file"
        if path not in present:
            return f"{path}: missing"
        old, new = (directory / path).read_text("utf-8").splitlines(), texts[path]
        for number, line in enumerate(new.splitlines()):
            if number >= len(old) or old[number] != line:
                return f"{path}, line {number + 1}: would be {line.strip()[:120]}"
        if (directory / path).read_text("utf-8") != new:
            return f"{path}: differs at its end"
    return ""


def write(directory: Path, texts: Mapping[str, str]) -> None:
    """Replace all files."""
    for path in directory.rglob("*.json"):
        path.unlink()
    for path, text in texts.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")


def main(arguments: list[str]) -> int:
    """Write or compare; 1 if the files differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.vectors.generate")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--new-encapsulations", action="store_true")
    chosen = parser.parse_args(arguments)
    fresh = chosen.new_encapsulations
    try:
        texts = generated(DIRECTORY, new_encapsulations=fresh)
    except (MissingError, UnexpectedEndError) as error:
        hint = "if public keys are meant to change, use --new-encapsulations"
        parser.exit(1, f"{error}\n{hint}\n")
    if chosen.check:
        difference = first_difference(DIRECTORY, texts)
        sys.stdout.write(f"{difference or 'as recorded'}\n")
        return 1 if difference else 0
    write(DIRECTORY, texts)
    sys.stdout.write(f"{len(texts)} files, {sum(map(len, texts.values()))} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
