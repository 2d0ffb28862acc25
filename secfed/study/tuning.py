"""``[tuning]``: on what data the study's settings were chosen."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from secfed.study.fields import Sha256, Text, list_as_tuple
from secfed.study.reading import ContradictionError, Table

__all__ = ["TuningRun", "TuningSection"]


class TuningRun(Table):
    """``[[tuning.runs]]``: a run that was looked at, by its ledger."""

    ledger: Text
    sha256: Sha256


class TuningSection(Table):
    """``[tuning]``: a step size that was chosen by a score depends on its records.

    ``data`` says on what: ``none`` where the settings come from elsewhere, ``public``
    where only public records were looked at; both are the study's word. ``private``
    names every run on private records that was looked at; what they spent is recorded
    and composed. ``settings`` says in words what was chosen.
    """

    data: Literal["none", "public", "private"]
    settings: Text | None = None
    runs: (
        Annotated[
            tuple[TuningRun, ...], Field(min_length=1), BeforeValidator(list_as_tuple)
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _runs_where_private(self) -> Self:
        if self.data == "private" and self.runs is None:
            raise ContradictionError(
                "runs",
                "name every run that was looked at, so that what they spent counts: "
                "`secfed tuning STUDY RUN...` prints the table",
            )
        if self.data != "private" and self.runs is not None:
            raise ContradictionError(
                "runs", f"data = {self.data!r} says that no private run was looked at"
            )
        digests = [run.sha256 for run in self.runs or ()]
        for index, digest in enumerate(digests):
            if digest in digests[:index]:
                raise ContradictionError(
                    f"runs[{index + 1}].sha256", "this run is listed twice"
                )
        return self
