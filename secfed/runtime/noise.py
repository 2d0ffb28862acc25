"""The privacy noise that a round left in the weights, measured by paired replay.

The rule is applied twice to the same state: to what the surviving sites sent, and to
the same steps of the same batches with the noise left out. Whatever else a rule does,
such as drawing public random numbers from the state, turning factors or remembering
moments, it does both times from the same start. The clean steps follow the noisy
trajectory, and the ring's rounding is left out of both, so that nothing but the noise
of this round is in the difference. Simulation only: the clean steps are NOT PRIVATE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from secfed.amplification import (
    RULES,
    NoiseLevels,
    NoiseReport,
    Outcome,
    closed_form_of_outcomes,
    measure,
    measure_outcomes,
)
from secfed.errors import RoundAbortedError
from secfed.runtime.accounts import LocalSites
from secfed.runtime.arms import Arm
from secfed.runtime.noise_levels import FACTORS, levels_of
from secfed.runtime.rounds import RoundResult
from secfed.runtime.setup import Prepared
from secfed.runtime.site_training import start_of
from secfed.strategies.base import (
    ServerState,
    SiteView,
    Strategy,
    moved,
    trained_names,
)
from secfed.strategies.server_optimizer import WithServerOptimizer
from secfed.types import LORA_A, LORA_B, LORA_R, Adapter, Tensors

__all__ = ["SiteReplay", "measure_rule", "outcomes_of", "round_noise"]


@dataclass(frozen=True)
class SiteReplay:
    """One surviving site's round, with its noise and without; private.

    Attributes:
        view: What the rule knew at the site, with the rank that it trained.
        start: What it trained from.
        noisy: Its change as it was used.
        clean: The same without the noise of this round.
    """

    view: SiteView
    start: Adapter
    noisy: Tensors
    clean: Tensors

    def __repr__(self) -> str:
        return "SiteReplay(<private>)"


def round_noise(
    arm: Arm,
    local: LocalSites,
    prepared: Prepared,
    strategy: Strategy,
    before: ServerState,
    played: RoundResult,
    round_number: int,
) -> dict[str, Any] | None:
    """A finished round's noise for its metrics line.

    None where there is none to measure: no adapter was trained, it is no product of
    factors (then no rule amplifies its noise), the arm is not private, or the rule
    cannot be applied to the updates without noise.
    """
    survivors = played.result.survivors
    if not arm.study.adapter.how.is_product:
        return None
    trains = trained_names(strategy, before.adapter, round_number)
    if not arm.private or not any(name.endswith(FACTORS) for name in trains):
        return None
    sites = _replays(arm, local, strategy, before, played, round_number)
    plans = [local.plans[site] for site in survivors]
    levels = levels_of(arm, strategy, plans, before.adapter, round_number)
    try:
        report = measure_rule(strategy, before, sites, levels, prepared.start)
    except RoundAbortedError:
        return None
    return report.to_json()


def measure_rule(
    strategy: Strategy,
    before: ServerState,
    sites: Sequence[SiteReplay],
    levels: NoiseLevels | None,
    initial: Adapter,
) -> NoiseReport:
    """The noise energy that one round of a rule left in the weights.

    Rules that add the mean changes of the factors get the split into parts
    (``measure``), all others the whole (``measure_outcomes``).

    Args:
        strategy: The rule.
        before: The state that the sites received.
        sites: The survivors, of equal weight.
        levels: The noise by the plan; None where it has no closed form.
        initial: The study's initial adapter.

    Raises:
        RoundAbortedError: The rule refuses the updates without noise.
    """
    trains = tuple(sites[0].noisy)
    if _adds_factors(strategy, trains):
        return measure(
            before.adapter,
            [site.noisy for site in sites],
            [site.clean for site in sites],
            trains,
            levels=levels,
            initial=initial,
        )
    found = outcomes_of(strategy, before, sites)
    one_model = not strategy.personal
    own = [moved(site.start, site.noisy) for site in sites] if one_model else None
    return measure_outcomes(
        found,
        own,
        expected=_expected(strategy, levels, found, sites),
        levels=levels,
        initial=initial,
    )


def _adds_factors(strategy: Strategy, trains: Sequence[str]) -> bool:
    """Whether the change of dW follows from the mean changes of A and B alone."""
    plain = strategy.linear and not strategy.personal
    optimized = isinstance(strategy, WithServerOptimizer)
    core = any(name.endswith(LORA_R) for name in trains)
    return plain and not optimized and not core


def outcomes_of(
    strategy: Strategy, before: ServerState, sites: Sequence[SiteReplay]
) -> tuple[Outcome, ...]:
    """What the rule makes of both: the global adapter, or every site's own model."""
    noisy = _applied(strategy, before, sites, [site.noisy for site in sites])
    clean = _applied(strategy, before, sites, [site.clean for site in sites])
    if not strategy.personal:
        return (Outcome(before.adapter, noisy.adapter, clean.adapter),)
    return tuple(
        Outcome(
            site.start,
            _next_start(strategy, noisy, site, site.noisy),
            _next_start(strategy, clean, site, site.clean),
        )
        for site in sites
    )


def _applied(
    strategy: Strategy,
    before: ServerState,
    sites: Sequence[SiteReplay],
    changes: Sequence[Tensors],
) -> ServerState:
    """The rule's next state, from the exact mean of what the sites would send."""
    sent = [
        strategy.payload(before.adapter, site.start, change)
        for site, change in zip(sites, changes, strict=True)
    ]
    return strategy.apply(before, _mean(sent), sites[0].view.round)


def _mean(sent: Sequence[Tensors]) -> Tensors:
    found = {}
    for name in sent[0]:
        wide = np.stack([one[name] for one in sent]).astype(np.float64)
        found[name] = wide.mean(axis=0).astype(np.float32)
    return found


def _next_start(
    strategy: Strategy, after: ServerState, site: SiteReplay, change: Tensors
) -> Adapter:
    """A site's own model: what it would train from in the next round."""
    kept = strategy.kept(site.start, change, site.view)
    view = replace(site.view, kept=kept, round=after.round + 1)
    return strategy.start(after.adapter, view)


def _replays(
    arm: Arm,
    local: LocalSites,
    strategy: Strategy,
    before: ServerState,
    played: RoundResult,
    round_number: int,
) -> list[SiteReplay]:
    found = []
    for name in played.result.survivors:
        update, kept = played.updates[name], local.kept[name]
        view, start = start_of(arm, strategy, name, before, round_number, kept)
        if update.noiseless is None:
            raise ValueError(f"{name}: the update without noise was not kept")
        found.append(SiteReplay(view, start, update.change, update.noiseless))
    return found


# --------------------------------------------------------------- closed forms


def _expected(
    strategy: Strategy,
    levels: NoiseLevels | None,
    outcomes: Sequence[Outcome],
    sites: Sequence[SiteReplay],
) -> dict[str, float] | None:
    """Every module's expected energy; None where the rule has no closed form."""
    rule = RULES.get(strategy.name)
    if levels is None or rule is None or isinstance(strategy, WithServerOptimizer):
        return None
    own = [_cut(moved(site.start, site.clean), site.view.rank) for site in sites]
    return closed_form_of_outcomes(rule, levels, outcomes, own)


def _cut(adapter: Adapter, rank: int | None) -> Adapter:
    """Without the rows of A and columns of B that a site does not train."""
    tensors = {
        name: value[:rank]
        if name.endswith(LORA_A)
        else value[:, :rank]
        if name.endswith(LORA_B)
        else value
        for name, value in adapter.tensors.items()
    }
    return Adapter(tensors, adapter.scaling)
