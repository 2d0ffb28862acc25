"""Every kind of adapter, from the study file to the release that plain PEFT loads."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from causal import (
    HIDDEN,
    LANGUAGES,
    LENGTH,
    SITES,
    VOCABULARY,
    causal_policy,
    causal_values,
    make_model,
    make_tokenizer,
    texts,
    write_texts,
)
from plain_peft import fresh_logits
from small import randomised, small_policy, study_values
from tiny import errors, flat

from secfed.adapters import (
    AdaptedModel,
    attach_adapter,
    file_name,
    initial_adapter,
    load_adapter,
)
from secfed.amplification import Setting
from secfed.cli.traffic import numbers_sent
from secfed.errors import ModelError, StudyError, TrainingError
from secfed.models import (
    WORDS,
    BaseModel,
    Features,
    encode_blocks,
    encode_prefix,
    load_base_model,
    load_causal_model,
)
from secfed.runtime.local import run_study
from secfed.runtime.progress import NoProgress
from secfed.strategies import STRATEGIES, strategy_of, trained_names
from secfed.study import METHODS, Study, load_study_dict
from secfed.study.grid import grid_cells
from secfed.study.kinds import KINDS, OF_ANY_KIND, REFUSED_KINDS
from secfed.training import CausalLoss, ClassificationLoss, OpacusGradients, preflight
from secfed.training.gradients import gradients_of
from secfed.types import Adapter
from secfed.verify import verify_run

DIGEST = "0" * 64
LENGTHS = (12, 5, 9, 12, 3)
COUNT = len(LENGTHS)
VIRTUAL = 3
END = "<|end|>"

TARGETS = {
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "bert": (["key", "value", "output.dense"], ["output.dense"]),
}


def keys_of(kind: str, family: str, layers: int = 1) -> dict[str, Any]:
    """A study's ``[adapter]`` for a kind."""
    targets, forward = TARGETS[family]
    found: dict[str, Any] = {"kind": kind}
    if KINDS[kind].has_rank:
        found |= {"r": 2, "lora_alpha": 4.0, "target_modules": targets}
    elif KINDS[kind].in_modules:
        found |= {"target_modules": targets, "feedforward_modules": forward}
    else:
        return found | {"target_modules": [], "virtual_tokens": VIRTUAL}
    return found | {"layers": layers}


def values_of(kind: str, family: str, digest: str = DIGEST) -> dict[str, Any]:
    values = causal_values("llama", digest)
    values["adapter"] = keys_of(kind, family)
    values["training"].update(method="fedavg", learning_rate={"fedavg": 0.5})
    if family == "bert":
        del values["task"]
        values["training"]["head_learning_rate"] = 0.5
    return values


def study_of(kind: str, family: str, digest: str = DIGEST) -> Study:
    return load_study_dict(values_of(kind, family, digest), f"{kind}-{family}")


def make_encoder(folder: Path) -> str:
    """A BERT with a tokenizer that pads and cuts."""
    torch.manual_seed(3)
    config = transformers.BertConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(), pad_token=END
    )
    made.save_pretrained(folder)
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def load(folder: Path, kind: str, family: str) -> tuple[Study, BaseModel, AdaptedModel]:
    if family == "bert":
        study = study_of(kind, family, make_encoder(folder / "model"))
        base = load_base_model(study.model, folder, len(LANGUAGES))
    else:
        study = study_of(kind, family, make_model(folder / "model", family))
        base = load_causal_model(study.model, folder)
    return study, base, attach_adapter(base, study.adapter)


def blocks() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, VOCABULARY, length).tolist() for length in LENGTHS]


def encoded(base: BaseModel, model: AdaptedModel) -> Features:
    if base.tokenizer is None:
        return encode_blocks(base, blocks(), model.first_layer)
    return encode_prefix(base, sentences(), model.first_layer)


def sentences() -> list[str]:
    whole = texts("tidal", COUNT, 9)
    return [
        " ".join(text.split()[: length // 2])
        for text, length in zip(whole, LENGTHS, strict=True)
    ]


def tokens_of(base: BaseModel) -> tuple[np.ndarray, np.ndarray]:
    ids = blocks()
    if base.tokenizer is not None:
        ids = base.tokenizer(sentences(), truncation=True, max_length=LENGTH)[
            "input_ids"
        ]
    longest = max(map(len, ids))
    padded = np.array([row + [0] * (longest - len(row)) for row in ids])
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    return padded, mask


def batch_of(features: Features, base: BaseModel, rows: np.ndarray) -> tuple[Any, ...]:
    states, mask = features.batch(rows)
    if base.tokenizer is None:
        return states, mask, features.targets(rows, -100)
    return states, mask, torch.as_tensor(rows % len(LANGUAGES))


def of_text(logits: np.ndarray, mask: np.ndarray, family: str) -> np.ndarray:
    """Logits that mean something: of real tokens, of an encoder their mean."""
    if family != "bert":
        return logits[mask == 1]
    wide = mask[:, :, None]
    return (logits * wide).sum(1) / wide.sum(1)


ALL = [
    (kind, family)
    for kind, family in itertools.product(KINDS, TARGETS)
    if (kind, family) != ("prefix", "bert")
]
on_all = pytest.mark.parametrize(("kind", "family"), ALL)


@on_all
def test_gradients_per_record_are_exact(kind: str, family: str, tmp_path: Path) -> None:
    study, base, model = load(tmp_path, kind, family)
    model.write(randomised(initial_adapter(model, study.adapter), 0.3).tensors)
    chosen = model.set_trainable(list(model.named()))
    features = encoded(base, model)
    loss = ClassificationLoss() if family == "bert" else CausalLoss()
    by_rules = KINDS[kind].by_rules
    preflight(model, by_rules=by_rules)
    everything = batch_of(features, base, np.arange(COUNT))
    with gradients_of(model, chosen, by_rules=by_rules) as gradients:
        found = flat(gradients(loss, everything))
    rows = []
    for row in range(COUNT):  # Alone, and without padding.
        one = loss(model, *batch_of(features, base, np.array([row]))).sum()
        parts = torch.autograd.grad(one, list(chosen.values()))
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    expected = torch.stack(rows)
    assert errors(found, expected).max() < 1e-4
    # Controls that must fail: a neighbour's gradient, and one per cent too much.
    assert errors(found.roll(1, dims=0), expected).min() > 0.1
    assert errors(1.01 * found, expected).min() > 9e-3
    # Nothing that is trained rests, or the comparison would say nothing of it.
    start = 0
    for name, parameter in chosen.items():
        own = expected[:, start : start + parameter.numel()]
        assert own.abs().max() > 1e-8, name
        start += parameter.numel()


@pytest.mark.parametrize("kind", [name for name, k in KINDS.items() if not k.by_rules])
def test_rules_for_layers_refuse_what_they_cannot_do(kind: str, tmp_path: Path) -> None:
    _, base, model = load(tmp_path, kind, "llama")
    chosen = model.set_trainable(list(model.named()))
    batch = batch_of(encoded(base, model), base, np.arange(COUNT))

    def train() -> None:
        preflight(model)
        with OpacusGradients(model, chosen) as gradients:
            gradients(CausalLoss(), batch)

    with pytest.raises(TrainingError, match=r"magnitude|raw parameters"):
        train()


@on_all
def test_cached_states_and_the_whole_model_agree(
    kind: str, family: str, tmp_path: Path
) -> None:
    study, base, model = load(tmp_path, kind, family)
    assert model.first_layer == (1 if KINDS[kind].in_modules else WORDS)
    start = initial_adapter(model, study.adapter)
    ids, mask = tokens_of(base)
    features = encoded(base, model)
    seen = []
    for adapter in (start, randomised(start, 0.3)):
        model.write(adapter.tensors)
        with torch.inference_mode():
            own = model(*features.batch(np.arange(COUNT))).numpy()
            whole = model.network(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
            ).logits.numpy()[:, -ids.shape[1] :]
        own = own if family == "bert" else own[mask == 1]
        np.testing.assert_allclose(own, of_text(whole, mask, family), atol=1e-4)
        seen.append(own)
    assert np.abs(seen[0] - seen[1]).max() > 1e-2


@on_all
def test_the_start_changes_nothing_where_a_kind_can_do_so(
    kind: str, family: str, tmp_path: Path
) -> None:
    study, base, model = load(tmp_path, kind, family)
    start = initial_adapter(model, study.adapter)
    again = initial_adapter(model, study.adapter)
    for name, value in start.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], value)
    model.write(randomised(start).tensors)
    moved = initial_adapter(model, study.adapter)  # Not what the model holds now.
    for name, value in start.tensors.items():
        np.testing.assert_array_equal(moved.tensors[name], value)
    if not KINDS[kind].in_modules or family == "bert":
        return  # Virtual tokens are seen; an encoder's head is zero.
    model.write(start.tensors)
    ids = torch.from_numpy(tokens_of(base)[0])
    with torch.inference_mode():
        adapted = model.network(input_ids=ids).logits
        with model.network.disable_adapter():
            plain = model.network(input_ids=ids).logits
    torch.testing.assert_close(adapted, plain, rtol=0, atol=1e-5)


@on_all
def test_files_have_the_names_that_peft_gives_them(
    kind: str, family: str, tmp_path: Path
) -> None:
    _, _, model = load(tmp_path, kind, family)
    inside = KINDS[kind].in_modules
    ours = {file_name(n, in_modules=inside): v.shape for n, v in model.read().items()}
    theirs = peft.get_peft_model_state_dict(model.network)
    assert ours == {name: tuple(value.shape) for name, value in theirs.items()}


@on_all
def test_a_private_study_from_its_file_to_plain_peft(
    kind: str, family: str, tmp_path: Path
) -> None:
    study, base, model = load(tmp_path, kind, family)
    write_texts(tmp_path)
    told = {"budget_dir": str(tmp_path / "budgets"), "allowed_methods": ("fedavg",)}
    policy = causal_policy(study).model_copy(update=told)
    run = tmp_path / "run"
    summary = run_study(study, tmp_path, run, policy, NoProgress())
    report = verify_run(run)
    assert report.passed, report.failures()
    assert [line["sums_equal"] for line in summary["rounds"][1:]] == [True, True]
    assert 0 < summary["epsilon_max"] <= study.privacy.epsilon
    # Everything that the adapter has was trained, clipped, noised and summed.
    start = initial_adapter(model, study.adapter)
    strategy = strategy_of(study)
    assert trained_names(strategy, start, 1) == tuple(start.tensors)
    size = sum(value.size for value in start.tensors.values())
    assert summary["trainable"] == size
    expected = size if KINDS[kind].in_modules else None
    assert numbers_sent(study, tmp_path) == expected
    measured = summary["rounds"][-1]["noise"]
    assert (measured is None) == (not KINDS[kind].is_product)
    # The last adapter, in this process and in a fresh one without secfed.
    last = load_adapter(run / "adapters" / "round-002.safetensors", start)
    for name, value in last.tensors.items():
        assert not np.array_equal(value, start.tensors[name]), name
    model.write(last.tensors)
    ids, mask = tokens_of(base)
    with torch.inference_mode():
        own = model(*encoded(base, model).batch(np.arange(COUNT))).numpy()
    own = own if family == "bert" else own[mask == 1]
    task = "TokenClassification" if family == "bert" else "CausalLM"
    folder = tmp_path / "model"
    fresh = fresh_logits(folder, run / "adapter", task, ids, mask, tmp_path)
    theirs = of_text(fresh, mask, family)
    np.testing.assert_allclose(theirs, own, atol=1e-4)
    model.write(start.tensors)
    with torch.inference_mode():
        before = model(*encoded(base, model).batch(np.arange(COUNT))).numpy()
    before = before if family == "bert" else before[mask == 1]
    # How far noise moves so small a model varies; rounding is far below it.
    assert np.abs(before - own).max() > 10 * np.abs(theirs - own).max()


# What a study may not say


def test_lora_is_the_default_and_writing_it_changes_no_digest() -> None:
    values = values_of("lora", "llama")
    written = load_study_dict(values, "written")
    del values["adapter"]["kind"]
    plain = load_study_dict(values, "plain")
    assert written.digest() == plain.digest()
    assert plain.adapter.kind == "lora"
    assert "kind" not in plain.canonical()["adapter"]
    digests = {study_of(kind, "llama").digest() for kind in KINDS}
    assert len(digests) == len(KINDS)


@on_all
def test_a_study_reads_back(kind: str, family: str) -> None:
    study = study_of(kind, family)
    again = load_study_dict(study.canonical(), "again")
    assert again == study
    assert again.digest() == study.digest()


@pytest.mark.parametrize(
    ("kind", "changes", "key"),
    [
        ("lora", {"r": 0}, "r"),
        ("lora", {"lora_alpha": 0.0}, "lora_alpha"),
        ("lora", {"virtual_tokens": 4}, "virtual_tokens"),
        ("lora", {"feedforward_modules": ["down_proj"]}, "feedforward_modules"),
        ("lora", {"kind": "rs-lora"}, "kind"),
        ("lora", {"kind": "bottleneck"}, "kind"),
        ("dora", {"ranks": {"north": 1}}, "ranks"),
        ("ia3", {"r": 2}, "r"),
        ("ia3", {"target_modules": []}, "target_modules"),
        ("ia3", {"feedforward_modules": ["up_proj"]}, "feedforward_modules"),
        ("prompt", {"virtual_tokens": 0}, "virtual_tokens"),
        ("prompt", {"layers": 1}, "layers"),
        ("prompt", {"target_modules": ["q_proj"]}, "target_modules"),
        ("prefix", {"lora_alpha": 2.0}, "lora_alpha"),
    ],
)
def test_keys_of_another_kind_are_refused(
    kind: str, changes: dict[str, Any], key: str
) -> None:
    values = values_of(kind, "llama")
    values["adapter"].update(changes)
    with pytest.raises(StudyError) as caught:
        load_study_dict(values, "study")
    assert caught.value.key == f"adapter.{key}"
    if changes.get("kind") in REFUSED_KINDS:
        assert REFUSED_KINDS["bottleneck"] in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_a_kind_whole_or_is_refused(kind: str, method: str) -> None:
    values = values_of(kind, "llama")
    if method == "head-only":
        values = values_of(kind, "bert")
    values["training"].update(method=method, learning_rate={method: 0.5})
    if KINDS[kind].is_product or method in OF_ANY_KIND:
        assert load_study_dict(values, "study").training.method == method
        return
    with pytest.raises(StudyError, match="products B @ A") as caught:
        load_study_dict(values, "study")
    assert caught.value.key == "training.method"
    values["training"].update(
        method="fedavg", learning_rate={"fedavg": 1.0, method: 1.0}
    )
    values["compare"] = {"methods": ["fedavg", method], "baselines": []}
    with pytest.raises(StudyError, match="products B @ A") as caught:
        load_study_dict(values, "study")
    assert caught.value.key == "compare.methods[2]"


def test_the_methods_of_any_kind_do_not_ask_what_a_tensor_is() -> None:
    odd = ("m.ia3", "m.magnitude", "virtual.tokens", "head.weight")
    for name in ("fedavg", "local"):
        assert all(STRATEGIES[name].trains(tensor, 1) for tensor in odd)
    trained = [t for t in odd if STRATEGIES["head-only"].trains(t, 1)]
    assert trained == ["head.weight"]
    # Control: a rule about factors would leave these out without a word.
    assert not any(STRATEGIES["ffa-lora"].trains(tensor, 1) for tensor in odd[:3])


@pytest.mark.parametrize("kind", [name for name, k in KINDS.items() if not k.by_rules])
def test_what_cannot_be_vectorised_has_no_quantised_base(kind: str) -> None:
    values = values_of(kind, "llama")
    values["model"]["quantisation"] = "nf4"
    with pytest.raises(StudyError, match="vectorised over records") as caught:
        load_study_dict(values, "study")
    assert caught.value.key == "model.quantisation"


def test_a_prefix_before_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'prefix' needs a causal language model"):
        load(tmp_path, "prefix", "bert")


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens_need_positions(kind: str, tmp_path: Path) -> None:
    study, _, _ = load(tmp_path, kind, "gpt2")
    section = study.adapter.model_copy(update={"virtual_tokens": 21})
    base = load_causal_model(study.model, tmp_path)
    with pytest.raises(ModelError, match="21 before texts of 12 tokens"):
        attach_adapter(base, section)
    attach_adapter(base, section.model_copy(update={"virtual_tokens": 20}))


# rsLoRA is another scaling and nothing else


def test_the_scaling_of_rslora() -> None:
    section = study_of("rslora", "llama").adapter
    assert section.scaling == pytest.approx(4.0 / math.sqrt(2))
    assert study_of("lora", "llama").adapter.scaling == 2.0
    numbers: dict[str, Any] = {
        "shapes": ((8, 8),),
        "rank": 4,
        "lora_alpha": 8.0,
        "noise_multipliers": (1.0,),
        "clip_norm": 1.0,
        "expected_batch": 8,
        "steps": 1,
        "rounds": 1,
        "learning_rate": 1.0,
    }
    assert Setting(**numbers).scaling == 2.0
    assert Setting(**numbers, root_scaling=True).scaling == 4.0


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_the_ranks_of_a_grid_keep_the_scaling(kind: str) -> None:
    values = study_values()
    values["adapter"]["kind"] = kind
    values["compare"] = {"methods": ["fedavg"], "ranks": [1, 4, 8]}
    study = load_study_dict(values, "grid")
    for cell in grid_cells(study):
        assert cell.study.adapter.scaling == pytest.approx(study.adapter.scaling)
        assert cell.study.adapter.kind == kind


def test_rslora_is_released_with_the_scaling_that_it_was_trained_with(
    tmp_path: Path,
) -> None:
    from secfed.release import save_release  # noqa: PLC0415

    study, _, model = load(tmp_path, "rslora", "llama")
    save_release(model, initial_adapter(model, study.adapter), "base", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_bytes())
    assert config["use_rslora"] is True
    assert (config["r"], config["lora_alpha"]) == (2, pytest.approx(4.0))
    assert Adapter({}, study.adapter.scaling).scaling != 2.0


def test_small_policy_is_about_known_sites() -> None:
    assert set(study_of("lora", "llama").sites) == set(SITES)
    assert "fedavg" in small_policy().allowed_methods
