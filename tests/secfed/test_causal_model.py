"""Causal language models: blocks, the cached prefix, gradients, and the release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from causal import LENGTH, TARGETS, config_of, make_model, make_tokenizer, texts
from small import randomised

from secfed.adapters import CausalModel, attach_adapter, initial_adapter
from secfed.errors import ModelError
from secfed.evaluation import count_tokens
from secfed.model_files import adapted_shapes
from secfed.models import (
    BaseModel,
    TokenFeatures,
    decoder_of,
    encode_blocks,
    load_causal_model,
)
from secfed.privacy.noise import simulation_stream
from secfed.release import save_release
from secfed.study.sections import AdapterSection, ModelSection, TrainingSection
from secfed.tokens import cut_blocks, load_tokenizer
from secfed.training import (
    CausalLoss,
    OpacusGradients,
    TokenRecords,
    preflight,
    train_without_privacy,
)
from secfed.training.selftest import check_independence
from secfed.types import LORA_A, LORA_B, MERGED, Adapter

FAMILIES = ("gpt2", "llama")


class Tiny:
    """A saved model, opened as a study opens it, with adapters on its upper layer."""

    def __init__(self, folder: Path, family: str) -> None:
        self.folder, self.family = folder, family
        self.section = ModelSection(
            path=folder.name, sha256=make_model(folder, family), max_length=LENGTH
        )
        self.adapter_section = AdapterSection(
            r=2, lora_alpha=4.0, target_modules=TARGETS[family], layers=1
        )
        self.base = load_causal_model(self.section, folder.parent)
        self.model = attach_adapter(self.base, self.adapter_section)
        self.start = initial_adapter(self.model, self.adapter_section)
        self.busy = randomised(self.start, 0.2)
        written = texts("tidal", 6, 5) + texts("alpine", 6, 5)
        blocks = cut_blocks(load_tokenizer(folder), written, LENGTH)
        self.blocks = [block.ids for block in blocks]
        self.features = encode_blocks(self.base, self.blocks, self.model.first_layer)

    def records(self) -> TokenRecords:
        count = len(self.blocks)
        numbers = np.arange(count)
        return TokenRecords(self.features, np.zeros(count, np.int64), numbers, count)

    def whole(self, adapter: Adapter, ids: tuple[int, ...]) -> torch.Tensor:
        """The complete PEFT model on one block, as anybody would call it."""
        self.model.write(adapter.tensors)
        with torch.inference_mode():
            return self.model.network(input_ids=torch.tensor([ids])).logits[0]


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tiny]:
    torch.set_num_threads(1)
    return Tiny(tmp_path_factory.mktemp(request.param) / "model", request.param)


# Blocks


def test_blocks_are_the_tokens_of_a_document_in_order_and_no_others() -> None:
    tokenizer = make_tokenizer()
    written = [*texts("tidal", 5, 9), "a"]
    blocks = list(cut_blocks(tokenizer, written, 7))
    for row, text in enumerate(written[:-1]):
        own = [block for block in blocks if block.row == row]
        ids = tokenizer.encode(text).ids
        kept = (
            ids if len(ids) % 7 != 1 else ids[:-1]
        )  # A single token predicts nothing.
        assert [token for block in own for token in block.ids] == kept
        assert all(len(block.ids) == 7 for block in own[:-1])
        assert (
            "".join(block.text for block in own) == text[: len(tokenizer.decode(kept))]
        )
    assert all(block.row < 5 for block in blocks)


def test_what_the_tokenizer_file_says_of_cutting_and_padding_is_not_obeyed(
    tmp_path: Path,
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = texts("alpine", 1, 3)[0]
    blocks = list(cut_blocks(load_tokenizer(tmp_path), [text], 1000))
    assert [len(block.ids) for block in blocks] == [
        len(make_tokenizer().encode(text).ids)
    ]


@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_a_folder_without_a_tokenizer_is_refused(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer"):
        load_tokenizer(tmp_path)


# The model


def test_cached_prefix_and_padding_are_exact(tiny: Tiny) -> None:
    assert tiny.model.first_layer == 1
    rows = np.argsort(tiny.features.lengths, kind="stable")[::-1][:6].copy()
    rows[-1] = int(np.argmin(tiny.features.lengths))  # a short one, padded
    tiny.model.write(tiny.busy.tensors)
    with torch.inference_mode():
        found = tiny.model(*tiny.features.batch(rows))
    for position, row in enumerate(rows):
        expected = tiny.whole(tiny.busy, tiny.blocks[row])
        length = len(tiny.blocks[row])
        np.testing.assert_allclose(found[position, :length], expected, atol=2e-5)
    # Control: another adapter gives other logits.
    other = tiny.whole(tiny.start, tiny.blocks[rows[0]])
    assert (other - tiny.whole(tiny.busy, tiny.blocks[rows[0]])).abs().max() > 1e-3


def test_gradients_are_those_of_single_blocks_and_blocks_are_independent(
    tiny: Tiny,
) -> None:
    tiny.model.write(tiny.busy.tensors)
    chosen = tiny.model.set_trainable(tuple(tiny.busy.tensors))
    preflight(tiny.model)
    loss, records = CausalLoss(), tiny.records()
    rows = np.array([0, len(tiny.blocks) - 1, int(np.argmin(tiny.features.lengths))])
    with OpacusGradients(tiny.model, chosen) as gradients:
        check_independence(gradients, loss, records)
        found = gradients(loss, records.batch(rows))
    for position, row in enumerate(rows):
        alone = loss(tiny.model, *records.batch(np.array([row]))).sum()
        expected = torch.autograd.grad(alone, list(chosen.values()))
        for one, whole in zip(expected, found, strict=True):
            torch.testing.assert_close(whole[position], one, rtol=1e-4, atol=1e-7)
    # A block of two tokens has no gradient in the queries: its first token, the only
    # one that predicts, sees itself alone.
    assert all(part[0].abs().max() > 0 for part in found)


def test_perplexity_of_an_untrained_adapter_is_that_of_the_base(tiny: Tiny) -> None:
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny.folder).eval()
    loss, right, tokens = 0.0, 0, 0
    for ids in tiny.blocks:
        block = torch.tensor([ids])
        with torch.inference_mode():
            logits = plain(input_ids=block).logits[0, :-1].double()
        likelihood = logits.log_softmax(1).gather(1, block[0, 1:, None])
        loss -= float(likelihood.sum())
        right += int((logits.argmax(1) == block[0, 1:]).sum())
        tokens += len(ids) - 1
    scores = count_tokens(tiny.model, tiny.start, tiny.features).scores()
    assert scores is not None
    assert scores.perplexity == pytest.approx(np.exp(loss / tokens), rel=1e-5)
    assert scores.token_accuracy == right / tokens
    busy = count_tokens(tiny.model, tiny.busy, tiny.features).scores()
    assert busy is not None
    assert busy.perplexity != pytest.approx(scores.perplexity, rel=1e-3)


def test_a_model_that_broke_has_a_large_finite_perplexity(tiny: Tiny) -> None:
    broken = tiny.busy.replaced(
        {n: np.full_like(v, 1e30) for n, v in tiny.busy.tensors.items()}
    )
    scores = count_tokens(tiny.model, broken, tiny.features).scores()
    assert scores is not None
    assert 1e100 < scores.perplexity < np.inf


def test_without_privacy_a_study_may_name_the_step_size(tiny: Tiny) -> None:
    settings = TrainingSection(
        method="ffa-lora",
        rounds=1,
        steps_per_round=1,
        expected_batch=8,
        learning_rate={"ffa-lora": 1.0},
    )
    records, moved = tiny.records(), {}
    trains = [name for name in tiny.start.tensors if name.endswith(LORA_B)]
    for rate in (None, 1e-4, 1e-2):
        stream = simulation_stream(1, "rates")
        update = train_without_privacy(
            tiny.model,
            tiny.start,
            trains,
            records,
            settings,
            records.num_units,
            stream,
            loss=CausalLoss(),
            learning_rate=rate,
        )
        moved[rate] = max(np.abs(value).max() for value in update.change.values())
    # Adam's first step is as long as its step size.
    expected = {None: 2e-3, 1e-4: 1e-4, 1e-2: 1e-2}
    assert moved == pytest.approx(expected, rel=1e-3)


def test_shapes_from_the_header_are_those_of_the_adapter(tiny: Tiny) -> None:
    shapes = adapted_shapes(tiny.folder, tiny.adapter_section)
    tensors = tiny.start.tensors
    assert len(shapes) == len(TARGETS[tiny.family])
    for shape, module in zip(shapes, tiny.start.modules(), strict=True):
        assert module.endswith(shape.name.partition(".")[2])
        assert tensors[module + LORA_A].shape == (2, shape.k)
        assert tensors[module + LORA_B].shape == (shape.d, 2)


def test_a_folded_change_is_the_product_it_came_from(tiny: Tiny) -> None:
    adapter = tiny.busy
    weights = tiny.model.base_weights()
    folded = {m + MERGED: adapter.delta(m).astype(np.float32) for m in weights}
    assert {m: v.shape for m, v in weights.items()} == {
        m: adapter.delta(m).shape for m in adapter.modules()
    }
    expected = tiny.whole(adapter, tiny.blocks[0])
    found = tiny.whole(tiny.start.with_tensors(folded), tiny.blocks[0])
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert (tiny.whole(tiny.start, tiny.blocks[0]) - expected).abs().max() > 1e-3
    for module, weight in tiny.model.base_weights().items():
        np.testing.assert_array_equal(weight, weights[module])


def test_there_is_no_head(tiny: Tiny) -> None:
    assert all(name.endswith((LORA_A, LORA_B)) for name in tiny.start.tensors)
    trainable = tiny.model.set_trainable(tuple(tiny.start.tensors))
    assert set(trainable) == set(tiny.start.tensors)


# Refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "opt"}, "'opt' is not supported"),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic"}},
            "longest",
        ),
    ],
)
def test_models_that_cannot_be_taken_apart_are_refused(
    changes: dict[str, object], words: str
) -> None:
    config = type("Config", (), changes)()
    with pytest.raises(ModelError, match=words):
        decoder_of(config)


def test_blocks_longer_than_the_positions_are_refused(tiny: Tiny) -> None:
    section = tiny.section.model_copy(update={"max_length": 33})
    with pytest.raises(ModelError, match="33 tokens, and the model has 32 positions"):
        load_causal_model(section, tiny.folder.parent)


def test_a_tokenizer_of_another_model_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match="do not belong together"):
        encode_blocks(tiny.base, [(1, 200)], 1)


def test_an_unknown_target_names_those_that_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    section = ModelSection(path="model", sha256=make_model(folder, "llama"))
    base = load_causal_model(
        section.model_copy(update={"max_length": LENGTH}), tmp_path
    )
    with pytest.raises(ModelError, match="target_modules"):
        attach_adapter(base, AdapterSection(r=2, lora_alpha=4.0))


# Known answers from configurations alone


def on_paper(config: object, **adapter: object) -> tuple[int, int]:
    """Trainable and all parameters, without a single number in memory."""
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config)
    network.requires_grad_(requires_grad=False)
    base = BaseModel(network, None, "", 64, torch.float32, decoder_of(config))
    with torch.device("meta"):
        model = attach_adapter(base, AdapterSection(lora_alpha=32.0, **adapter))
    trainable = sum(p.numel() for p in model.named().values())
    return trainable, sum(p.numel() for p in model.network.parameters())


def test_gpt2_small_has_the_published_numbers_of_parameters() -> None:
    counts = on_paper(transformers.GPT2Config(), r=32, target_modules=("c_attn",))
    assert counts == (1_179_648, 125_619_456)


def test_a_smollm2_of_135m_has_these_numbers_of_parameters() -> None:
    config = transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49_152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    trainable, total = on_paper(config, r=8, target_modules=("q_proj", "v_proj"))
    # r (in + out) of q_proj, 576 to 576, and of v_proj, 576 to 192, in 30 layers.
    assert trainable == 30 * 8 * ((576 + 576) + (576 + 192)) == 460_800
    assert total - trainable == 134_515_008


# The release

RELOAD = """
import json, sys
import numpy as np, peft, torch, transformers
adapter, model, blocks, out = sys.argv[1:]
assert not any(name.split(".")[0] == "secfed" for name in sys.modules)
base = transformers.AutoModelForCausalLM.from_pretrained(
    model, local_files_only=True, dtype=torch.float32
)
network = peft.PeftModel.from_pretrained(base, adapter).eval()
with torch.inference_mode():
    found = [
        network(input_ids=torch.tensor([ids])).logits[0].numpy()
        for ids in json.load(open(blocks))
    ]
np.savez(out, *found)
"""


@pytest.mark.slow
def test_release_loads_with_plain_peft_in_a_fresh_process(
    tiny: Tiny, tmp_path: Path
) -> None:
    save_release(tiny.model, tiny.busy, "tiny", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    assert config["task_type"] == "CAUSAL_LM"
    assert config["fan_in_fan_out"] is (tiny.family == "gpt2")
    chosen = tiny.blocks[:3]
    (tmp_path / "blocks.json").write_text(json.dumps(chosen))
    files = ("adapter", "blocks.json", "logits.npz")
    adapter, blocks, out = (str(tmp_path / name) for name in files)
    command = [sys.executable, "-W", "error::UserWarning", "-c", RELOAD]
    subprocess.run(
        [*command, adapter, str(tiny.folder), blocks, out],
        check=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
    )
    with np.load(out) as found:
        for name, ids in zip(found.files, chosen, strict=True):
            expected = tiny.whole(tiny.busy, ids)
            np.testing.assert_allclose(found[name], expected, atol=2e-5)


def test_the_classes_are_the_ones_for_texts(tiny: Tiny) -> None:
    assert isinstance(tiny.model, CausalModel)
    assert isinstance(tiny.features, TokenFeatures)
    assert "private" in repr(tiny.features)
    assert "private" in repr(tiny.records())
    assert config_of(tiny.family).model_type == tiny.family
