"""The base model is the one that was pinned, and what is released is plain PEFT."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import EXAMPLE

from secfed.adapters import load_adapter, save_adapter
from secfed.data import StudyData
from secfed.errors import ModelError
from secfed.evaluation import predict, score_logits
from secfed.models import find_model, load_base_model, padded_batches
from secfed.release import plain_lora, save_release
from secfed.runtime.setup import Prepared
from secfed.study import Study
from secfed.study.sections import ModelSection
from secfed.training import ClassificationLoss, PrivateRecords
from secfed.training.gradients import OpacusGradients
from secfed.types import LORA_A, LORA_B, LORA_R, MERGED, Adapter

# Refusals; none of them loads a model.


def folder_with(path: Path, weights: bytes) -> ModelSection:
    path.mkdir()
    (path / "model.safetensors").write_bytes(weights)
    return ModelSection(path=path.name, sha256=hashlib.sha256(weights).hexdigest())


def test_another_digest_is_refused(tmp_path: Path) -> None:
    section = folder_with(tmp_path / "model", b"weights")
    pinned = section.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ModelError, match="the study pins 0000") as caught:
        load_base_model(pinned, tmp_path, 21)
    assert section.sha256 in str(caught.value)
    assert caught.value.exit_code == 2


def test_one_changed_byte_of_the_weights_is_refused(
    packages: None, study: Study, tmp_path: Path
) -> None:
    real = find_model(study.model, EXAMPLE)
    folder = tmp_path / "model"
    folder.mkdir()
    for path in real.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    section = ModelSection(path="model", sha256=study.model.sha256)
    with pytest.raises(ModelError, match="sha256"):
        load_base_model(section, tmp_path, 21)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere: no model\.safetensors"):
        find_model(ModelSection(path="nowhere", sha256="0" * 64), tmp_path)


def test_a_missing_package_is_refused(tmp_path: Path) -> None:
    section = ModelSection(package="no_such_package_of_weights", sha256="0" * 64)
    with pytest.raises(ModelError, match="not installed"):
        find_model(section, tmp_path)


def test_a_pickled_model_is_not_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    section = ModelSection(
        path="model", sha256=hashlib.sha256(b"\x80\x04N.").hexdigest()
    )
    with pytest.raises(ModelError, match="only safetensors"):
        load_base_model(section, tmp_path, 21)


@pytest.mark.parametrize("config", [None, b"{", b'{"model_type": "no-such-type"}'])
def test_a_folder_that_is_no_encoder_is_refused(
    config: bytes | None, tmp_path: Path
) -> None:
    section = folder_with(tmp_path / "model", b"weights")
    if config is not None:
        (tmp_path / "model" / "config.json").write_bytes(config)
    with pytest.raises(ModelError, match="not a usable encoder"):
        load_base_model(section, tmp_path, 21)


# The cached prefix


def whole_model(prepared: Prepared, texts: tuple[str, ...]) -> np.ndarray:
    """The complete PEFT model on raw texts, then the mean over tokens."""
    tokens = prepared.base.tokenizer(
        list(texts),
        truncation=True,
        max_length=prepared.base.max_length,
        padding=True,
        return_tensors="pt",
    )
    mask = tokens["attention_mask"][:, :, None].float()
    with torch.inference_mode():
        logits = prepared.model.network(**tokens).logits
        mean = (logits * mask).sum(1) / mask.sum(1)
    return mean.numpy()


def test_cached_prefix_is_exact(
    prepared: Prepared, data: StudyData, busy: Adapter
) -> None:
    found = predict(prepared.model, busy, prepared.holdout)[:40]
    expected = whole_model(prepared, data.holdout.texts[:40])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Controls: logits differ between texts, and with another adapter.
    assert np.abs(expected - np.roll(expected, 1, axis=0)).max() > 0.1
    start = predict(prepared.model, prepared.start, prepared.holdout)[:40]
    assert np.abs(start - expected).max() > 1e-2


def test_only_adapter_and_head_can_train(prepared: Prepared, busy: Adapter) -> None:
    chosen = prepared.model.set_trainable(tuple(busy.tensors))
    trainable = [p for p in prepared.model.network.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in chosen.values()}
    assert not any(
        p.requires_grad
        for p in prepared.model.network.parameters()
        if not any(p is own for own in chosen.values())
    )
    assert not prepared.model.set_trainable(())


def test_adapter_tensors_must_fit(prepared: Prepared, busy: Adapter) -> None:
    short = dict(list(busy.tensors.items())[1:])
    with pytest.raises(ModelError, match="do not fit"):
        prepared.model.write(short)
    name = "head.bias"
    with pytest.raises(ModelError, match=r"head\.bias: shape"):
        prepared.model.write({**busy.tensors, name: np.zeros(3, np.float32)})


def test_adapter_between_rounds_reads_back_exactly(
    busy: Adapter, tmp_path: Path
) -> None:
    path = tmp_path / "round.safetensors"
    save_adapter(busy, path)
    held = load_adapter(path, busy)
    assert list(held.tensors) == list(busy.tensors)
    assert held.scaling == busy.scaling
    for name, value in busy.tensors.items():
        assert held.tensors[name].tobytes() == value.tobytes()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="not a readable adapter"):
        load_adapter(path, busy)


def test_evaluate_agrees_with_counting(prepared: Prepared, busy: Adapter) -> None:
    logits = predict(prepared.model, busy, prepared.holdout)
    right = (logits.argmax(axis=1) == prepared.holdout_labels).mean()
    scores = score_logits(logits, prepared.holdout_labels)
    assert scores.accuracy == pytest.approx(right)
    assert 0 < scores.macro_f1 < 1


def test_padded_batches_cover_every_row_once_within_bounds() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 40, size=300)
    rows = rng.permutation(300)[:200]
    batches = list(padded_batches(lengths, rows, 128))
    assert sorted(np.concatenate(batches)) == sorted(rows)
    assert max(len(batch) * lengths[batch].max() for batch in batches) <= 128


# The release

RELOAD = """
import sys
import numpy as np, peft, torch, transformers
adapter, model, texts, out, labels, length = sys.argv[1:]
assert not any(name.split(".")[0] == "secfed" for name in sys.modules)
base = transformers.AutoModelForTokenClassification.from_pretrained(
    model, local_files_only=True, num_labels=int(labels), dtype=torch.float32
)
network = peft.PeftModel.from_pretrained(base, adapter).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
tokens = tokenizer(
    open(texts, encoding="utf-8").read().splitlines(),
    truncation=True, max_length=int(length), padding=True, return_tensors="pt",
)
mask = tokens["attention_mask"][:, :, None].float()
with torch.inference_mode():
    logits = (network(**tokens).logits * mask).sum(1) / mask.sum(1)
np.save(out, logits.numpy())
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", ["factors", "core", "folded"])
def test_release_loads_with_plain_peft_in_a_fresh_process(
    prepared: Prepared,
    data: StudyData,
    study: Study,
    busy: Adapter,
    tmp_path: Path,
    more: str,
) -> None:
    busy = extended(busy, more)
    folder = tmp_path / "adapter"
    save_release(prepared.model, busy, str(study.model.package), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = (folder / "adapter_config.json").read_text("utf-8")
    base = find_model(study.model, EXAMPLE)
    assert str(base.parent) not in config  # no local path is released
    texts = data.holdout.texts[:24]
    assert not any("\n" in text for text in texts)
    (tmp_path / "texts").write_text("\n".join(texts), "utf-8")
    arguments = [folder, base, tmp_path / "texts", tmp_path / "logits.npy"]
    subprocess.run(
        [
            sys.executable,
            "-c",
            RELOAD,
            *map(str, arguments),
            str(len(data.label_names)),
            str(study.model.max_length),
        ],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
        timeout=120,
    )
    expected = predict(prepared.model, busy, prepared.holdout)[:24]
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-4)


# Cores between the factors, and changes folded into the base.


def extended(adapter: Adapter, more: str) -> Adapter:
    """The adapter with a core, with folded changes of rank 20, or as it is."""
    rng = np.random.default_rng(3)
    added = {}
    for module in adapter.modules() if more != "factors" else ():
        d, r = adapter.tensors[module + LORA_B].shape
        k = adapter.tensors[module + LORA_A].shape[1]
        if more == "core":
            added[module + LORA_R] = rng.normal(size=(r, r)).astype(np.float32)
        else:
            low = rng.normal(size=(d, 20)) @ rng.normal(size=(20, k))
            added[module + MERGED] = (2e-3 * low).astype(np.float32)
    return adapter.with_tensors(added)


@pytest.mark.parametrize("more", ["core", "folded"])
def test_the_model_computes_with_the_change_that_the_adapter_states(
    prepared: Prepared, busy: Adapter, more: str
) -> None:
    adapter = extended(busy, more)
    plain = plain_lora(adapter)
    for module in adapter.modules():
        scale = np.abs(adapter.delta(module)).max()
        np.testing.assert_allclose(
            plain.delta(module), adapter.delta(module), atol=1e-5 * scale
        )
    bare = busy.replaced(
        {n: np.zeros_like(v) for n, v in busy.tensors.items() if n.endswith(LORA_B)}
    )
    # The same change, written into the frozen weights by hand.
    dense = bare.with_tensors(
        {m + MERGED: adapter.delta(m).astype(np.float32) for m in adapter.modules()}
    )
    got = predict(prepared.model, adapter, prepared.holdout)
    np.testing.assert_allclose(
        predict(prepared.model, dense, prepared.holdout), got, atol=2e-4
    )
    assert not np.allclose(predict(prepared.model, busy, prepared.holdout), got)


def test_what_was_added_is_taken_out_again(prepared: Prepared, busy: Adapter) -> None:
    prepared.model.write(busy.tensors)
    names = [name for name, _ in prepared.model.network.named_parameters()]
    before = prepared.model.base_weights()
    for more in ("folded", "core", "folded"):
        prepared.model.write(extended(busy, more).tensors)
    weights = prepared.model.base_weights()  # Those below what is folded in.
    assert all(np.array_equal(before[m], weights[m]) for m in before)
    prepared.model.write(busy.tensors)
    assert [n for n, _ in prepared.model.network.named_parameters()] == names
    after = prepared.model.base_weights()
    assert all(before[m].tobytes() == after[m].tobytes() for m in before)


def test_a_core_is_trained_privately_alone(
    prepared: Prepared, busy: Adapter, everybody: PrivateRecords
) -> None:
    adapter = extended(busy, "core")
    prepared.model.write(adapter.tensors)
    cores = [name for name in adapter.tensors if name.endswith(LORA_R)]
    chosen = prepared.model.set_trainable(cores)
    loss = ClassificationLoss()
    rows = np.arange(3)
    with OpacusGradients(prepared.model, chosen) as gradients:
        found = gradients(loss, everybody.batch(rows))
    for row in rows:
        prepared.model.zero_grad()
        alone = everybody.batch(rows[row : row + 1])
        loss(prepared.model, *alone).sum().backward()
        for parameter, each in zip(chosen.values(), found, strict=True):
            assert parameter.grad is not None
            scale = float(parameter.grad.abs().max())
            assert scale > 0
            torch.testing.assert_close(
                each[row], parameter.grad, atol=0.02 * scale, rtol=0.02
            )
            assert not torch.allclose(
                each[row], parameter.grad * 1.1, atol=0.02 * scale, rtol=0.02
            )
        prepared.model.zero_grad()


def test_folding_into_something_else_is_refused(
    prepared: Prepared, busy: Adapter
) -> None:
    module = busy.modules()[0]
    with pytest.raises(ModelError, match="nothing can be folded"):
        prepared.model.write(
            {**busy.tensors, "elsewhere.merged": np.ones((2, 2), np.float32)}
        )
    with pytest.raises(ModelError, match="shape"):
        prepared.model.write(
            {**busy.tensors, module + MERGED: np.ones((2, 2), np.float32)}
        )
    prepared.model.write(busy.tensors)
