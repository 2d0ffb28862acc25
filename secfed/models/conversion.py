"""The one-time way from a GGUF file to a folder that studies can pin.

GGUF files hold quantised weights. Transformers multiplies them out, once; what is
written is ``model.safetensors`` in one floating type, the configuration and the
tokenizer. The digest of the new weights is what a study names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Final, Literal

import torch

from secfed.errors import ModelError
from secfed.model_files import WEIGHTS
from secfed.models.base import offline_transformers
from secfed.models.decoder import decoder_of

__all__ = ["PACKAGE_PREFIX", "find_gguf", "import_gguf"]

PACKAGE_PREFIX: Final = "package:"
_SUFFIX: Final = ".gguf"
_MAGIC: Final = b"GGUF"
_ONE_FILE: Final = "1TB"


def find_gguf(source: str) -> Path:
    """The file that ``source`` names: a path, or ``package:`` and a name.

    Of a package the only GGUF file inside it; nothing is imported.

    Raises:
        ModelError: There is no such file, or it is none of this format.
    """
    path = Path(source)
    if source.startswith(PACKAGE_PREFIX):
        path = _in_package(source.removeprefix(PACKAGE_PREFIX))
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ModelError(f"{path}: not a GGUF file")
    return path


def _in_package(package: str) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the package {package!r} is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(folder.rglob(f"*{_SUFFIX}"))
    if len(found) != 1:
        raise ModelError(f"{folder}: {len(found)} {_SUFFIX} files there, not one")
    return found[0]


def import_gguf(source: Path, out: Path, dtype: Literal["bfloat16", "float32"]) -> str:
    """Write the model of a GGUF file into a new folder.

    Returns:
        The SHA-256 of the new ``model.safetensors``.

    Raises:
        ModelError: The folder exists, the package ``gguf`` is missing, or the file
            holds no causal language model that secfed knows.
    """
    if out.exists():
        raise ModelError(f"{out}: exists already; name a new folder")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            "reading GGUF files needs a package that is not installed: "
            "pip install --no-deps gguf"
        )
    transformers = offline_transformers()
    place, name = str(source.parent), source.name
    try:
        network = transformers.AutoModelForCausalLM.from_pretrained(
            place, gguf_file=name, local_files_only=True, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            place, gguf_file=name, local_files_only=True
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{source}: not a usable model: {error}") from error
    decoder_of(network.config)
    # The weights are plain now; a saved configuration must not say otherwise.
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.hf_quantizer = None
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".import-") as partial:
        folder = Path(partial) / out.name
        network.to(getattr(torch, dtype)).save_pretrained(
            folder, max_shard_size=_ONE_FILE
        )
        tokenizer.save_pretrained(folder)
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        folder.replace(out)
    return digest
