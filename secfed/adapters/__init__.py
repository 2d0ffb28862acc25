"""Adapters of every kind: the only package that touches PEFT.

``names`` holds the one mapping between PEFT's parameters and the named arrays of
:class:`secfed.types.Adapter`, strict in both directions (PITFALLS 34); ``model`` what
is trained, ``attach`` how a base gets its adapter and the public start of it, ``files``
the adapter between rounds, ``narrowing`` a site that trains at a smaller rank,
``teacher`` a frozen adapted model that teaches, ``pair`` one that learns beside the
student.
"""

from secfed.adapters.attach import (
    attach_adapter,
    count_parameters,
    head_from_names,
    initial_adapter,
)
from secfed.adapters.files import adapter_from_bytes, load_adapter, save_adapter
from secfed.adapters.model import AdaptedModel, CausalModel, SequenceClassifier
from secfed.adapters.names import file_name
from secfed.adapters.narrowing import narrowed
from secfed.adapters.pair import MENTOR, ModelPair, marked, parted
from secfed.adapters.teacher import AdapterFiles, Teacher, load_teacher

__all__ = [
    "MENTOR",
    "AdaptedModel",
    "AdapterFiles",
    "CausalModel",
    "ModelPair",
    "SequenceClassifier",
    "Teacher",
    "adapter_from_bytes",
    "attach_adapter",
    "count_parameters",
    "file_name",
    "head_from_names",
    "initial_adapter",
    "load_adapter",
    "load_teacher",
    "marked",
    "narrowed",
    "parted",
    "save_adapter",
]
