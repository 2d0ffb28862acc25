"""A comparison against its arms: the same study, signer and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secfed.canonical import parse_json
from secfed.errors import VerificationError
from secfed.study import Study
from secfed.verify.claims import difference, read_metrics
from secfed.verify.files import Bundle

__all__ = ["ARMS", "check_arms", "check_comparison"]

ARMS = "arms"

_SHARED = ("task", "data", "model", "privacy", "secagg", "distillation", "tuning")
"""The tables of a study that all arms share, so that they can be compared."""


def check_comparison(bundle: Bundle) -> tuple[list[Mapping[str, Any]], str]:
    """The arms that ``comparison.json`` lists, if they are those in ``arms/``.

    An arm without a run directory (``run`` null) is listed but has no evidence.

    Raises:
        VerificationError: It is of another study, or lists other directories
            than there are.
    """
    value = bundle.json("comparison.json")
    if value["study_digest"] != bundle.manifest.study_digest:
        raise VerificationError("comparison.json: of another study than the manifest")
    listed = [arm for arm in value["arms"] if arm.get("run")]
    named = {arm["run"] for arm in listed}
    there = {
        "/".join(name.split("/")[:2])
        for name in bundle.manifest.files
        if name.startswith(f"{ARMS}/")
    }
    if named != there or len(listed) != len(named):
        odd = ", ".join(sorted(named ^ there)) or "a directory twice"
        raise VerificationError(f"comparison.json and {ARMS}/ differ: {odd}")
    bare = len(value["arms"]) - len(listed)
    note = f"; {bare} arms have no run directory" if bare else ""
    return listed, f"it lists the {len(listed)} arms that are there{note}"


def check_arms(
    bundle: Bundle, study: Study, listed: Sequence[Mapping[str, Any]]
) -> str:
    """Every arm has this study's data, model and privacy, and these numbers."""
    tables = study.canonical()
    for arm in listed:
        run = arm["run"]
        manifest = parse_json(bundle.read(f"{run}/manifest.json"))
        if manifest["coordinator_key"] != bundle.manifest.coordinator_key.hex():
            raise VerificationError(f"{run}/manifest.json: signed by another key")
        own = bundle.json(f"{run}/study.json")
        for table in _SHARED:
            if own.get(table) != tables.get(table):
                raise VerificationError(f"{run}/study.json: another [{table}]")
        metrics = read_metrics(bundle, f"{run}/metrics.jsonl")
        where = difference(arm["rounds"], metrics)
        if where is not None:
            raise VerificationError(
                f"comparison.json: rounds{where} of {arm['name']!r} is not what "
                f"{run}/metrics.jsonl says"
            )
    return f"{len(listed)} arms share data, model, privacy and signer"
