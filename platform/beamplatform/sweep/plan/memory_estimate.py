"""An estimate of the memory one worker of a trial needs, from the model's shapes alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from beamplatform.config.sections import TrainingSection
from beamplatform.errors import UserError
from beamplatform.hardware import has_gpu
from beamplatform.methods.base import AdapterHyperparameters, Hyperparameters, Method
from beamplatform.methods.targets import names_layer
from beamplatform.models.shapes import ModelShapes, Shape

if TYPE_CHECKING:
    from beamplatform.config.trial import Trial


LIVE = 10**9
"""Values of gathered weights that ZeRO-3 keeps at most: DeepSpeed's default of stage3_max_live_parameters."""


PROCESS = 750 * 2**20
"""Bytes of a worker's process on a CPU: Python, torch, transformers, DeepSpeed, Ray, and their workspaces.

A real worker of the shipped model, which itself is small, tells it: `benchmarks/memory.py`.
"""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one worker. On a GPU allocator gaps and library workspaces (about 1 GiB) come on top.

    Attributes:
        weights: the model's.
        adapter: what is trained, or all weights' part of it where they are trained: weights, gradients, optimizer.
        activations: of one micro-batch; or gradients on their way, where these are more.
        process: of the process itself and its libraries, where the worker computes on a CPU.
    """

    weights: int
    adapter: int
    activations: int
    process: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.process


def computes_on_cpu(training: TrainingSection) -> bool:
    """Whether the workers have no GPU: as the preset says, or by the machine that plans where it leaves that open."""
    return training.device == "cpu" or (training.device == "auto" and not has_gpu())


def target_shapes(model: ModelShapes, values: Hyperparameters) -> dict[str, Shape]:
    """Module name -> (d_out, d_in) of the layers the adapter is put on; of all linear layers where there is none.

    The head is among them only where target_modules names it.

    Raises:
        UserError: an entry of target_modules names no linear layer.
    """
    linear = dict(model.linear)
    if not linear:
        raise UserError(f"{model.name} has no linear layers that an adapter could be put on")
    if not isinstance(values, AdapterHyperparameters) or values.target_modules == "all-linear":
        return linear
    everything = {**linear, **model.head}
    if not values.target_modules:
        raise UserError(f"target_modules: names no layer; allowed: {_allowed(everything)}")
    for target in values.target_modules:
        if not any(names_layer(target, name) for name in everything):
            raise UserError(f"target_modules: {_unknown(target, everything, model)}")
    return {name: shape for name, shape in everything.items() if values.targets(name)}


def _unknown(target: str, layers: Collection[str], model: ModelShapes) -> str:
    """What is wrong with an entry of target_modules that names no linear layer."""
    kind = next((k for name, k in model.others.items() if names_layer(target, name)), None)
    if kind is not None:
        return f"{target!r} is a {kind}, which no method adapts; allowed: {_allowed(layers)}"
    last = sorted({name.rpartition(".")[2] for name in layers})
    close = get_close_matches(target, [*last, *layers], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"no such layer in the model as {target!r}; {hint}allowed: {_allowed(layers)}"


def _allowed(layers: Collection[str]) -> str:
    last = sorted({name.rpartition(".")[2] for name in layers})
    return f"'all-linear', or a list of {', '.join(last)}, or of longer ends of layers' names"


def check_head(method: Method, model: ModelShapes, shapes: Mapping[str, Shape], training: TrainingSection) -> None:
    """Refuse an adapted head where it could not do what it is for.

    Raises:
        ValueError: says what would be right.
    """
    adapted = next((name for name in model.head if name in shapes), None)
    if adapted is None or not isinstance(method.values, AdapterHyperparameters):
        return
    if training.loss_head == "chunked":
        raise ValueError(
            f"target_modules: training.loss_head=chunked computes the loss without the adapter of {adapted}; allowed: "
            "counted, all, or other target_modules"
        )
    if training.zero_stage == 3 and _unties(method, model, shapes):
        raise ValueError(
            f"target_modules: {adapted} shares its weight with the embedding, from which {method.name} has to part it, "
            "and that cannot be done under training.zero_stage=3; allowed: 0, 1, 2, or other target_modules"
        )


def _unties(method: Method, model: ModelShapes, shapes: Mapping[str, Shape]) -> bool:
    """Whether the method gives a tied head a weight of its own."""
    return method.writes_weights and model.head_is_tied and any(name in shapes for name in model.head)


def estimate(trial: Trial, method: Method, model: ModelShapes, shapes: dict[str, Shape]) -> MemoryEstimate:
    """What the worker holds that holds most, from shapes alone; `benchmarks/memory.py` compares it with real runs.

    Weights: 2 or 4 bytes a value. Under ZeRO-3 a share of them, and beside it those that are gathered at a time.

    Trained values: the weight itself (the model's own are counted already where all are trained), a gradient that is
    kept between micro-batches, Adam's two moments in float32, and where the model's type is bfloat16 or ZeRO shards
    the optimizer a float32 master weight, for bfloat16 with its gradient. The optimizer's part is shared from ZeRO-1
    on, the kept gradient from ZeRO-2 on. And what the method says of itself.

    Activations (see `_activations`) are gone when the last gradients are on their way: then one more copy of them is in
    the bucket that is sent, and from ZeRO-2 on they are not those that are kept.
    """
    training = trial.training.with_workers(trial.training.least_workers)  # who has the most of it
    width = 4 if trial.model.dtype == "float32" else 2
    workers, stage = training.most_workers, training.zero_stage
    total = model.parameters
    if _unties(method, model, shapes):
        total += sum(d_out * d_in for d_out, d_in in model.head.values())
    values = method.values
    if isinstance(values, AdapterHyperparameters):
        trained = sum(values.largest_rank * (d_out + d_in) for d_out, d_in in shapes.values())
        own = trained * width
    else:
        trained, own = total, 0
    gathered = min(total, LIVE) * width if stage == 3 and workers > 1 else 0
    weights = total * width // workers + gathered if gathered else total * width
    of_optimizer = 8 + (4 if stage or width == 2 else 0) + (4 if width == 2 else 0)
    on_cpu = computes_on_cpu(training)
    offloaded = training.offload_optimizer and not on_cpu
    optimizer = 0 if offloaded else trained * of_optimizer // (workers if stage else 1)
    kept = trained * width // (workers if stage >= 2 else 1)
    on_their_way = trained * width * (2 if stage >= 2 else 1)
    if on_cpu:
        on_their_way += gathered  # gloo gathers into a buffer of its own first
    adapter = own + kept + optimizer + method.extra_memory(shapes)
    activations = max(_activations(trial, method, model, shapes), on_their_way)
    return MemoryEstimate(weights, adapter, activations, PROCESS if on_cpu else 0)


def _activations(trial: Trial, method: Method, model: ModelShapes, shapes: dict[str, Shape]) -> int:
    """Bytes that a micro-batch leaves for its backward pass.

    Counted for a decoder layer like Llama's with fused attention, whose inputs are of h values, its keys of k and the
    middle of its MLP of m: both norms' inputs (in float32) and outputs, which adapters keep; queries, keys, values and
    the result of attention; gate, its activation, up and their product. What an adapter keeps of a layer beside its
    input, the method says. With gradient checkpointing the inputs of all layers and one whole layer. The head: logits,
    a copy of them and their logarithms in the forward pass, or these, their gradient and that of the logits.
    """
    config = {name: max(value) if isinstance(value, list) else value for name, value in model.config.items()}
    for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
        if not isinstance(config[name], int):
            raise UserError(f"model.path: the config.json of this {model.name} names no {name}, which a plan needs")
    width = 4 if trial.model.dtype == "float32" else 2
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    middle = config["intermediate_size"] or 4 * hidden
    heads = config["num_attention_heads"] or 1  # a model without attention is counted as one with a single head
    of_head = config["head_dim"] or hidden // heads
    keys = of_head * (config["num_key_value_heads"] or heads)
    layer = 2 * hidden * 4 + (4 * hidden + 2 * keys + 4 * middle) * width
    adapters = method.extra_activations(shapes) * width // layers
    if isinstance(method.values, AdapterHyperparameters) and method.values.lora_dropout and method.keeps_dropout:
        adapters += sum(d_in for _, d_in in shapes.values()) * (width + 1) // layers  # what is left, and the mask
    layer += adapters
    per_token = hidden * width * layers + layer if trial.model.gradient_checkpointing else layer * layers
    return int(trial.training.micro_batch * trial.data.max_length * (per_token + 3 * 4 * config["vocab_size"]))
