"""The public numbers of a study that decide on its noise energy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from secfed.amplification import RULES, InitialLaw, NoiseRule, Setting
from secfed.errors import StudyError

if TYPE_CHECKING:
    from secfed.model_files import ModuleShape
    from secfed.study import Study

__all__ = ["NoiseOutlook", "noise_outlook"]


@dataclass(frozen=True)
class NoiseOutlook:
    """A study's adapted modules and the noise of its sites.

    Attributes:
        study: The checked study.
        modules: The adapted modules.
        sigmas: The calibrated noise multiplier of every site.
        rate: One step size for all rules; None: the study's own.
        initial: The law of the frozen or starting factor.
        norm_b2: Of one module's clean B.
    """

    study: Study
    modules: tuple[ModuleShape, ...]
    sigmas: Mapping[str, float]
    rate: float | None = None
    initial: InitialLaw = "peft"
    norm_b2: float = 0.0

    @property
    def whole_site(self) -> bool:
        """Whether noise is added once per round, whatever the step size is."""
        return self.study.privacy.unit == "site"

    def step_size(self, rule: NoiseRule) -> float | None:
        """The rule's step size; None where the study has none."""
        if self.rate is not None:
            return self.rate
        return self.study.training.learning_rate.get(rule.name)

    def rules(self) -> tuple[NoiseRule, ...]:
        """The rules whose noise follows from what is known."""
        return tuple(
            rule
            for rule in RULES.values()
            if self.whole_site or self.step_size(rule) is not None
        )

    def setting(self, rule: NoiseRule, rate: float | None = None) -> Setting:
        """The numbers for one rule, at another step size if one is given.

        Raises:
            StudyError: The study has no step size for this rule.
        """
        training, adapter = self.study.training, self.study.adapter
        rate = self.step_size(rule) if rate is None else rate
        if rate is None and not self.whole_site:
            raise StudyError(
                f"study {self.study.name}",
                f"training.learning_rate.{rule.name}",
                "the noise depends on the step size, and the study has none for this "
                "method; --rate gives all methods one",
            )
        return Setting(
            shapes=tuple((module.d, module.k) for module in self.modules),
            rank=adapter.r,
            lora_alpha=adapter.lora_alpha,
            noise_multipliers=tuple(self.sigmas.values()),
            clip_norm=self.study.privacy.clip_norm,
            expected_batch=training.expected_batch,
            steps=training.steps_per_round,
            rounds=training.rounds,
            learning_rate=rate or 0.0,
            momentum=training.momentum,
            whole_site=self.whole_site,
            initial=self.initial,
            norm_b2=self.norm_b2,
            root_scaling=adapter.how.root_scaling,
        )


def noise_outlook(
    study: Study,
    base_dir: Path,
    *,
    rate: float | None = None,
    initial: InitialLaw = "peft",
    norm_b2: float = 0.0,
) -> NoiseOutlook:
    """Read the shapes from the model's header and calibrate every site's noise.

    Records are read only where the study's text is built in, public, and counted.

    Raises:
        StudyError: The steps of an optimizer, at the sites or at the coordinator,
            have no closed form.
        ModelError: The model is not here, or the study does not fit it.
        PlanError: A site is too small for the study.
    """
    from secfed.model_files import adapted_shapes, find_model  # noqa: PLC0415
    from secfed.privacy.asked import plan_for  # noqa: PLC0415

    if not study.adapter.how.is_product:
        raise StudyError(
            f"study {study.name}",
            "adapter.kind",
            f"{study.adapter.kind!r} is no product of factors, so that no rule "
            "amplifies its noise: it is that of the trained numbers",
        )
    if study.training.optimizer != "sgd" and study.privacy.unit != "site":
        raise StudyError(
            f"study {study.name}",
            "training.optimizer",
            f"{study.training.optimizer!r} scales every number by its own history, so "
            "its noise has no closed form; use 'sgd', or measure a run with --run",
        )
    if study.training.server_optimizer is not None:
        raise StudyError(
            f"study {study.name}",
            "training.server_optimizer",
            f"{study.training.server_optimizer!r} makes steps of its own of the mean, "
            "so the noise has no closed form; measure a run with --run alone",
        )
    modules = adapted_shapes(find_model(study.model, base_dir), study.adapter)
    sigmas = {
        site: plan_for(study, units).noise_multiplier
        for site, units in _nominal_units(study, base_dir).items()
    }
    return NoiseOutlook(study, modules, sigmas, rate, initial, norm_b2)


def _nominal_units(study: Study, base_dir: Path) -> Mapping[str, int]:
    declared = study.privacy.nominal_units
    if declared is not None:
        return {site: declared[site] for site in study.sites}
    from secfed.data import load_sites  # noqa: PLC0415

    return load_sites(study, base_dir).nominal_units
