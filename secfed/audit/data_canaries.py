"""Part C: records as canaries, and membership inference on what would be released.

Canaries come from the public hold-out: half of them as they are, half with a wrong
label; for language models a new token, one that no public text has, after a short
beginning (Panda et al., ICLR 2025, arXiv 2503.06808). Each is in the audited site's
records with probability 1/2. A score is the loss under the frozen base less the loss
under the released adapter; with shadow runs, on public records only, LiRA is made of
it. The scores of one adapter share a level, so the verdict is that of the one-run
f-DP bound, which allows it, and never that of a p-value for independent scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from secfed.audit.curves import Curve
from secfed.audit.findings import Findings
from secfed.audit.invented import taken
from secfed.audit.mechanism import drawn_members
from secfed.audit.membership import area, lira_scores, points_on_curve
from secfed.audit.one_run import lower_bounds
from secfed.audit.refutation import Scores
from secfed.audit.rehearsal import Rehearsal, copy_of
from secfed.audit.streams import public_generator
from secfed.errors import StudyError
from secfed.models import TokenFeatures, encode_blocks, moved, padded_batches
from secfed.privacy.noise import simulation_stream
from secfed.runtime.setup import random_stream
from secfed.training import PrivateRecords, pooled_records
from secfed.types import Adapter

__all__ = ["DataCanaries", "DataSettings", "check_data", "make_canaries"]

_CONFIDENCE_LEVEL: Final = 0.05
_BEGINNING: Final = 3
_BATCH_TOKENS: Final = 512
_FEWEST: Final = 8


@dataclass(frozen=True)
class DataSettings:
    """How large part C is.

    Attributes:
        canaries: At most half of the public hold-out.
        shadows: Runs on public records for LiRA; 0: none.
        level: At which the claim is refuted.
    """

    canaries: int = 200
    shadows: int = 4
    level: float = 0.01


@dataclass(frozen=True)
class DataCanaries:
    """Canaries, what they are in words, and public records to stand in for others'."""

    records: PrivateRecords
    kind: str
    stand_ins: PrivateRecords


def check_data(
    rehearsal: Rehearsal, findings: Findings, settings: DataSettings, curve: Curve
) -> None:
    """Play the copy with canaries among the records, and attack its adapter."""
    try:
        canaries = make_canaries(rehearsal, settings.canaries)
    except StudyError as error:
        findings.add("C", "data canaries", str(error), passed=None)
        return
    stream = random_stream(rehearsal.study, "audit", rehearsal.site, "data-members")
    members = drawn_members(stream, canaries.records.num_units)
    own = rehearsal.prepared.records
    records = {**own, rehearsal.site: _with(own[rehearsal.site], canaries, members)}
    released = rehearsal.play(records, charged=True).adapter
    gains = _gains(rehearsal, released, canaries.records)
    name = f"{canaries.kind}, loss relative to the frozen base"
    _tell(rehearsal, findings, name, Scores(gains, members), settings, curve)
    if settings.shadows:
        shadows, inside = _shadow_gains(rehearsal, canaries, settings.shadows)
        ratios = lira_scores(gains, shadows, inside)
        name = f"{canaries.kind}, LiRA with {settings.shadows} shadow runs"
        _tell(rehearsal, findings, name, Scores(ratios, members), settings, curve)


def make_canaries(rehearsal: Rehearsal, count: int) -> DataCanaries:
    """Canaries and stand-ins from the public hold-out.

    Raises:
        StudyError: There are too few public records, as at a site by itself.
    """
    prepared = rehearsal.prepared
    total = len(prepared.holdout)
    if total < 2 * _FEWEST:
        raise StudyError(
            rehearsal.study.name,
            "data.holdout",
            "canaries are made of public records, and too few are held here; part C "
            "runs where the study is simulated",
        )
    order = public_generator(total).permutation(total)
    count = min(count, total // 2)
    public = _public_records(rehearsal)
    chosen, stand_ins = taken(public, order[:count]), taken(public, order[count:])
    if type(chosen.features) is TokenFeatures:
        return DataCanaries(
            _new_tokens(rehearsal, chosen), "texts with a new token", stand_ins
        )
    if isinstance(chosen.features, TokenFeatures):
        return DataCanaries(chosen, "answered prompts", stand_ins)
    classes = max(len(prepared.label_names), 1)
    wrong = np.arange(count) % 2 == 1
    labels = np.where(wrong, (chosen.labels + 1) % classes, chosen.labels)
    kind = "public records, half of them mislabelled"
    return DataCanaries(replace(chosen, labels=labels), kind, stand_ins)


def _public_records(rehearsal: Rehearsal) -> PrivateRecords:
    prepared = rehearsal.prepared
    count = len(prepared.holdout)
    return replace(
        prepared.records[rehearsal.site],
        features=prepared.holdout,
        labels=prepared.holdout_labels,
        units=np.arange(count),
        num_units=count,
    )


def _new_tokens(rehearsal: Rehearsal, texts: PrivateRecords) -> PrivateRecords:
    """Short beginnings of public texts, each ending with a token of its own."""
    base, model = rehearsal.prepared.base, rehearsal.prepared.model
    held, features = rehearsal.prepared.holdout, texts.features
    if not isinstance(held, TokenFeatures) or not isinstance(features, TokenFeatures):
        raise StudyError("study", "task", "a new token needs texts of tokens")
    size = int(base.network.config.vocab_size)  # type: ignore[union-attr,arg-type]
    counts = np.bincount(held.tokens.numpy(), minlength=size)
    rarest = np.argsort(counts, kind="stable")  # Those that never occur come first.
    blocks = []
    for row in range(len(features)):
        start = int(features.offsets[row])
        beginning = features.tokens[start : start + _BEGINNING].tolist()
        blocks.append((*beginning, int(rarest[row % size])))
    return replace(texts, features=encode_blocks(base, blocks, model.first_layer))


def _with(
    own: PrivateRecords, canaries: DataCanaries, members: NDArray[np.bool_]
) -> PrivateRecords:
    inside = np.flatnonzero(members)
    return pooled_records([own, taken(canaries.records, inside)])


def _shadow_gains(
    rehearsal: Rehearsal, canaries: DataCanaries, runs: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Gains under adapters of shadow runs, (runs, canaries), and who was in.

    A shadow run is the study on public records at every site: it costs no budget.
    """
    gains, inside = [], []
    for run in range(1, runs + 1):
        stream = simulation_stream(run, "audit", "shadow-members")
        members = drawn_members(stream, canaries.records.num_units)
        shadow = replace(rehearsal, study=copy_of(rehearsal.study, shadow=run))
        records = dict.fromkeys(rehearsal.prepared.records, canaries.stand_ins)
        records[rehearsal.site] = _with(canaries.stand_ins, canaries, members)
        adapter = shadow.play(records, charged=False).adapter
        gains.append(_gains(shadow, adapter, canaries.records))
        inside.append(members)
    return np.stack(gains), np.stack(inside)


def _gains(
    rehearsal: Rehearsal, adapter: Adapter, records: PrivateRecords
) -> NDArray[np.float64]:
    """Each record's loss under the frozen base less its loss under the adapter."""
    before = _losses(rehearsal, rehearsal.begin().adapter, records)
    return before - _losses(rehearsal, adapter, records)


def _losses(
    rehearsal: Rehearsal, adapter: Adapter, records: PrivateRecords
) -> NDArray[np.float64]:
    model, loss = rehearsal.prepared.model, rehearsal.prepared.loss
    model.write(adapter.tensors)
    model.eval()
    found = np.zeros(len(records.labels))
    rows = np.arange(len(records.labels))
    lengths = records.features.lengths
    with torch.no_grad():
        for chosen in padded_batches(lengths, rows, _BATCH_TOKENS):
            batch = moved(records.batch(chosen), model)
            found[chosen] = loss(model, *batch).double().numpy(force=True)
    return found


def _tell(
    rehearsal: Rehearsal,
    findings: Findings,
    name: str,
    scores: Scores,
    settings: DataSettings,
    curve: Curve,
) -> None:
    delta = rehearsal.plan.delta
    bounds = lower_bounds(scores, curve, level=_CONFIDENCE_LEVEL, delta=delta)
    middle, low, high = area(scores)
    points = points_on_curve(scores, curve)
    listed = "; ".join(map(str, points))
    findings.add(
        "C",
        name,
        f"{len(scores)} canaries, AUC {middle:.3f} [{low:.3f}, {high:.3f}]; {listed}; "
        f"epsilon >= {bounds.steinke:.3g} (one run), >= {bounds.fdp:.3g} (one run, "
        f"f-DP); p = {bounds.fdp_p:.3g} by the latter",
        passed=bounds.fdp_p >= settings.level,
        auc=middle,
        auc_low=low,
        auc_high=high,
        points=[point.to_json() for point in points],
        epsilon_one_run=bounds.steinke,
        epsilon_one_run_fdp=bounds.fdp,
        p_one_run_fdp=bounds.fdp_p,
        canaries=len(scores),
        delta=delta,
    )
