"""The aggregation rules, by name. To add one: a file, and a line here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from secfed.errors import StudyError
from secfed.strategies.base import (
    ServerState,
    SiteView,
    Strategy,
    sent_names,
    trained_names,
)
from secfed.strategies.fed_sb import FedSb
from secfed.strategies.fedavg import FedAvg
from secfed.strategies.fedex_lora import FedExLora
from secfed.strategies.fedrot_lora import FedRotLora
from secfed.strategies.fedsa_lora import FedSaLora, FedSaLoraB
from secfed.strategies.fedsvd import FedSvd
from secfed.strategies.ffa_fresh import FfaFresh
from secfed.strategies.ffa_lora import FfaLora
from secfed.strategies.ffb_lora import FfbLora
from secfed.strategies.flexlora import FlexLora
from secfed.strategies.flexlora_sketch import FlexLoraSketch
from secfed.strategies.flora import Flora
from secfed.strategies.head_only import HeadOnly
from secfed.strategies.hetlora import HetLora
from secfed.strategies.la_lora import LaLora
from secfed.strategies.local import Local
from secfed.strategies.lora_fair import LoraFair
from secfed.strategies.rolora import RoLora
from secfed.strategies.server_optimizer import (
    FedAdam,
    FedAvgM,
    ServerOptimizer,
    WithServerOptimizer,
    adds_means,
)
from secfed.study import Study
from secfed.study.sections import TrainingSection

__all__ = [
    "STRATEGIES",
    "ServerState",
    "SiteView",
    "Strategy",
    "check_maskable",
    "check_ranks",
    "get_strategy",
    "sent_names",
    "strategy_of",
    "trained_names",
]

STRATEGIES: Mapping[str, Strategy] = {
    "fedavg": FedAvg(),
    "ffa-lora": FfaLora(),
    "ffb-lora": FfbLora(),
    "fedsa-lora": FedSaLora(),
    "fedsa-lora-b": FedSaLoraB(),
    "rolora": RoLora(),
    "flexlora": FlexLora(),
    "flexlora-sketch": FlexLoraSketch(),
    "hetlora": HetLora(),
    "fedex-lora": FedExLora(),
    "lora-fair": LoraFair(),
    "fedsvd": FedSvd(),
    "ffa-fresh": FfaFresh(),
    "fed-sb": FedSb(),
    "fedrot-lora": FedRotLora(),
    "la-lora": LaLora(),
    "local": Local(),
    "head-only": HeadOnly(),
    "flora": Flora(),
}


def get_strategy(
    name: str, *, path: str | Path = "study", key: str = "training.method"
) -> Strategy:
    """The rule with this name.

    Args:
        name: As in a study file.
        path: The file to name in the error.
        key: The key to name in the error.

    Raises:
        StudyError: There is no such rule; the message names the nearest.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), STRATEGIES, n=1)
    suggestion = f"; did you mean {near[0]!r}?" if near else ""
    raise StudyError(
        path,
        key,
        f"there is no method {name!r}{suggestion} (known: {', '.join(STRATEGIES)})",
    )


def strategy_of(study: Study) -> Strategy:
    """The rule of a study, told its sites' ranks, with the coordinator's optimizer.

    Raises:
        StudyError: There is no such rule, or it does not fit the privacy unit or the
            optimizer.
    """
    own, full = study.adapter.ranks or {}, study.adapter.r
    ranks = [own.get(site, full) for site in study.sites]
    rule = get_strategy(study.training.method).for_sites(ranks)
    if study.privacy.unit == "site" and not rule.plain_steps:
        raise StudyError(
            "study",
            "privacy.unit",
            f"{rule.name} changes what single noisy steps do, and where the unit is "
            "the site no step is noisy; choose another method or a smaller unit",
        )
    optimizer = _optimizer(study.training)
    if optimizer is None:
        return rule
    if not adds_means(rule):
        able = [name for name, known in STRATEGIES.items() if adds_means(known)]
        raise StudyError(
            "study",
            "training.server_optimizer",
            f"{rule.name} does not add the mean of what is sent, and only that can go "
            f"through {optimizer.title}; it works with {', '.join(able)}",
        )
    return WithServerOptimizer(rule, optimizer)


def _optimizer(training: TrainingSection) -> ServerOptimizer | None:
    """A study's optimizer at the coordinator; its keys were checked with the study."""
    rate = training.server_learning_rate
    if training.server_optimizer is None or rate is None:
        return None
    if training.server_optimizer == "fedavgm":
        momentum = training.server_momentum
        return FedAvgM(rate) if momentum is None else FedAvgM(rate, momentum)
    betas, tau = training.server_betas, training.server_tau
    default = FedAdam(rate)
    return FedAdam(rate, betas or default.betas, tau or default.tau)


def check_maskable(
    strategy: Strategy, *, path: str | Path = "study", key: str = "training.method"
) -> Strategy:
    """The rule, if it needs no more than one masked sum per round.

    Raises:
        StudyError: It needs single updates; the message says why.
    """
    if strategy.needs == "singles":
        raise StudyError(
            path,
            key,
            f"{strategy.name} cannot run under secure aggregation: {strategy.refusal}",
        )
    return strategy


def check_ranks(
    strategy: Strategy,
    ranks: Mapping[str, int] | None,
    *,
    path: str | Path = "study",
) -> None:
    """Refuse unequal ranks for a rule that adds factors number by number.

    Raises:
        StudyError: Names the rules that can.
    """
    if ranks and not strategy.unequal_ranks:
        able = [name for name, rule in STRATEGIES.items() if rule.unequal_ranks]
        raise StudyError(
            path,
            "adapter.ranks",
            f"{strategy.name} needs the same rank at all sites; unequal ranks work "
            f"with {', '.join(able) or 'no rule yet'}",
        )
