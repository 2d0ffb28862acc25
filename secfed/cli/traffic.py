"""What one site sends in a round, from public numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secfed.errors import CodecError, ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from secfed.cli.outlook import SiteOutlook
    from secfed.model_files import ModuleShape
    from secfed.privacy.plan import PrivacyPlan
    from secfed.study import Study
    from secfed.study.sections import AdapterSection
    from secfed.types import Adapter

_NARROW_BYTES, _WIDE_BYTES = 2, 4

__all__ = [
    "numbers_sent",
    "parameter_counts",
    "round_sizes",
    "upload_bytes",
    "vector_bytes",
]


def numbers_sent(study: Study, base_dir: Path) -> int | None:
    """How many numbers one site sends in the first round.

    The sizes are read from the header of the base model's weights; None where the
    model is not here or has no layers that the study names.
    """
    from secfed.strategies import strategy_of  # noqa: PLC0415

    adapter = _public_shapes(study, base_dir)
    if adapter is None:
        return None
    shapes = strategy_of(study).shapes(adapter, 1)
    return sum(map(math.prod, shapes.values()))


def upload_bytes(
    study: Study, base_dir: Path, outlooks: Sequence[SiteOutlook]
) -> int | None:
    """What one site's masked vector weighs in the first round, without headers.

    The ring's width follows from every site's plan; None where one has none.
    """
    plans = {o.site: o.plan for o in outlooks if o.plan is not None}
    return None if len(plans) < len(outlooks) else vector_bytes(study, base_dir, plans)


def vector_bytes(
    study: Study, base_dir: Path, plans: Mapping[str, PrivacyPlan]
) -> int | None:
    """As ``upload_bytes``, from every site's plan."""
    from secfed.runtime.encoding import codec_for  # noqa: PLC0415
    from secfed.strategies import strategy_of  # noqa: PLC0415

    adapter = _public_shapes(study, base_dir)
    if adapter is None:
        return None
    if strategy_of(study).needs == "nothing":
        return 0
    try:
        codec = codec_for(study, plans, adapter, 1, private=True)
    except CodecError:
        return None
    return codec.length * codec.ring_bits // 8


def parameter_counts(study: Study, base_dir: Path) -> tuple[int, int] | None:
    """Numbers that the adapters and the head have, and those of the whole model.

    From the model's configuration, without its weights; None where that is not here.
    A rule may train a part of them: see ``secfed methods``.
    """
    from secfed.adapters import count_parameters  # noqa: PLC0415
    from secfed.model_files import find_model  # noqa: PLC0415
    from secfed.models import read_shapes  # noqa: PLC0415

    causal = study.is_causal_lm
    try:
        folder = find_model(study.model, base_dir)
        base = read_shapes(
            folder,
            "CAUSAL_LM" if causal else "TOKEN_CLS",
            1 if causal else _num_labels(study),
        )
        return count_parameters(base, study.adapter)
    except ModelError:
        return None


def round_sizes(study: Study, base_dir: Path, method: str) -> dict[str, int] | None:
    """What one site sends and gets in the first round of another method.

    Returns:
        ``numbers_up``, ``bytes_up`` and ``bytes_down``; None where the method cannot be
        masked or the model is not here.
    """
    from secfed.strategies import strategy_of  # noqa: PLC0415

    training = study.training.model_copy(update={"method": method})
    own = study.model_copy(update={"training": training})
    strategy = strategy_of(own)
    adapter = None if strategy.refusal else _public_shapes(own, base_dir)
    if adapter is None:
        return None
    numbers = sum(map(math.prod, strategy.shapes(adapter, 1).values()))
    narrow = strategy.linear and strategy.plain_steps
    width = _NARROW_BYTES if narrow else _WIDE_BYTES
    down = sum(value.nbytes for value in adapter.tensors.values())
    return {
        "numbers_up": numbers,
        "bytes_up": width * numbers,
        "bytes_down": down if numbers else 0,
    }


def _public_shapes(study: Study, base_dir: Path) -> Adapter | None:
    """The adapter before round 1 as zeros, in the model's shapes."""
    import numpy as np  # noqa: PLC0415

    from secfed.model_files import adapted_shapes, find_model  # noqa: PLC0415
    from secfed.strategies import strategy_of  # noqa: PLC0415
    from secfed.types import Adapter  # noqa: PLC0415

    if not study.adapter.how.in_modules:
        return None
    try:
        modules = adapted_shapes(find_model(study.model, base_dir), study.adapter)
    except ModelError:
        return None
    tensors: dict[str, NDArray[np.float32]] = {}
    for module in modules:
        for name, shape in _tensors_of(module, study.adapter).items():
            tensors[name] = np.zeros(shape, np.float32)
    if not study.is_causal_lm:
        labels = _num_labels(study)
        hidden = modules[-1].d
        tensors["head.bias"] = np.zeros(labels, np.float32)
        tensors["head.weight"] = np.zeros((labels, hidden), np.float32)
    adapter = Adapter(tensors=tensors, scaling=study.adapter.scaling)
    base = {m.name: np.zeros((m.d, m.k), np.float32) for m in modules}
    return strategy_of(study).init(adapter, 0, base).adapter


def _tensors_of(
    module: ModuleShape, section: AdapterSection
) -> dict[str, tuple[int, ...]]:
    """What the adapter has in one module."""
    from secfed.types import IA3, LORA_A, LORA_B, MAGNITUDE  # noqa: PLC0415

    name, r = module.name, section.r
    if not section.how.has_rank:
        ends = tuple(f".{end}" for end in section.feedforward_modules)
        inner = bool(ends) and f".{name}".endswith(ends)
        return {name + IA3: (1, module.k) if inner else (module.d, 1)}
    lengths = {} if section.how.is_product else {name + MAGNITUDE: (module.d,)}
    return {name + LORA_A: (r, module.k), name + LORA_B: (module.d, r), **lengths}


def _num_labels(study: Study) -> int:
    if study.data.labels is not None:
        return len(study.data.labels)
    from secfed.data.icd10cm import load_icd10cm  # noqa: PLC0415

    return len(load_icd10cm().label_names)
