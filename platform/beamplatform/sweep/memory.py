"""An estimate of the GPU memory one worker of a trial needs, from the model's shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from beamplatform.errors import UserError
from beamplatform.methods.base import AdapterHyperparameters, Hyperparameters, Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from beamplatform.trial import Trial

Shape = tuple[int, int]


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one worker. An estimate: allocator gaps and library workspaces (about 1 GiB) come on top."""

    weights: int
    adapter: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations


def target_shapes(skeleton: PreTrainedModel, values: Hyperparameters) -> dict[str, Shape]:
    """Module name -> (d_out, d_in) of the layers the adapter is put on; of all linear layers where there is none.

    Raises:
        UserError: no layer matches target_modules.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = skeleton.get_output_embeddings()
    linear: dict[str, Shape] = {}
    for name, module in skeleton.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            linear[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            linear[name] = (module.weight.shape[1], module.weight.shape[0])
    if not linear:
        raise UserError(f"{type(skeleton).__name__} has no linear layers that an adapter could be put on")
    if not isinstance(values, AdapterHyperparameters) or values.target_modules == "all-linear":
        return linear
    chosen = {n: s for n, s in linear.items() if any(n == t or n.endswith(f".{t}") for t in values.target_modules)}
    if not chosen:
        names = sorted({name.rpartition(".")[2] for name in linear})
        raise UserError(
            f"target_modules {list(values.target_modules)}: no such layer in the model; allowed: {', '.join(names)}"
        )
    return chosen


def estimate(trial: Trial, method: Method, skeleton: PreTrainedModel, shapes: dict[str, Shape]) -> MemoryEstimate:
    """Weights, adapter with its optimizer state, and activations of one micro-batch.

    (DoRA needs more activations than this: 1.35 times LoRA's memory in the BeamLoRA paper's Fig. 9.)

    Weights: 2 or 4 bytes a parameter, shared by the workers under ZeRO-3. Adapter, or all weights where they are
    trained: weight and gradient in the model's type, float32 master weight (where the model's type is bfloat16) and two
    moments; the optimizer's part is shared from ZeRO-1 on, the gradient from ZeRO-2 on; and what the method says of
    itself. Activations per token and layer (Korthikanti et al. 2022, Eq. 2,
    without attention scores, which fused attention does not keep): 34 hidden bytes at 2 bytes a value; with gradient
    checkpointing the layer inputs and one whole layer. Logits and their gradient are float32.
    """
    training = trial.training.with_workers(trial.training.least_workers)  # who has the most of it
    config = skeleton.config
    width = 4 if trial.model.dtype == "float32" else 2
    workers, stage = training.most_workers, training.zero_stage
    total = sum(p.numel() for p in skeleton.parameters())
    weights = total * width // (workers if stage == 3 else 1)
    values, own = method.values, width
    if isinstance(values, AdapterHyperparameters):
        parameters = sum(values.largest_rank * (d_out + d_in) for d_out, d_in in shapes.values())
    else:
        parameters, own = total, 0  # the weights are counted already
    master = 0 if width == 4 else 4
    gradient = parameters * width // (workers if stage >= 2 else 1)
    offloaded = training.offload_optimizer and training.device != "cpu"
    optimizer = 0 if offloaded else parameters * (master + 8) // (workers if stage else 1)
    adapter = parameters * own + gradient + optimizer + method.extra_memory(shapes)
    tokens = training.micro_batch * trial.data.max_length
    layer = 34 * config.hidden_size * width // 2
    layers = config.num_hidden_layers
    per_token = 2 * config.hidden_size * layers + layer if trial.model.gradient_checkpointing else layer * layers
    activations = tokens * (per_token + 3 * 4 * config.vocab_size)
    return MemoryEstimate(weights, adapter, activations)
