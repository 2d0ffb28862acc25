"""Every path of training and evaluation where the model is on another device.

The device is a pretended one (``elsewhere``), so that a GPU is not needed, and the
numbers must be those of the processor. What a batch, a mask, a label, a
weight or noise on the wrong device does on CUDA, it does here: the operation fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import FAR, Far, elsewhere
from encoders import TARGETS, WORDS, make_encoder, pair_study
from prompted import make_model
from small import make_plan, randomised
from test_prompted_model import LABELS as ASKED
from test_prompted_model import Tiny

from secfed.adapters import ModelPair, attach_adapter, head_from_names, initial_adapter
from secfed.audit.canaries import CanaryLoss, place_canaries, with_canaries
from secfed.audit.data_canaries import _losses
from secfed.errors import ModelError
from secfed.evaluation import outcomes, predict
from secfed.evaluation.answers import score_answers
from secfed.evaluation.texts import count_tokens
from secfed.models import (
    chosen_device,
    device_of,
    encode_prefix,
    load_base_model,
    moved,
    open_teacher,
)
from secfed.privacy.noise import simulation_stream
from secfed.study.distillation import TeacherSection
from secfed.study.sections import AdapterSection, ModelSection
from secfed.training import (
    CausalLoss,
    ClassificationLoss,
    PrivateRecords,
    TokenRecords,
    train_privately,
    train_whole_site,
    train_without_privacy,
)
from secfed.training.distillation import MutualLoss, PairedRecords
from secfed.types import LORA_A, MERGED, Adapter

COUNT = 10
LABELS = np.arange(COUNT) % 2
PERSONS = np.arange(COUNT) // 2
TEXTS = [" ".join(WORDS[i : i + 1 + i % 3]) for i in range(COUNT)]
PAIRS = [WORDS[-i - 1] for i in range(COUNT)]
PLAN = make_plan(
    5, 4, unit="person", max_records_per_unit=2, steps_per_round=2, delta=1e-3
)
SETTINGS = pair_study("bert", "0" * 64).training
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2, "lora_alpha": 4.0, "target_modules": TARGETS["bert"]},
    "dora": {"r": 2, "lora_alpha": 4.0, "target_modules": TARGETS["bert"]},
    "ia3": {"target_modules": ["key", "value"], "feedforward_modules": []},
}
Found = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    made = tmp_path_factory.mktemp("devices")
    make_encoder(made / "bert")
    make_encoder(made / "distilbert", "distilbert")
    return made


def require_same(work: Callable[[], Found]) -> None:
    """The same numbers on the processor and elsewhere, and all of them read back.

    Up to rounding: attention has a kernel of its own on each device.
    """
    near = work()
    with elsewhere():
        far = work()
    assert near.keys() == far.keys()
    for name, value in far.items():
        assert type(value) is type(near[name]), name
        np.testing.assert_allclose(value, near[name], 1e-4, 1e-6, err_msg=name)


def section_of(folder: Path, name: str, kind: Any = ModelSection, **more: Any) -> Any:
    from secfed.canonical import file_sha256  # noqa: PLC0415

    digest = file_sha256(folder / name / "model.safetensors")
    return kind.model_validate(
        {"path": name, "sha256": digest, "max_length": 12} | more
    )


def classifier(folder: Path, name: str = "bert", kind: str = "lora") -> Any:
    """A base, its model, an adapter at which everything has a gradient, its texts."""
    base = load_base_model(section_of(folder, name), folder, 2)
    values = KINDS[kind] | ({"kind": kind, "layers": 1})
    if name == "distilbert":
        values |= {"target_modules": TARGETS[name]}
    section = AdapterSection.model_validate(values)
    model = attach_adapter(base, section)
    adapter = randomised(initial_adapter(model, section))
    texts = encode_prefix(base, TEXTS, model.first_layer, pairs=PAIRS)
    return base, model, adapter, texts


def privately(model: Any, adapter: Adapter, records: Any, **more: Any) -> Found:
    """Two private steps; Opacus' gradients or those of ``torch.func``."""
    update = train_privately(
        model,
        adapter,
        tuple(adapter.tensors),
        records,
        more.pop("plan", PLAN),
        SETTINGS,
        1.0,
        simulation_stream(1, "device"),
        keep_noiseless=True,
        **more,
    )
    assert update.noiseless is not None
    clean = {f"clean {name}": value for name, value in update.noiseless.items()}
    return dict(update.change) | clean


# The choice


@pytest.mark.parametrize(
    ("asked", "there", "device"),
    [
        (None, False, "cpu"), (None, True, "cuda"), ("", True, "cuda"),
        ("cpu", True, "cpu"), ("cpu", False, "cpu"), ("cuda", True, "cuda"),
    ],
)  # fmt: skip
def test_a_gpu_is_taken_where_there_is_one_and_the_variable_overrides(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, there: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.delenv("SECFED_DEVICE", raising=False)
    if asked is not None:
        monkeypatch.setenv("SECFED_DEVICE", asked)
    assert chosen_device() == torch.device(device)


@pytest.mark.parametrize(
    ("asked", "words"),
    [("cuda", "finds no CUDA device"), ("gpu", "it is cpu or cuda"), ("CPU", "cpu")],
)
def test_another_device_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, asked: str, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("SECFED_DEVICE", asked)
    with pytest.raises(ModelError, match=words):
        chosen_device()


def test_on_the_processor_a_batch_is_not_copied() -> None:
    batch = (torch.ones(2), torch.zeros(3))
    same = moved(batch, torch.nn.Linear(1, 1))
    assert all(one is two for one, two in zip(batch, same, strict=True))
    assert device_of(torch.nn.Identity()) == torch.device("cpu")


# The instrument


def test_the_pretended_device_refuses_what_was_left_behind() -> None:
    with elsewhere():
        layer = torch.nn.Linear(3, 2).to(FAR)
        batch, places = torch.ones(4, 3), torch.tensor([0, 1])
        assert isinstance(layer.weight, torch.nn.Parameter)
        with pytest.raises(RuntimeError, match="on the processor"):
            layer(batch)
        with pytest.raises(RuntimeError, match="on the processor"):
            layer(batch.to(FAR)) + torch.ones(4, 2)
        with pytest.raises(RuntimeError, match="on the processor"):
            _ = batch[places.to(FAR)]
        with pytest.raises(TypeError, match="copy them first"):
            layer.weight.detach().numpy()
        layer(*moved([batch], layer)).sum().backward()
        assert isinstance(layer.weight.grad, Far)
        assert type(layer.weight.grad.cpu()) is torch.Tensor


# The paths


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_classifier_trains_and_is_evaluated_where_it_is(
    folder: Path, kind: str
) -> None:
    def work() -> Found:
        base, model, adapter, texts = classifier(folder, kind=kind)
        assert type(texts.states) is torch.Tensor  # Cached in the processor's memory.
        records = PrivateRecords(texts, LABELS, PERSONS, 5)
        loss = ClassificationLoss((1.0, 2.0))
        found = privately(model, adapter, records, loss=loss)
        found["said"] = predict(model, adapter, texts)
        found |= {f"w {n}": value for n, value in model.base_weights().items()}
        found |= head_from_names(base, model, ("bar", "gel lop"), 1.0)
        return found

    require_same(work)


def test_sites_train_as_a_whole_and_plainly_where_the_model_is(folder: Path) -> None:
    def work() -> Found:
        _, model, adapter, texts = classifier(folder)
        records = PrivateRecords(texts, LABELS, np.arange(COUNT), COUNT)
        names, stream = tuple(adapter.tensors), simulation_stream(2, "device")
        plan = make_plan(COUNT, 1, unit="site", sampling_probability=1.0, delta=1e-3)
        whole = train_whole_site(
            model, adapter, names, records, plan, SETTINGS, 1.0, stream
        )
        plain = train_without_privacy(
            model, adapter, names, records, SETTINGS, COUNT, stream
        )
        held = outcomes(
            model,
            adapter,
            tuple(encode_one(model, texts, row) for row in range(3)),
            LABELS[:3],
            np.arange(3),
        )
        found = {f"plain {n}": value for n, value in plain.change.items()}
        return dict(whole.change) | found | {"loss": held.loss, "said": held.answers}

    require_same(work)


def encode_one(_model: Any, texts: Any, row: int) -> Any:
    start, end = texts.offsets[row : row + 2]
    return type(texts)(texts.states[start:end], np.array([0, end - start]))


def test_a_folded_change_and_a_core_go_where_the_weights_are(folder: Path) -> None:
    def work() -> Found:
        _, model, adapter, texts = classifier(folder)
        module = next(n for n in adapter.tensors if n.endswith(LORA_A))
        module = module.removesuffix(LORA_A)
        change = {module + MERGED: np.full((16, 16), 0.1, np.float32)}
        core = {
            f"{name.removesuffix(LORA_A)}.lora_R": np.eye(2, dtype=np.float32) * 0.5
            for name in adapter.tensors
            if name.endswith(LORA_A)
        }
        said = {}
        for name, more in (("folded", change), ("core", core)):
            other = Adapter(dict(adapter.tensors) | more, scaling=adapter.scaling)
            said[name] = predict(model, other, texts)
        return said

    require_same(work)


def test_a_pair_learns_and_a_teacher_speaks_where_they_are(folder: Path) -> None:
    def work() -> Found:
        _, student, own, texts = classifier(folder)
        _, mentor, its, seen = classifier(folder, "distilbert")
        pair = ModelPair(student, mentor)
        both = {**own.tensors, **{n + "@mentor": v for n, v in its.tensors.items()}}
        records = PairedRecords(texts, LABELS, PERSONS, 5, mentor=seen)
        section = section_of(folder, "bert", TeacherSection, trained_on="nothing")
        teacher = open_teacher(section, folder, 2, own_head=False)
        said = teacher.logits(teacher.network, TEXTS, PAIRS)
        loss = MutualLoss(0.5, 2.0, adaptive=True)
        adapter = Adapter(both, scaling=own.scaling)
        return privately(pair, adapter, records, loss=loss) | {"teacher": said}

    require_same(work)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_language_model_trains_and_speaks_where_it_is(
    tmp_path: Path, family: str
) -> None:
    make_model(tmp_path / "model", family)

    def work() -> Found:
        tiny = Tiny(tmp_path / "model", family)
        model, features = tiny.model, tiny.features
        records = TokenRecords(features, ASKED, np.arange(6), 6)
        plan = make_plan(6, 4, delta=1e-3)
        found = privately(model, tiny.busy, records, loss=CausalLoss(), plan=plan)
        counts = count_tokens(model, tiny.busy, features)
        scores = score_answers(model, tiny.busy, features, ASKED, tiny.questions)
        return found | {"loss": counts.loss, "scores": list(scores.values())}

    require_same(work)


def test_the_audits_canaries_lie_where_their_layers_are(folder: Path) -> None:
    def work() -> Found:
        _, model, adapter, texts = classifier(folder)
        records = PrivateRecords(texts, LABELS, np.arange(COUNT), COUNT)
        places = place_canaries(model, tuple(adapter.tensors), 4)
        loss = CanaryLoss(ClassificationLoss(), places, 2.0, 4)
        inside = with_canaries(records, np.array([True, False, True, True]))
        plan = make_plan(20, 10, delta=1e-3)
        found = privately(model, adapter, inside, loss=loss, plan=plan)
        prepared = SimpleNamespace(model=model, loss=ClassificationLoss())
        rehearsal: Any = SimpleNamespace(prepared=prepared)
        return found | {"losses": _losses(rehearsal, adapter, records)}

    require_same(work)
