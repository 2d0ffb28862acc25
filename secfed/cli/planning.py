"""``secfed plan``: what a study would cost every site, before anything is spent."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from secfed.cli.output import plain_table, print_json, show, tell
from secfed.cli.runs import find_policy
from secfed.errors import ModelError, PlanError, PolicyError

if TYPE_CHECKING:
    from secfed.policy import SitePolicy
    from secfed.study import Study

__all__ = ["SiteOutlook", "plan", "site_outlooks", "upload_bytes"]

_RING_BYTES: Final = 4
_UNKNOWN: Final = "UNKNOWN"


@dataclass(frozen=True)
class SiteOutlook:
    """What a study would cost one site; ``refusal`` is empty when it can run."""

    site: str
    nominal_units: int
    sampling_probability: float
    steps: int
    noise_multiplier: float | None
    epsilon_per_round: float | None
    epsilon_total: float | None
    refusal: str
    warning: str

    @property
    def verdict(self) -> str:
        """``can run``, ``too small`` or ``refused``."""
        if not self.refusal:
            return "can run"
        return "too small" if self.noise_multiplier is None else "refused"


def plan(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study.toml.")],
    site_policy: Annotated[
        Path | None,
        typer.Option(
            "--site-policy",
            metavar="FILE",
            help="The sites' policy; site.toml beside the study by default.",
        ),
    ] = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value.")
    ] = False,
) -> None:
    """Show noise, epsilon and traffic per site, and who is too small or refuses.

    Nothing is trained and nothing is spent. Exit code 4: a site refuses or is too
    small.

    Example: secfed plan examples/icd10_hospitals/study.toml
    """
    from secfed.study import load_study  # noqa: PLC0415

    loaded = load_study(study)
    policy = find_policy(study, site_policy)
    tell("reading the sites' data and calibrating the noise")
    base_dir = study.resolve().parent
    outlooks = tuple(site_outlooks(loaded, base_dir, policy))
    upload = upload_bytes(loaded, base_dir)
    if as_json:
        print_json(
            {
                "study_digest": loaded.digest(),
                "method": loaded.training.method,
                "rounds": loaded.training.rounds,
                "delta": loaded.privacy.delta,
                "upload_bytes_per_round": upload,
                "sites": [asdict(o) | {"verdict": o.verdict} for o in outlooks],
            }
        )
    else:
        _show(loaded, outlooks, upload)
    refused = [o for o in outlooks if o.refusal]
    if refused and as_json:
        raise typer.Exit(PolicyError.exit_code)
    if refused:
        raise PolicyError(
            f"the study cannot run: {', '.join(o.site for o in refused)} cannot take "
            "part. Change the study, leave the site out, or ask its operator"
        )


def site_outlooks(
    study: Study, base_dir: Path, policy: SitePolicy
) -> Iterator[SiteOutlook]:
    """Calibrate every site's plan and ask its policy.

    Raises:
        DataError: The records do not fit the study.
    """
    from secfed.data import load_sites  # noqa: PLC0415
    from secfed.policy import check  # noqa: PLC0415
    from secfed.privacy import accounting  # noqa: PLC0415
    from secfed.privacy.plan import calibrate  # noqa: PLC0415

    data = load_sites(study, base_dir)
    training, privacy = study.training, study.privacy
    for site in study.sites:
        units = data.nominal_units[site]
        noise = per_round = total = None
        reasons = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                calibrated = calibrate(
                    epsilon=privacy.epsilon,
                    delta=privacy.delta,
                    nominal_units=units,
                    expected_batch=training.expected_batch,
                    steps_per_round=training.steps_per_round,
                    rounds=training.rounds,
                    clip_norm=privacy.clip_norm,
                    unit=privacy.unit,
                    max_records_per_unit=privacy.max_records_per_unit,
                    clip_rule=privacy.clip_rule,
                    clip_gamma=privacy.clip_gamma,
                )
            except PlanError as error:
                reasons.append(str(error))
            else:
                noise, total = calibrated.noise_multiplier, calibrated.epsilon()
                event = calibrated.round_event()
                per_round = accounting.epsilon([event], privacy.delta)
        try:
            check(policy, study, data.sites[site].num_units)
        except PolicyError as error:
            reasons.append(str(error))
        yield SiteOutlook(
            site=site,
            nominal_units=units,
            sampling_probability=training.expected_batch / units,
            steps=training.rounds * training.steps_per_round,
            noise_multiplier=noise,
            epsilon_per_round=per_round,
            epsilon_total=total,
            refusal="; ".join(reasons),
            warning="; ".join(str(warning.message) for warning in caught),
        )


def upload_bytes(study: Study, base_dir: Path) -> int | None:
    """What one site's masked vector weighs in the first round, without headers.

    The sizes follow from the base model's configuration, whose weights are not
    read. None where the model is not here or its projections are not square.
    """
    from secfed.models import find_model  # noqa: PLC0415
    from secfed.strategies import get_strategy  # noqa: PLC0415
    from secfed.strategies.base import HEAD  # noqa: PLC0415
    from secfed.types import LORA_A, LORA_B  # noqa: PLC0415

    section, strategy = study.adapter, get_strategy(study.training.method)
    if not set(section.target_modules) <= {"query", "key", "value"}:
        return None
    try:
        text = (find_model(study.model, base_dir) / "config.json").read_bytes()
        config: Any = json.loads(text)
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    except (ModelError, OSError, ValueError, KeyError):
        return None
    labels = _num_labels(study)
    modules = len(section.target_modules) * (section.layers or layers)
    factors = sum(strategy.trains(f"module{end}", 1) for end in (LORA_A, LORA_B))
    head = labels * (hidden + 1) if strategy.trains(f"{HEAD}weight", 1) else 0
    return _RING_BYTES * (factors * modules * section.r * hidden + head)


def _num_labels(study: Study) -> int:
    if study.data.labels is not None:
        return len(study.data.labels)
    from secfed.data.icd10cm import load_icd10cm  # noqa: PLC0415

    return len(load_icd10cm().label_names)


def _show(study: Study, outlooks: tuple[SiteOutlook, ...], upload: int | None) -> None:
    from secfed.report.tables import round_up  # noqa: PLC0415

    columns = {
        "site": "left",
        "units (declared)": "right",
        "q": "right",
        "steps": "right",
        "sigma": "right",
        "epsilon, one round": "right",
        "epsilon, in total": "right",
        "verdict": "left",
    }
    rows = [
        [
            o.site,
            f"{o.nominal_units:,}",
            f"{o.sampling_probability:.4f}",
            str(o.steps),
            "-" if o.noise_multiplier is None else f"{o.noise_multiplier:.4f}",
            "-" if o.epsilon_per_round is None else round_up(o.epsilon_per_round),
            "-" if o.epsilon_total is None else round_up(o.epsilon_total),
            o.verdict,
        ]
        for o in outlooks
    ]
    title = (
        f"{study.study.title}: {study.training.method}, "
        f"{study.training.rounds} rounds, "
        f"delta {study.privacy.delta:g} per {study.privacy.unit}"
    )
    show(plain_table(title, columns, rows))
    size = _UNKNOWN if upload is None else f"{upload / 1e6:.3f} MB"
    show(f"Upload per site and round: {size}, plus keys, shares and signatures.")
    for outlook in outlooks:
        for kind, text in (("refused", outlook.refusal), ("warning", outlook.warning)):
            if text:
                show(Text(f"{outlook.site}, {kind}: {text}"))
