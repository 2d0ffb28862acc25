"""Tiny models with random weights, wrapped by PEFT, and a batch for them.

Made in code: nothing is downloaded. Lengths differ, so that padding takes part.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import torch
import transformers
from torch import nn

from secfed.training.losses import IGNORED, causal_lm, classification

VOCABULARY, CLASSES, LENGTHS = 40, 3, (9, 4, 7, 9, 3, 6)
PROMPT = 3  # The first tokens of a text are asked, the others answer.
VIRTUAL = 3  # Virtual tokens of prompt and prefix tuning.

Loss = Callable[..., torch.Tensor]


def gpt2(kind: str = "causal") -> nn.Module:
    config = transformers.GPT2Config(
        n_layer=2,
        n_head=2,
        n_embd=16,
        vocab_size=VOCABULARY,
        n_positions=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        num_labels=CLASSES,
        attn_implementation="eager",
    )
    made = (
        transformers.GPT2LMHeadModel
        if kind == "causal"
        else transformers.GPT2ForSequenceClassification
    )
    return made(config)


def bert(_kind: str = "classes", hidden: int = 16) -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        vocab_size=VOCABULARY,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=CLASSES,
        attn_implementation="eager",
    )
    return transformers.BertForSequenceClassification(config)


def wrapped(base: nn.Module, config: Any) -> nn.Module:
    """PEFT around the base, every trained number moved so that none is at rest."""
    torch.manual_seed(5)
    transformers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def batch(*, answers: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, their mask, and answer tokens or classes."""
    draw = torch.Generator().manual_seed(3)
    longest = max(LENGTHS)
    ids = torch.randint(1, VOCABULARY, (len(LENGTHS), longest), generator=draw)
    mask = (torch.arange(longest) < torch.tensor(LENGTHS)[:, None]).long()
    ids = ids * mask
    if not answers:
        return ids, mask, torch.arange(len(LENGTHS)) % CLASSES
    targets = torch.where(mask == 1, ids, torch.full_like(ids, IGNORED))
    targets[:, : PROMPT - 1] = IGNORED
    return ids, mask, targets


def answer_loss(
    network: Any, ids: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Of a causal language model; virtual tokens come first and are dropped."""
    logits = network(input_ids=ids, attention_mask=mask).logits
    return causal_lm(logits[:, logits.shape[1] - ids.shape[1] :], targets)


def class_loss(
    network: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    # Four dimensions: of a flat mask Transformers asks whether all are one, a
    # question that cannot be vectorised over records.
    wide = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    return classification(network(input_ids=ids, attention_mask=wide).logits, labels)


def flat_mask_loss(
    network: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    return classification(network(input_ids=ids, attention_mask=mask).logits, labels)


@dataclass(frozen=True)
class Case:
    """One adapter on one model; ``refused`` is why Opacus' rules cannot train it."""

    name: str
    base: Callable[..., nn.Module]
    config: Callable[[], Any]
    loss: Loss = class_loss
    refused: str = ""

    @property
    def model(self) -> nn.Module:
        torch.manual_seed(4)
        kind = "causal" if self.loss is answer_loss else "classes"
        return wrapped(self.base(kind), self.config())

    @property
    def batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return batch(answers=self.loss is answer_loss)


def _lora(task: str, *modules: str, **more: Any) -> Callable[[], Any]:
    return lambda: peft.LoraConfig(
        task_type=task, r=2, target_modules=list(modules), lora_dropout=0.0, **more
    )


CASES = (
    Case("lora-bert", bert, _lora("SEQ_CLS", "query", "value")),
    Case(
        "lora-bert-whole-head",
        bert,
        _lora("SEQ_CLS", "dense", modules_to_save=["pooler", "classifier"]),
    ),
    Case(
        "lora-gpt2",
        gpt2,
        _lora("CAUSAL_LM", "c_attn", "c_proj", "c_fc", fan_in_fan_out=True),
        answer_loss,
    ),
    Case(
        "lora-gpt2-classes",
        gpt2,
        _lora("SEQ_CLS", "c_attn", fan_in_fan_out=True),
        flat_mask_loss,
    ),
    Case(
        "layer-norms-gpt2",
        gpt2,
        lambda: peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["ln_1"]),
        answer_loss,
    ),
    Case(
        "prefix-gpt2",
        gpt2,
        lambda: peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL
        ),
        answer_loss,
    ),
    Case(
        "prompt-gpt2",
        gpt2,
        lambda: peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL
        ),
        answer_loss,
        "prompt_encoder.default.embedding (Embedding) was called with 1 rows",
    ),
    Case(
        "ia3-gpt2",
        gpt2,
        lambda: peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["c_attn", "c_proj"],
            feedforward_modules=["c_proj"],
            fan_in_fan_out=True,
        ),
        answer_loss,
        "c_attn.ia3_l (ParameterDict) holds the raw parameters default",
    ),
    Case(
        "ia3-bert",
        bert,
        lambda: peft.IA3Config(
            task_type="SEQ_CLS",
            target_modules=["key", "value", "output.dense"],
            feedforward_modules=["output.dense"],
        ),
        class_loss,
        "key.ia3_l (ParameterDict) holds the raw parameters default",
    ),
    Case(
        "dora-bert",
        bert,
        _lora("SEQ_CLS", "query", "value", use_dora=True),
        class_loss,
        "lora_magnitude_vector.default (DoraLinearLayer) is DoRA's magnitude",
    ),
    Case(
        "dora-gpt2",
        gpt2,
        _lora("CAUSAL_LM", "c_attn", use_dora=True, fan_in_fan_out=True),
        answer_loss,
        "lora_magnitude_vector.default (DoraLinearLayer) is DoRA's magnitude",
    ),
)


def one_at_a_time(case: Case, model: nn.Module) -> torch.Tensor:
    """The slow obvious version: autograd of one record, no padding, no Opacus."""
    parameters = list(trained(model).values())
    parts = case.batch
    rows = []
    model.train()
    for row, length in enumerate(LENGTHS):
        alone = [part[row : row + 1] for part in parts]
        alone = [part[:, :length] if part.dim() > 1 else part for part in alone]
        loss = case.loss(model, *alone)
        found = torch.autograd.grad(loss.sum(), parameters)
        rows.append(torch.cat([part.reshape(-1) for part in found]))
    return torch.stack(rows)


def flat(samples: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([sample.reshape(len(sample), -1) for sample in samples], dim=1)


def errors(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Per record, relative to the size of what is expected."""
    return (found - expected).norm(dim=1) / expected.norm(dim=1)
