"""A base in few bits: exact gradients, one function everywhere, bound to the study."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from causal import (
    LENGTH,
    VOCABULARY,
    causal_policy,
    causal_study,
    make_model,
    write_texts,
)
from plain_peft import fresh_logits
from small import EXAMPLE, randomised, small_policy, study_values
from tiny import errors, flat
from torch import nn

from secfed.adapters import AdaptedModel, attach_adapter, initial_adapter, load_adapter
from secfed.errors import ModelError, PolicyError, StudyError
from secfed.models import (
    BaseModel,
    TokenFeatures,
    dense_weight,
    encode_blocks,
    load_causal_model,
    packed_digest,
)
from secfed.policy import check as check_policy
from secfed.runtime.local import run_study
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import prepare
from secfed.study import Study, load_study_dict
from secfed.training import CausalLoss, OpacusGradients, preflight
from secfed.verify import verify_run

PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}
COUNT = 5


def installed(quantisation: str) -> Any:
    missing = importlib.util.find_spec(PACKAGES[quantisation]) is None
    return pytest.mark.skipif(missing, reason=f"{PACKAGES[quantisation]} is not there")


CASES = [
    pytest.param("llama", "nf4", marks=installed("nf4")),
    pytest.param("gpt2", "nf4", marks=installed("nf4")),
    pytest.param("llama", "int8", marks=installed("int8")),
]
on_both = pytest.mark.parametrize(("family", "quantisation"), CASES)


def load(
    folder: Path, family: str, quantisation: str | None
) -> tuple[Study, BaseModel]:
    folder.mkdir(exist_ok=True)
    digest = make_model(folder / "model", family)
    study = causal_study(family, digest, model__quantisation=quantisation)
    return study, load_causal_model(study.model, folder)


def adapted(folder: Path, family: str, quantisation: str | None) -> AdaptedModel:
    study, base = load(folder, family, quantisation)
    model = attach_adapter(base, study.adapter)
    model.write(randomised(initial_adapter(model, study.adapter), 0.3).tensors)
    model.set_trainable(list(model.named()))
    return model


def blocks() -> list[list[int]]:
    return np.random.default_rng(0).integers(0, VOCABULARY, (COUNT, LENGTH)).tolist()


def encoded(folder: Path, family: str, quantisation: str | None) -> TokenFeatures:
    study, base = load(folder, family, quantisation)
    first = len(base.layers) - study.adapter.layers
    return encode_blocks(base, blocks(), first)


def plain_copy(model: nn.Module) -> None:
    """Every packed weight in its place as an ordinary frozen matrix."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and not child.weight.requires_grad:
                dense = dense_weight(child).detach().clone()
                made = nn.Linear(
                    child.in_features, child.out_features, child.bias is not None
                )
                made.weight = nn.Parameter(dense, requires_grad=False)
                if child.bias is not None:
                    made.bias = nn.Parameter(
                        child.bias.detach().float(), requires_grad=False
                    )
                setattr(module, name, made)


def one_at_a_time(model: AdaptedModel, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    rows = []
    for row in range(COUNT):
        loss = CausalLoss()(model, *(part[row : row + 1] for part in batch)).sum()
        found = torch.autograd.grad(loss, list(model.named().values()))
        rows.append(torch.cat([part.reshape(-1) for part in found]))
    return torch.stack(rows)


@on_both
def test_gradients_per_record_are_those_of_the_multiplied_out_base(
    family: str, quantisation: str, tmp_path: Path
) -> None:
    features = encoded(tmp_path / "a", family, quantisation)
    rows = np.arange(COUNT)
    batch = (*features.batch(rows), features.targets(rows, -100))
    model = adapted(tmp_path / "a", family, quantisation)
    preflight(model)
    with OpacusGradients(model, model.named()) as gradients:
        found = flat(gradients(CausalLoss(), batch))
    preflight(model)  # Nothing changed its type on the way.
    dense = adapted(tmp_path / "a", family, quantisation)
    plain_copy(dense)
    plain_copy(dense.network)
    expected = one_at_a_time(dense, batch)
    assert expected.norm(dim=1).min() > 1e-3
    assert errors(found, expected).max() < 1e-4
    # Controls that must fail: a neighbour's, one per cent too much, and the gradient
    # through the weights before they were rounded.
    assert errors(found.roll(1, dims=0), expected).min() > 0.1
    assert errors(1.01 * found, expected).min() > 9e-3
    unrounded = one_at_a_time(adapted(tmp_path / "a", family, None), batch)
    assert errors(found, unrounded).min() > 1e-3


@on_both
def test_the_cached_prefix_goes_through_the_rounded_weights(
    family: str, quantisation: str, tmp_path: Path
) -> None:
    features = encoded(tmp_path / "a", family, quantisation)
    model = adapted(tmp_path / "a", family, quantisation)
    with torch.inference_mode():
        cached = model(*features.batch(np.arange(COUNT)))
        whole = model.network(input_ids=torch.tensor(blocks())).logits
    torch.testing.assert_close(cached, whole, rtol=0, atol=1e-5)
    other = encoded(tmp_path / "a", family, None)
    assert errors(other.states, features.states).max() > 1e-4


@on_both
def test_training_and_evaluation_see_one_function_and_write_nothing(
    family: str, quantisation: str, tmp_path: Path
) -> None:
    _, base = load(tmp_path, family, quantisation)
    before = {name: bits(p) for name, p in base.network.named_parameters()}
    ids = torch.tensor(blocks())
    with torch.inference_mode():
        resting = base.network.eval()(input_ids=ids).logits
    trained = base.network.train()(input_ids=ids).logits
    torch.testing.assert_close(resting, trained.detach(), rtol=0, atol=0)
    after = {name: bits(p) for name, p in base.network.named_parameters()}
    assert before == after


def bits(parameter: torch.Tensor) -> tuple[torch.dtype, bytes]:
    held = getattr(parameter, "qdata", parameter).detach().contiguous()
    return held.dtype, held.numpy().tobytes()


@on_both
def test_two_sites_round_to_the_same_weights(
    family: str, quantisation: str, tmp_path: Path
) -> None:
    digests = set()
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        digests.add(packed_digest(load(tmp_path, family, quantisation)[1].layers))
    torch.set_num_threads(1)
    assert len(digests) == 1
    # Another model has another digest.
    _, base = load(tmp_path, family, quantisation)
    short = nn.ModuleList(list(base.layers)[:1])
    assert packed_digest(short) not in digests
    # Rules that look at the frozen weights see the rounded ones, upright.
    study, base = load(tmp_path, family, quantisation)
    weights = attach_adapter(base, study.adapter).base_weights()
    _, plain = load(tmp_path, family, None)
    for module, value in attach_adapter(plain, study.adapter).base_weights().items():
        assert weights[module].shape == value.shape
        gap = np.linalg.norm(weights[module] - value) / np.linalg.norm(value)
        assert 0 < gap < 0.5  # Turned over it would be about 1.4.


@installed("int8")
def test_a_library_that_leaves_a_matrix_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"leaves 0\.attn\.c_attn \(Conv1D\) as it is"):
        load(tmp_path, "gpt2", "int8")


@pytest.mark.parametrize("quantisation", PACKAGES)
def test_a_missing_package_is_named(
    quantisation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name in PACKAGES.values() else real(name, *more),
    )
    with pytest.raises(
        ModelError, match=r"pip install 'secfed\[quantised\]'"
    ) as caught:
        load(tmp_path, "llama", quantisation)
    assert PACKAGES[quantisation] in str(caught.value)


def test_the_study_binds_it_and_none_is_as_if_it_were_not_there() -> None:
    plain = causal_study("llama", "0" * 64)
    written = causal_study("llama", "0" * 64, model__quantisation="none")
    assert written.digest() == plain.digest()
    digests = {plain.digest()}
    for quantisation in PACKAGES:
        study = causal_study("llama", "0" * 64, model__quantisation=quantisation)
        digests.add(study.digest())
        assert load_study_dict(study.canonical(), "again") == study
    assert len(digests) == 3
    with pytest.raises(StudyError) as caught:
        causal_study("llama", "0" * 64, model__quantisation="nf5")
    assert caught.value.key == "model.quantisation"


def test_a_site_allows_it_by_name_only() -> None:
    study = causal_study("llama", "0" * 64, model__quantisation="nf4")
    policy = causal_policy(study)
    with pytest.raises(PolicyError, match="'nf4' is not in allowed_quantisations"):
        check_policy(policy, study, 60)
    told = {"allowed_quantisations": ("nf4",), "budget_dir": "budgets"}
    check_policy(policy.model_copy(update=told), study, 60)
    plain = causal_study("llama", "0" * 64)
    with pytest.raises(PolicyError, match="'none' is not in allowed_quantisations"):
        check_policy(policy.model_copy(update=told), plain, 60)


@pytest.mark.parametrize("method", ["fedex-lora", "ffa-fresh"])
def test_what_folds_into_the_weights_is_refused_before_training(method: str) -> None:
    with pytest.raises(StudyError, match="would have to be rounded again") as caught:
        causal_study(
            "llama",
            "0" * 64,
            model__quantisation="nf4",
            training__method=method,
            training__learning_rate={method: 1.0},
        )
    assert caught.value.key == "training.method"


def run(study: Study, folder: Path, policy: Any) -> Path:
    allowed = policy.model_copy(
        update={
            "allowed_quantisations": (study.model.quantisation,),
            "budget_dir": str(folder / "budgets"),
        }
    )
    run_study(study, folder, folder / "run", allowed, NoProgress())
    report = verify_run(folder / "run")
    assert report.passed, report.failures()
    return folder / "run"


@on_both
def test_a_study_from_its_file_to_the_release_that_plain_peft_loads(
    family: str, quantisation: str, tmp_path: Path
) -> None:
    digest = make_model(tmp_path / "model", family)
    write_texts(tmp_path)
    study = causal_study(family, digest, model__quantisation=quantisation)
    done = run(study, tmp_path, causal_policy(study))
    statement = json.loads((done / "statement.json").read_bytes())
    assert statement["study"]["base_quantisation"] == quantisation
    provenance = statement["provenance"]
    assert provenance["base quantisation"] == quantisation
    base = load_causal_model(study.model, tmp_path)
    assert provenance["base as it multiplies sha256"] == base.rounded_digest
    assert PACKAGES[quantisation] in provenance
    # The last adapter, in this process and in a fresh one without secfed.
    model = attach_adapter(base, study.adapter)
    start = initial_adapter(model, study.adapter)
    last = load_adapter(done / "adapters" / "round-002.safetensors", start)
    features = encode_blocks(base, blocks(), model.first_layer)
    found = []
    for adapter in (start, last):
        model.write(adapter.tensors)
        with torch.inference_mode():
            found.append(model(*features.batch(np.arange(COUNT))).numpy())
    ids = np.array(blocks())
    fresh = fresh_logits(
        tmp_path / "model",
        done / "adapter",
        "CausalLM",
        ids,
        np.ones_like(ids),
        tmp_path,
        quantisation,
    )
    np.testing.assert_allclose(fresh, found[1], atol=1e-4)
    # How far noise moves so small a model varies; rounding is far below it.
    rounding = np.abs(fresh - found[1]).max()
    assert np.abs(found[0] - found[1]).max() > 10 * rounding
    # Control: the same adapter on the base as it was before rounding.
    plain = fresh_logits(
        tmp_path / "model",
        done / "adapter",
        "CausalLM",
        ids,
        np.ones_like(ids),
        tmp_path,
    )
    assert np.abs(plain - found[1]).max() > 10 * rounding


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantisation",
    [pytest.param(name, marks=installed(name)) for name in PACKAGES],
)
def test_an_encoder_in_few_bits_on_cpu(
    packages: None, quantisation: str, tmp_path: Path
) -> None:
    values = copy.deepcopy(study_values(rounds=1))
    values["model"]["quantisation"] = quantisation
    values["secagg"]["suite"] = "x25519"
    study = load_study_dict(values, "small")
    done = run(study, tmp_path, small_policy())
    lines = (done / "metrics.jsonl").read_text("utf-8").splitlines()
    assert json.loads(lines[-1])["sums_equal"] is True
    # The same text through the base as it was: other states below the adapters.
    plain = load_study_dict(study_values(rounds=1), "small")
    held = prepare(plain, EXAMPLE, small_policy(), NoProgress()).holdout
    allowed = small_policy().model_copy(
        update={"allowed_quantisations": (quantisation,)}
    )
    rounded = prepare(study, EXAMPLE, allowed, NoProgress()).holdout
    gap = (held.states - rounded.states).norm() / held.states.norm()
    assert 1e-3 < gap < 0.5
