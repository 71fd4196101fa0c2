"""Untying a tied output head, for methods that change the weights of adapted layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from beamplatform.methods.base import AdapterHyperparameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def give_head_its_own_weight(base: PreTrainedModel, values: AdapterHyperparameters) -> None:
    """Untie the head from the embedding, in place, if it is tied and `target_modules` names it.

    After that, a change of the head's weight does not change the embedding. The model's configuration records that the
    two are not tied, and the exported model has both weights.
    """
    from torch import nn

    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    name = next(name for name, module in base.named_modules() if module is head)
    if not values.targets(name):
        return
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    base.config.get_text_config().tie_word_embeddings = base.config.tie_word_embeddings = False
    base.all_tied_weights_keys = {
        target: source for target, source in base.all_tied_weights_keys.items() if target != f"{name}.weight"
    }
