"""How much of local training is measured: the whole, or a quick look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["FULL", "QUICK", "Case", "Plan", "Shape", "Size"]

_METHODS: Final = {"fedavg": "LoRA", "ffa-lora": "FFA"}


@dataclass(frozen=True)
class Size:
    """How many records, and how they are drawn."""

    records: int
    batch: int  # expected, Poisson
    steps: int
    repetitions: int
    max_length: int = 32  # tokens, as in the shipped study


@dataclass(frozen=True)
class Shape:
    """A GPT-2 model with random weights."""

    hidden: int
    layers: int
    heads: int
    vocabulary: int


@dataclass(frozen=True)
class Case:
    """One model with one adapter."""

    model: Literal["encoder", "causal"]
    method: str
    layers: int  # adapted, from the top; 0 is all
    size: Size
    shape: Shape | None = None  # of a causal model

    @property
    def adapter(self) -> str:
        """For people: which factors are trained."""
        return _METHODS[self.method]

    @property
    def where(self) -> str:
        """For people: which layers carry the adapter."""
        return "all" if self.layers == 0 else f"upper {self.layers}"

    def __str__(self) -> str:
        return f"{self.model}, {self.adapter}, {self.where} layers"


@dataclass(frozen=True)
class Plan:
    """Sizes of every part of the benchmark."""

    time: tuple[Case, ...]
    memory: tuple[Case, ...]
    memory_systems: tuple[str, ...]
    gpu: Case
    checked_records: int  # in the batch on which gradients are compared


_ENCODER = Size(records=2048, batch=128, steps=4, repetitions=5)
_CAUSAL = Size(records=512, batch=64, steps=4, repetitions=3)
_SMALL = Shape(hidden=384, layers=8, heads=6, vocabulary=30_522)
_GPU = Case(
    model="causal",
    method="fedavg",
    layers=0,
    size=Size(records=512, batch=64, steps=2, repetitions=5, max_length=512),
    shape=Shape(hidden=2048, layers=18, heads=16, vocabulary=50_257),
)

FULL: Final = Plan(
    time=(
        *(
            Case("encoder", method, layers, _ENCODER)
            for layers in (0, 2)
            for method in ("fedavg", "ffa-lora")
        ),
        *(
            Case("causal", method, layers, _CAUSAL, _SMALL)
            for layers in (0, 4)
            for method in ("fedavg", "ffa-lora")
        ),
    ),
    memory=(
        Case("encoder", "fedavg", 0, _ENCODER),
        Case("causal", "ffa-lora", 4, _CAUSAL, _SMALL),
    ),
    memory_systems=("plain", "plain bf16", "Opacus", "secfed", "secfed, no privacy"),
    gpu=_GPU,
    checked_records=16,
)

_FEW = Size(records=96, batch=16, steps=2, repetitions=2)
_TINY = Shape(hidden=64, layers=2, heads=2, vocabulary=30_522)

QUICK: Final = Plan(
    time=(
        Case("encoder", "ffa-lora", 2, _FEW),
        Case("causal", "fedavg", 0, _FEW, _TINY),
    ),
    memory=(Case("causal", "fedavg", 1, _FEW, _TINY),),
    memory_systems=("plain", "secfed"),
    gpu=_GPU,
    checked_records=6,
)
