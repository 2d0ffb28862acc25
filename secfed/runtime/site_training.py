"""One site's local training in a round, and what of it enters the sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from secfed.adapters import narrowed, parted
from secfed.client import Contribution, Site
from secfed.report.results import HEAD_ONLY
from secfed.runtime.arms import Arm
from secfed.runtime.kept import KeptTensors
from secfed.runtime.mentoring import without_mentor
from secfed.runtime.setup import Prepared, random_stream
from secfed.strategies.base import ServerState, SiteView, Strategy, trained_names
from secfed.study.sections import TrainingSection
from secfed.training import (
    LocalSteps,
    LocalUpdate,
    narrow,
    train_privately,
    train_whole_site,
    train_without_privacy,
    widened,
)
from secfed.types import Adapter

__all__ = [
    "contribute",
    "learning_rate_of",
    "local_steps_of",
    "settings_of",
    "start_of",
    "view_of",
]


def contribute(
    arm: Arm,
    prepared: Prepared,
    strategy: Strategy,
    site: Site,
    before: ServerState,
    round_number: int,
    kept: KeptTensors,
) -> Contribution:
    """Train from what the rule makes of the received adapter.

    1. the rule's start at this site; 2. local training; 3. what stays, durable before
    anything is sent; 4. what is sent. A mentor trains with the student and stays whole.
    """
    view, start = start_of(arm, strategy, site.name, before, round_number, kept)
    trains = trained_names(strategy, before.adapter, round_number)
    local = local_steps_of(arm, strategy, round_number)
    mentor = prepared.mentor.before(kept, round_number) if prepared.mentor else {}
    both = start.with_tensors(mentor)
    update = _train(arm, prepared, site, both, (*trains, *mentor), view, local)
    update, taught = without_mentor(update, mentor)
    stays = strategy.kept(start, update.change, view)
    kept.write(round_number, {**stays, **taught})
    payload = strategy.payload(before.adapter, start, update.change)
    return Contribution(update=update, payload=payload)


def start_of(
    arm: Arm,
    strategy: Strategy,
    site: str,
    before: ServerState,
    round_number: int,
    kept: KeptTensors,
) -> tuple[SiteView, Adapter]:
    """What a site knows when a round begins, with its rank, and trains from."""
    view = view_of(arm, site, kept, round_number)
    view = replace(view, rank=strategy.rank_at(view))
    return view, strategy.start(before.adapter, view)


def local_steps_of(arm: Arm, strategy: Strategy, round_number: int) -> LocalSteps:
    """What moves in which step of a round; steps count through all rounds."""
    return LocalSteps(
        strategy.active,
        strategy.smoothing,
        first=1 + (round_number - 1) * arm.study.training.steps_per_round,
    )


def view_of(arm: Arm, site: str, kept: KeptTensors, round_number: int) -> SiteView:
    """What the rule may know at one site when a round begins."""
    ranks = arm.study.adapter.ranks or {}
    return SiteView(
        rank=ranks.get(site),
        kept=parted(kept.before(round_number))[0],
        round=round_number,
    )


def _train(
    arm: Arm,
    prepared: Prepared,
    site: Site,
    start: Adapter,
    trains: tuple[str, ...],
    view: SiteView,
    local: LocalSteps,
) -> LocalUpdate:
    stream = random_stream(arm.study, arm.name, str(view.round), site.name, "training")
    if not arm.private:
        return train_without_privacy(
            prepared.trained,
            start,
            trains,
            site.records,
            settings_of(arm),
            site.plan.nominal_units,
            stream,
            loss=prepared.loss,
            local=local,
            learning_rate=_plain_rate(arm.study.training),
        )
    private: Callable[..., LocalUpdate] = partial(train_privately, local=local)
    if site.plan.unit == "site":  # No step is noisy: ``strategy_of`` checked the rule.
        private = train_whole_site
    rank = view.rank
    with narrowed(prepared.model, rank):
        update = private(
            prepared.trained,
            start if rank is None else narrow(start, rank),
            trains,
            site.records,
            site.plan,
            settings_of(arm),
            learning_rate_of(arm),
            stream,
            loss=prepared.loss,
            keep_noiseless=True,
        )
    return update if rank is None else _widened(update, start)


def _widened(update: LocalUpdate, start: Adapter) -> LocalUpdate:
    """The update of a site's own rank, among the zeros that the others expect."""
    clean = update.noiseless
    return replace(
        update,
        change=widened(update.change, start),
        noiseless=None if clean is None else widened(clean, start),
    )


def _plain_rate(training: TrainingSection) -> float | None:
    """The factors' rate without privacy, where the study names one for the method."""
    return (training.plain_learning_rate or {}).get(training.method)


def settings_of(arm: Arm) -> TrainingSection:
    """The study's settings; the head alone may have a rate of its own.

    A rate tuned for a head beside adapters would be unfair to the head alone
    (PITFALLS 15).
    """
    training = arm.study.training
    if training.method != HEAD_ONLY:
        return training
    rate = training.learning_rate.get(HEAD_ONLY, training.head_rate)
    return training.model_copy(update={"head_learning_rate": rate})


def learning_rate_of(arm: Arm) -> float:
    """The rate of the LoRA factors; a rule that trains none has no entry."""
    return arm.study.training.learning_rate.get(arm.study.training.method, 0.0)
