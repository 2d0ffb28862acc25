"""What a user of a release does: plain Transformers and PEFT, in a process of its own.

    python plain_peft.py MODEL ADAPTER TASK QUANTISATION INPUT OUTPUT

INPUT is a .npz with ``ids`` and ``mask``; OUTPUT a .npy with the logits of the tokens.
Imports nothing of secfed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np


def settings(quantisation: str) -> dict[str, Any]:
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    if quantisation == "nf4":
        found = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
        )
        return {"quantization_config": found}
    if quantisation == "int8":
        from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415

        return {
            "quantization_config": transformers.TorchAoConfig(Int8WeightOnlyConfig())
        }
    return {}


def main(argv: list[str]) -> None:
    import peft  # noqa: PLC0415
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    model, adapter, task, quantisation, source, target = argv
    config = peft.PeftConfig.from_pretrained(adapter)
    kind = getattr(transformers, f"AutoModelFor{task}")
    more = {"num_labels": heads(adapter)} if task == "TokenClassification" else {}
    base = kind.from_pretrained(
        model, dtype=torch.float32, **more, **settings(quantisation)
    )
    network = peft.PeftModel.from_pretrained(base, adapter, config=config).eval()
    for module in network.modules():
        # Else bitsandbytes multiplies in bfloat16 where the processor can.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    held = np.load(source)
    ids, mask = torch.from_numpy(held["ids"]), torch.from_numpy(held["mask"])
    with torch.inference_mode():
        logits = network(input_ids=ids, attention_mask=mask).logits
    np.save(target, logits[:, logits.shape[1] - ids.shape[1] :].numpy())


def heads(adapter: str) -> int:
    from safetensors.numpy import load_file  # noqa: PLC0415

    held = load_file(Path(adapter) / "adapter_model.safetensors")
    return next(len(v) for name, v in held.items() if name.endswith("classifier.bias"))


def fresh_logits(
    model: Path,
    adapter: Path,
    task: str,
    ids: np.ndarray,
    mask: np.ndarray,
    work: Path,
    quantisation: str = "none",
) -> np.ndarray:
    """The logits of real tokens' places (n, tokens, classes or words)."""
    source, target = work / "in.npz", work / "out.npy"
    np.savez(source, ids=ids, mask=mask)
    subprocess.run(
        [
            sys.executable,
            __file__,
            *map(str, (model, adapter, task, quantisation, source, target)),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return np.load(target)


if __name__ == "__main__":
    main(sys.argv[1:])
