"""The templates: they load, fit each other, and explain every key."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from governed import call
from pydantic import BaseModel

from secfed.cli.initial import TEMPLATES
from secfed.policy import check, load_policy
from secfed.runtime.site_file import SiteFile, load_site_file
from secfed.study import Study, load_study

# Explained in the examples: rehearsals, rarely used settings, and sections of their own.
ELSEWHERE = {
    "answers", "prompt_template", "prompt", "block_length", "positive", "score",
    "temperature", "generation_seed", "home", "home_share", "shares", "columns",
    "pooling", "virtual_tokens", "feedforward_modules", "ranks", "lora_dropout",
    "plain_learning_rate", "server_optimizer", "server_learning_rate",
    "server_momentum", "server_betas", "server_tau", "neighbouring", "ring_bits",
    "clip_range", "rotation", "dropouts", "round", "site", "phase", "baselines",
    "epsilons", "alphas", "without_privacy", "loss_cap", "min_units",
}  # fmt: skip


def tables(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from tables(argument)


def keys_of(model: type[BaseModel]) -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        inner = list(tables(field.annotation))
        # The table of a teacher has an example of its own.
        if name != "distillation":
            found |= {name}.union(*(keys_of(table) for table in inner))
    return found


def explained(name: str) -> set[str]:
    text = (TEMPLATES / name).read_text("utf-8")
    keys = re.findall(r"(?m)^(?:# )?(\w+) = ", text)
    named = re.findall(r"(?m)^(?:# )?\[([\w.]+)\]", text)
    return set(keys) | {part for table in named for part in table.split(".")}


@pytest.mark.parametrize(
    ("name", "model"), [("study.toml", Study), ("node.toml", SiteFile)]
)
def test_every_key_is_explained_or_named_as_left_out(
    name: str, model: type[BaseModel]
) -> None:
    missing = keys_of(model) - explained(name)
    assert missing <= (ELSEWHERE if name == "study.toml" else set()), missing


def test_every_key_of_a_policy_is_explained() -> None:
    from secfed.policy import SitePolicy  # noqa: PLC0415

    assert keys_of(SitePolicy) == explained("site.toml")


def test_what_was_written_fits_together(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert call("init", folder).exit_code == 0
    study, policy = load_study(folder / "study.toml"), load_policy(folder / "site.toml")
    check(policy, study, 300)
    assert load_site_file(folder / "node.toml").site in study.sites


def test_every_option_that_is_commented_out_is_a_key(tmp_path: Path) -> None:
    # A template that names a key which no parser knows would teach a mistake.
    assert explained("site.toml") <= keys_of(load_policy_model())
    known = keys_of(Study) | {"north", "east", "south", "oncology"}
    assert explained("study.toml") <= known


def load_policy_model() -> type[BaseModel]:
    from secfed.policy import SitePolicy  # noqa: PLC0415

    return SitePolicy


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("mine")
    result = call("init", tmp_path)
    assert result.exit_code == 2
    assert "nothing was written" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["site.toml"]
    assert (tmp_path / "site.toml").read_text() == "mine"
