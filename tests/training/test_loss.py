"""The loss of a micro-batch is the same, however many logits are computed at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from beamplatform.data.examples import IGNORED
from beamplatform.models.shapes import AFTER_THE_HEAD
from beamplatform.training.loss import LossHead, check_loss_head, summed_loss


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two padded examples, in which the loss counts 3 and 5 tokens."""
    ids = torch.arange(24).reshape(2, 12)
    mask, labels = torch.ones_like(ids), torch.full_like(ids, IGNORED)
    mask[0, 9:] = 0
    labels[0, 6:9], labels[1, 7:] = ids[0, 6:9], ids[1, 7:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def with_gradients(model: LlamaForCausalLM, batch: dict[str, torch.Tensor], head: LossHead) -> list[torch.Tensor]:
    loss = summed_loss(model, batch, head)
    assert loss.dtype == torch.float32
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", ["counted", "chunked"])
def test_loss_and_gradients(model, batch, head: LossHead, dtype: torch.dtype) -> None:
    """Of full fine-tuning too, where the head itself is trained."""
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    expected = with_gradients(model.to(dtype), batch, "all")
    by_hand = model(**batch).loss * 8
    torch.testing.assert_close(expected[0], by_hand.detach(), rtol=tolerance, atol=0, check_dtype=False)
    for found, reference in zip(with_gradients(model, batch, head), expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=tolerance, atol=tolerance * float(reference.abs().max()))


@pytest.mark.parametrize(("head", "rows"), [("all", 24), ("counted", 8), ("chunked", 1)])
def test_logits_that_are_computed(model, batch, head: LossHead, rows: int) -> None:
    seen = []
    model.lm_head.register_forward_hook(lambda module, arguments, logits: seen.append(logits.numel() // 300))
    summed_loss(model, batch, head)
    assert seen == [rows] and not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize("head", ["all", "counted", "chunked"])
def test_where_nothing_counts_the_loss_is_zero_and_so_are_gradients(model, batch, head: LossHead) -> None:
    found = with_gradients(model, batch | {"labels": torch.full_like(batch["labels"], IGNORED)}, head)
    assert all(torch.equal(value, torch.zeros_like(value)) for value in found)


def test_a_model_that_changes_its_logits_is_refused() -> None:
    config = dict.fromkeys(AFTER_THE_HEAD) | {"logit_scale": 1.0}
    check_loss_head(config, "chunked")
    config["final_logit_softcapping"] = 30.0
    with pytest.raises(ValueError, match="chunked is not for models with final_logit_softcapping; allowed: counted"):
        check_loss_head(config, "chunked")
    check_loss_head(config, "counted")
