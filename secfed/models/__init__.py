"""Base models: found by path or package, checked by digest, loaded offline.

The only package that touches Transformers. A study names a model by a local path
or by an installed package that carries the weights; nothing is ever downloaded
(PITFALLS 30), only ``model.safetensors`` is read, and its SHA-256 must be the one
that the study pins.

``base`` holds what all models share and the states that are computed once, ``device``
where they are computed,
``encoder`` the classifiers, ``decoder`` the causal language models, ``quantisation``
frozen weights in few bits, ``teacher`` classifiers that teach and are not trained,
``conversion`` the one-time way from other formats.
"""

from secfed.model_files import find_model
from secfed.models.base import (
    WORDS,
    AnswerFeatures,
    Architecture,
    BaseModel,
    Features,
    TokenFeatures,
    answer_places,
    compute_dtype,
    padded_batches,
)
from secfed.models.decoder import (
    decoder_of,
    encode_answers,
    encode_blocks,
    load_causal_model,
)
from secfed.models.device import chosen_device, device_of, moved
from secfed.models.encoder import encode_prefix, load_base_model, run_layers
from secfed.models.quantisation import (
    PACKAGES,
    dense_weight,
    is_quantised,
    packed_digest,
)
from secfed.models.shapes import read_shapes, shapes_of
from secfed.models.teacher import TeacherBase, open_teacher

__all__ = [
    "PACKAGES",
    "WORDS",
    "AnswerFeatures",
    "Architecture",
    "BaseModel",
    "Features",
    "TeacherBase",
    "TokenFeatures",
    "answer_places",
    "chosen_device",
    "compute_dtype",
    "decoder_of",
    "dense_weight",
    "device_of",
    "encode_answers",
    "encode_blocks",
    "encode_prefix",
    "find_model",
    "is_quantised",
    "load_base_model",
    "load_causal_model",
    "moved",
    "open_teacher",
    "packed_digest",
    "padded_batches",
    "read_shapes",
    "run_layers",
    "shapes_of",
]
