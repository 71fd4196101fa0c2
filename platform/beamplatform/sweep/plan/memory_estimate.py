"""Estimates the memory that one worker of a trial needs, from the model's shapes alone."""

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
"""Largest number of parameters that ZeRO-3 keeps gathered: DeepSpeed's default of stage3_max_live_parameters."""


PROCESS = 750 * 2**20
"""Bytes of a worker's process on a CPU: Python, torch, transformers, DeepSpeed, Ray, and their workspaces.

`benchmarks/memory.py` measures it with a real worker of the shipped model, which is small itself.
"""


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated bytes on one worker. On a GPU, allocator gaps and library workspaces (about 1 GiB) come on top.

    Attributes:
        weights: the model's weights; under ZeRO-3, the worker's shard and the weights gathered at a time.
        adapter: the adapter's weights, gradients and optimizer state; without an adapter, the gradients and optimizer
            state of all weights.
        activations: the activations of one micro-batch, or the gradients being reduced if those take more.
        process: the process itself and its libraries if the worker computes on a CPU, else 0.
    """

    weights: int
    adapter: int
    activations: int
    process: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.process


def computes_on_cpu(training: TrainingSection) -> bool:
    """Whether the workers compute on CPUs.

    With training.device=auto, they do if the planning machine has no GPU.
    """
    return training.device == "cpu" or (training.device == "auto" and not has_gpu())


def target_shapes(model: ModelShapes, values: Hyperparameters) -> dict[str, Shape]:
    """Map the name of each layer that gets an adapter to its (d_out, d_in).

    Without an adapter, all linear layers are returned. The head is included only if target_modules names it.

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
    """Say what is wrong with an entry of target_modules that names no linear layer."""
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
    """Refuse an adapter on the head if it could not be trained or separated from the embedding.

    Raises:
        ValueError: the head cannot be adapted; the message lists what is allowed.
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
    """Whether the method gives a head that is tied to the embedding a weight of its own."""
    return method.writes_weights and model.head_is_tied and any(name in shapes for name in model.head)


def estimate(trial: Trial, method: Method, model: ModelShapes, shapes: dict[str, Shape]) -> MemoryEstimate:
    """Estimate the memory of the worker that needs the most, from shapes alone.

    `benchmarks/memory.py` compares the estimate with real runs.

    Weights take 2 or 4 bytes per value. Under ZeRO-3 a worker holds its shard of them and the weights that are gathered
    at a time.

    Each trained value takes:

    - the weight itself. Without an adapter it is one of the model's weights, which are counted already.
    - a gradient that is kept between micro-batches. It is sharded from ZeRO-2 on.
    - the optimizer state, which is sharded from ZeRO-1 on: Adam's two moments in float32, a float32 master weight if
      the model's dtype is bfloat16 or ZeRO shards the optimizer, and for bfloat16 the master weight's gradient.

    The method adds what it needs besides (`Method.extra_memory`).

    Activations (see `_activations`) are freed before the last gradients are reduced. The communication bucket then
    holds one more copy of the gradients. From ZeRO-2 on, a worker keeps only a shard of the gradients, so the gradients
    being reduced are counted in full as well. The larger of activations and gradients counts.
    """
    training = trial.training.with_workers(trial.training.least_workers)  # with the fewest workers, each holds the most
    width = 4 if trial.model.dtype == "float32" else 2
    workers, stage = training.most_workers, training.zero_stage
    parameters = model.parameters
    if _unties(method, model, shapes):
        parameters += sum(d_out * d_in for d_out, d_in in model.head.values())
    values = method.values
    if isinstance(values, AdapterHyperparameters):
        trained = sum(values.largest_rank * (d_out + d_in) for d_out, d_in in shapes.values())
        adapter_weights = trained * width
    else:
        trained, adapter_weights = parameters, 0
    gathered = min(parameters, LIVE) * width if stage == 3 and workers > 1 else 0
    weights = parameters * width // workers + gathered if gathered else parameters * width
    optimizer_bytes = 8 + (4 if stage or width == 2 else 0) + (4 if width == 2 else 0)
    on_cpu = computes_on_cpu(training)
    offloaded = training.offload_optimizer and not on_cpu
    optimizer = 0 if offloaded else trained * optimizer_bytes // (workers if stage else 1)
    kept_gradients = trained * width // (workers if stage >= 2 else 1)
    gradients_in_flight = trained * width * (2 if stage >= 2 else 1)
    if on_cpu:
        gradients_in_flight += gathered  # gloo first gathers the weights into a buffer of its own
    adapter = adapter_weights + kept_gradients + optimizer + method.extra_memory(shapes)
    activations = max(_activations(trial, method, model, shapes), gradients_in_flight)
    return MemoryEstimate(weights, adapter, activations, PROCESS if on_cpu else 0)


def _activations(trial: Trial, method: Method, model: ModelShapes, shapes: dict[str, Shape]) -> int:
    """Bytes that a micro-batch keeps for its backward pass.

    The count assumes a decoder layer like Llama's with fused attention. Such a layer keeps:

    - the inputs of both norms, in float32, and their outputs, which adapters keep,
    - the queries, the keys, the values and the result of attention,
    - in the MLP the gate, its activation, the up projection and the product of the last two.

    The method says what an adapter keeps beside its layer's input (`Method.extra_activations`). With gradient
    checkpointing, the inputs of all layers and the activations of one whole layer are kept.

    The head keeps three float32 values for each token and entry of the vocabulary. In the forward pass these are the
    logits, a copy of them and the log-probabilities. In the backward pass these are the log-probabilities, their
    gradient and the gradient of the logits.
    """
    config = {name: max(value) if isinstance(value, list) else value for name, value in model.config.items()}
    for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
        if not isinstance(config[name], int):
            raise UserError(f"model.path: the config.json of this {model.name} names no {name}, which a plan needs")
    width = 4 if trial.model.dtype == "float32" else 2
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    middle = config["intermediate_size"] or 4 * hidden
    heads = config["num_attention_heads"] or 1  # a model without attention is counted as one with a single head
    head_size = config["head_dim"] or hidden // heads
    keys = head_size * (config["num_key_value_heads"] or heads)
    layer = 2 * hidden * 4 + (4 * hidden + 2 * keys + 4 * middle) * width
    adapters = method.extra_activations(shapes) * width // layers
    if isinstance(method.values, AdapterHyperparameters) and method.values.lora_dropout and method.keeps_dropout:
        # Dropout keeps its output and the mask.
        adapters += sum(d_in for _, d_in in shapes.values()) * (width + 1) // layers
    layer += adapters
    per_token = hidden * width * layers + layer if trial.model.gradient_checkpointing else layer * layers
    return int(trial.training.micro_batch * trial.data.max_length * (per_token + 3 * 4 * config["vocab_size"]))
