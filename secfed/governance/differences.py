"""What changed between two versions of a study, key by key, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from secfed.governance.records import printable
from secfed.governance.study_manifest import StudyManifest

__all__ = ["differences"]

_WORDS: Final[Mapping[str, str]] = {
    "study.title": "the title",
    "study.recipients": "who else gets the release",
    "study.expires": "the last day of the study",
    "data.source": "where records come from",
    "data.text_column": "the column with the text",
    "data.text_pair_column": "the column with the second text",
    "data.label_column": "the column with the label",
    "data.labels": "the labels",
    "data.unit_column": "the column that says whose record it is",
    "data.partition.sites": "the sites that take part",
    "model.path": "the folder of the base model",
    "model.package": "the package of the base model",
    "model.sha256": "the base model's weights",
    "model.quantisation": "how the base model's weights are kept",
    "adapter.r": "the adapter's rank, and so how much is sent",
    "adapter.layers": "how many layers are adapted, and so how much is sent",
    "adapter.target_modules": "the modules that are adapted",
    "training.method": "the aggregation method",
    "training.rounds": "the number of rounds",
    "training.steps_per_round": "the private steps in a round",
    "training.expected_batch": "how many people a step is expected to draw",
    "privacy.epsilon": "epsilon of this study",
    "privacy.delta": "delta",
    "privacy.unit": "what is protected",
    "privacy.max_records_per_unit": "records that one person contributes at most",
    "privacy.clip_norm": "the length that one unit's gradient is cut to",
    "evaluation.metrics": "the scores that leave, of records held back",
    "evaluation.rounds": "after which rounds scores leave",
    "evaluation.noise_multiplier": "the noise of the scores",
    "secagg.mode": "what the coordinator is trusted with",
    "secagg.colluders": "sites that may collude with the coordinator",
    "secagg.threshold": "sites that must survive a round",
    "secagg.suite": "the cryptography of the secure sum",
    "simulation.seed": "the public seed (it makes a run NOT PRIVATE)",
    "coordinator": "the coordinator's key",
}

# Towards less protection, where that has a direction: 1 upwards, -1 downwards.
_WEAKER: Final[Mapping[str, int]] = {
    "privacy.epsilon": 1,
    "privacy.delta": 1,
    "evaluation.noise_multiplier": -1,
    "secagg.colluders": -1,
}
_MOST: Final = 120


def differences(old: StudyManifest, new: StudyManifest) -> tuple[str, ...]:
    """One line for each key whose value changed, was added or was taken away."""
    before, after = _flat(old.canonical()), _flat(new.canonical())
    keys = sorted(before.keys() | after.keys(), key=_rank)
    return tuple(
        printable(_line(key, before.get(key), after.get(key)))
        for key in keys
        if before.get(key) != after.get(key)
    )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys; the study's own tables lose their first word."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{k}": v for k, v in _flat(value).items()}
        else:
            found[key] = value
    return {
        key.removeprefix("study.") if key.count(".") > 1 else key: value
        for key, value in found.items()
    }


def _rank(key: str) -> tuple[int, str]:
    # What decides about privacy comes first.
    first = ("privacy", "evaluation", "secagg", "study", "identities", "coordinator")
    head = key.partition(".")[0]
    return (first.index(head) if head in first else len(first), key)


def _line(key: str, before: Any, after: Any) -> str:
    words = _WORDS.get(key)
    if key.startswith("identities."):
        words = f"the key of {key.removeprefix('identities.')}"
    name = f"{words} ({key})" if words else key
    said = f"{name}: {_shown(before)} -> {_shown(after)}"
    direction = _WEAKER.get(key)
    if direction is None or before is None or after is None:
        return said
    weaker = (after - before) * direction > 0
    return f"{said}, {'LESS' if weaker else 'more'} protection"


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, float):
        return f"{value:g}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."
