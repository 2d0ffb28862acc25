"""A site's profile: what its machine has, and how long training steps took on it.

It holds nothing of any record: tokens were made up. It does say what machine a site
has, so its operator decides who gets it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from secfed import canonical
from secfed.errors import ProfileError, StudyError
from secfed.study import Study
from secfed.study.fields import Count, NotNegative, Sha256, SiteName
from secfed.study.reading import Table, checked

__all__ = ["SiteProfile", "Timing", "read_profile", "workload_digest"]


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class Timing(Table):
    """Steps of one choice, timed on full-length records.

    A round of s steps, with b records each, takes
    ``overhead_seconds + s * (step_seconds + b * record_seconds)``.

    Attributes:
        quantisation: How the frozen weights were kept.
        max_length: Tokens of every record.
        rank: Of the factors; 0 where the kind of adapter has none.
        micro_batch_tokens: Tokens that were computed at once.
        overhead_seconds: Self-checks and set-up, once in a round.
        step_seconds: A step without records: noise and optimizer.
        record_seconds: One more record in a step.
        peak_bytes: Most memory of the whole process, besides an accelerator's.
        steps: How many steps were timed.
    """

    quantisation: Literal["none", "nf4", "int8"]
    max_length: Count
    rank: Annotated[int, Field(ge=0)]
    micro_batch_tokens: Count
    overhead_seconds: NotNegative
    step_seconds: NotNegative
    record_seconds: NotNegative
    peak_bytes: Count
    steps: Count

    def round_seconds(self, steps: int, records: float) -> float:
        """How long a round of so many steps of so many records takes."""
        each = self.step_seconds + records * self.record_seconds
        return self.overhead_seconds + steps * each


class SiteProfile(Table):
    """What a site's machine can do for one kind of work.

    Attributes:
        format: Of this file.
        site: The site's name in the study.
        workload: What was trained, as ``workload_digest`` says.
        memory_bytes: What the training process can have, besides an accelerator's.
        cores: That the process may run on.
        threads: That PyTorch used.
        gpu: Name of the accelerator; None where there is none. Studies train on the
            processor, so no timing is of it.
        timings: One for each choice that was measured.
    """

    format: Literal[1]
    site: SiteName
    workload: Sha256
    memory_bytes: Count
    cores: Count
    threads: Count
    gpu: Annotated[str, Field(max_length=100)] | None = None
    timings: Annotated[
        tuple[Timing, ...], BeforeValidator(_as_tuple), Field(min_length=1)
    ]

    def to_bytes(self) -> bytes:
        """The text of its file."""
        values = self.model_dump(mode="json", exclude_none=True)
        return json.dumps(values, indent=1).encode() + b"\n"


def read_profile(path: Path) -> SiteProfile:
    """Read and check a site's profile.

    Raises:
        ProfileError: It is missing or malformed.
    """
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ProfileError(f"{path}: not a profile")
        return checked(SiteProfile, values, path)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path}: not JSON: {error}") from error
    except StudyError as error:
        raise ProfileError(str(error)) from error


def workload_digest(study: Study) -> str:
    """What timings depend on, besides what an assignment chooses.

    The rank, the length, the bits of the base and the number of steps are not in it.
    """
    adapter = study.adapter.model_dump(mode="json")
    for chosen in ("r", "lora_alpha", "ranks", "seed", "head_init"):
        adapter.pop(chosen, None)
    return canonical.digest(
        {
            "model": study.model.sha256,
            "dtype": study.model.dtype,
            "adapter": adapter,
            "task": None if study.task is None else study.task.kind,
            "labels": list(study.data.labels or [study.data.source]),
            "method": study.training.method,
            "optimizer": study.training.optimizer,
            "clip_rule": study.privacy.clip_rule,
            "whole_site": study.privacy.unit == "site",
        }
    )
