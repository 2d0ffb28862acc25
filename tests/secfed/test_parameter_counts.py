"""How many numbers are trained, from configurations alone; and no dropout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from encoders import make_encoder, pair_study, pair_values

from secfed.adapters import attach_adapter, count_parameters, initial_adapter
from secfed.errors import ModelError, StudyError
from secfed.evaluation import predict
from secfed.models import encode_prefix, load_base_model, read_shapes, shapes_of
from secfed.study import load_study_dict
from secfed.study.sections import AdapterSection


def lora(r: int, *targets: str) -> AdapterSection:
    return AdapterSection(r=r, lora_alpha=32.0, target_modules=targets)


def test_gpt2_with_rank_32_on_its_attention() -> None:
    base = shapes_of(transformers.GPT2Config(), "CAUSAL_LM")
    assert {p.device.type for p in base.network.parameters()} == {"meta"}
    found = count_parameters(base, lora(32, "c_attn"))
    assert found == (1_179_648, 125_619_456)


def test_distilbert_with_rank_8_and_its_stock_head() -> None:
    base = shapes_of(transformers.DistilBertConfig(num_labels=2), "SEQ_CLS")
    found = count_parameters(base, lora(8, "q_lin", "v_lin"))
    assert found == (739_586, 67_694_596)


def test_distilbert_with_secfed_s_linear_head() -> None:
    base = shapes_of(transformers.DistilBertConfig(num_labels=2), "TOKEN_CLS")
    trained, _ = count_parameters(base, lora(8, "q_lin", "v_lin"))
    assert trained == 6 * 2 * 2 * 8 * 768 + 2 * 769


def test_what_does_not_fit_is_refused_without_weights() -> None:
    base = shapes_of(transformers.GPT2Config(), "CAUSAL_LM")
    with pytest.raises(ModelError, match="target_modules"):
        count_parameters(base, lora(8, "q_proj"))
    with pytest.raises(ModelError, match="not supported yet"):
        shapes_of(transformers.BertConfig(), "CAUSAL_LM")


def test_the_folder_needs_a_configuration_only(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no usable configuration"):
        read_shapes(tmp_path, "TOKEN_CLS", 3)
    transformers.DistilBertConfig().save_pretrained(tmp_path)
    trained, _ = count_parameters(
        read_shapes(tmp_path, "TOKEN_CLS", 3), lora(1, "q_lin")
    )
    assert trained == 6 * 2 * 768 + 3 * 769


def test_distilbert_is_read_as_the_stock_model_reads_it(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    study = pair_study("distilbert", make_encoder(tmp_path / "model", "distilbert"))
    base = load_base_model(study.model, tmp_path, 2)
    model = attach_adapter(base, study.adapter)
    start = initial_adapter(model, study.adapter)
    rng = np.random.default_rng(3)
    adapter = start.replaced(
        {
            n: rng.normal(size=v.shape).astype(np.float32)
            for n, v in start.tensors.items()
        }
    )
    texts, pairs = ["bar bel bop", "kel"], ["dar", "mop bar fop"]
    found = predict(model, adapter, encode_prefix(base, texts, 1, pairs=pairs))
    inputs = base.tokenizer(texts, pairs, padding=True, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.network(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits
    weights = inputs["attention_mask"][:, :, None]
    mean = (tokens * weights).sum(1) / weights.sum(1)
    np.testing.assert_allclose(found, mean.numpy(), atol=1e-5)
    counted, _ = count_parameters(
        read_shapes(tmp_path / "model", "TOKEN_CLS", 2), study.adapter
    )
    assert counted == sum(value.size for value in start.tensors.values())


@pytest.mark.parametrize("value", [0.2, True, "0"])
def test_dropout_is_refused_with_its_reason(value: object) -> None:
    values = pair_values("bert", "0" * 64)
    values["adapter"]["lora_dropout"] = value
    with pytest.raises(StudyError, match="dropout draws anew") as caught:
        load_study_dict(values, "dropped")
    assert caught.value.key == "adapter.lora_dropout"


def test_no_dropout_may_be_said_and_changes_no_digest() -> None:
    values = pair_values("bert", "0" * 64)
    plain = load_study_dict(values, "plain").digest()
    values["adapter"]["lora_dropout"] = 0.0
    assert load_study_dict(values, "said").digest() == plain
