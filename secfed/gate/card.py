"""The model card: ``README.md`` in the hub's format, drawn from the other files.

The header is YAML whose values are written as JSON, which is YAML too. Its line
``secfed:`` holds the figures for machines, so that a check needs no YAML reader.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2

from secfed.canonical import parse_json
from secfed.errors import VerificationError
from secfed.gate.facts import Facts
from secfed.report.tables import round_up
from secfed.statement import UNKNOWN

__all__ = ["render_card", "stated_facts"]

_FENCE: Final = "---\n"
_FIGURES: Final = "secfed: "
_NAME: Final = "card.md.j2"
_KINDS: Final = {
    "CAUSAL_LM": "text-generation",
    "TOKEN_CLS": "text-classification",
    "SEQ_CLS": "text-classification",
}
_CLASSES: Final = {"CAUSAL_LM": "AutoModelForCausalLM"}
_ENCODER: Final = "AutoModelForTokenClassification"


def render_card(facts: Facts) -> str:
    """The card as Markdown; equal files give equal bytes."""
    task = facts.config.get("task_type")
    labels = facts.study["data"].get("labels") or []
    body = _template().render(
        facts=facts,
        statement=facts.statement,
        study=facts.study,
        worst=facts.epsilon(),
        base=_base(facts),
        kind=_CLASSES.get(str(task), _ENCODER),
        labels=labels,
    )
    return _FENCE + _header(facts) + _FENCE + body


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701 - Markdown; texts of others pass ``_plain``
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    environment.filters["epsilon"] = _epsilon
    return environment.get_template(_NAME)


def stated_facts(text: str) -> Any:
    """The figures in a card's header.

    Raises:
        VerificationError: There are none, or more than one line of them.
    """
    parts = text.split(_FENCE)
    lines = parts[1].splitlines() if text.startswith(_FENCE) and len(parts) > 1 else []
    found = [line for line in lines if line.startswith(_FIGURES)]
    if len(found) != 1:
        raise VerificationError("README.md: no figures of secfed in the header")
    try:
        return parse_json(found[0].removeprefix(_FIGURES).encode())
    except ValueError as error:
        raise VerificationError(f"README.md: {error}") from error


def _header(facts: Facts) -> str:
    base = _base(facts)
    kind = _KINDS.get(str(facts.config.get("task_type")))
    values: dict[str, Any] = {
        "base_model": base,
        "library_name": "peft",
        "license": facts.card.license,
        **({} if kind is None else {"pipeline_tag": kind}),
        "tags": [
            f"base_model:adapter:{base}",
            str(facts.config["peft_type"]).lower(),
            "federated-learning",
            "secure-aggregation",
            *["differential-privacy"] * bool(facts.stated()["private"]),
        ],
        "secfed": facts.stated(),
    }
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in values.items()]
    return "".join(lines)


def _base(facts: Facts) -> str:
    return facts.card.base_model or str(facts.config["base_model_name_or_path"])


def _epsilon(value: float | None) -> str:
    return "none: nothing is promised" if value is None else round_up(value)


def _plain(value: object) -> str:
    """A text of others as one line that is no markup."""
    text = " ".join(str(value).split()) or UNKNOWN
    for mark in "\\`*_[]|#":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
