"""``statement.html``: the privacy statement on one page, for people; no network."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import jinja2

import secfed.report
from secfed.gate.facts import Facts
from secfed.report.plain import statement_table
from secfed.report.tables import round_up

__all__ = ["render_page"]

_NAME: Final = "statement.html.j2"


def render_page(facts: Facts) -> str:
    """The page as one HTML text without scripts, links or requests.

    Guarantees:
        Every field of the statement is on it; equal files give equal bytes.
    """
    worst = facts.epsilon()
    return _template().render(
        facts=facts,
        statement=facts.statement,
        worst=None if worst is None else round_up(worst),
        table=statement_table(str(facts.study["study"]["name"]), facts.statement),
    )


@cache
def _template() -> jinja2.Template:
    # The style sheet is that of the reports.
    places = [Path(__file__).parent, Path(secfed.report.__file__).parent]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(places),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(_NAME)
