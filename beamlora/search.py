"""The beam search: after every optimizer step it takes a snapshot, operates, or does nothing."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from beamlora.config import BeamLoraConfig
from beamlora.layer import BeamLinear
from beamlora.optimizer_access import optimizer_access
from beamlora.rules import (
    BeamSchedule,
    Curve,
    operate_factors,
    operate_scores,
    operated_counts,
    pair_ranks,
    pairing_generator,
    score_weights,
    window_end,
)
from beamlora.state import Factors, ParameterState

logger = logging.getLogger(__name__)

_LR_CURVES: dict[str, Curve] = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}


@dataclass(frozen=True)
class BeamReport:
    """What one beam step did.

    operated: for every module with operated ranks, its (pruned rank, parent rank) pairs. Without expansion
        the parent is the rank that would have been copied.
    """

    step: int
    threshold: float
    operated: dict[str, list[tuple[int, int]]]

    @property
    def operated_ranks(self) -> int:
        """The number of ranks replaced, over all modules."""
        return sum(len(pairs) for pairs in self.operated.values())


class BeamSearch:
    """Runs BeamLoRA's beam steps on one adapter. Call `step` after every optimizer step (not micro-batch).

    Steps are optimizer steps counted from 1: p(t) is taken at t, and the snapshot after the update t with
    t % interval == interval // 2. In the reference the threshold has advanced t - 1 times at step t, and the
    snapshot is taken one update later, because its counters lag behind; the difference is far below noise.

    Under ZeRO, `step` and `scores` are collective: every worker calls them.

    Args:
        model: a PEFT model with a BeamLoRA adapter, bare or in DistributedDataParallel or DeepSpeed's engine.
        optimizer: the one that trains it: torch's, or DeepSpeed's `engine.optimizer`.
        total_steps: optimizer steps of the whole run.
        seed: for the random pairing; the same on every worker.
        lr_schedule: cosine, linear, constant or constant_with_warmup: the curve for "match_lr".
        learning_rate: the peak, for temperature="auto". Default: the largest of the optimizer's groups.
        adapter_name: the adapter to search.

    Raises:
        ValueError: an adapter or optimizer that do not fit, or settings under which no beam step can happen.
        TypeError: an optimizer of an unknown kind.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        total_steps: int,
        seed: int = 0,
        lr_schedule: str = "cosine",
        learning_rate: float | None = None,
        adapter_name: str = "default",
    ) -> None:
        model = _unwrapped(model)
        self.config = _beam_config(model, adapter_name)
        self.seed = seed
        self.adapter_name = adapter_name
        self._layers = _beam_layers(model, adapter_name)
        self._access = optimizer_access(optimizer)
        for name, layer in self._layers.items():
            for parameter in (*layer.factors(adapter_name), self._scores_of(layer)):
                if not (parameter.requires_grad and self._access.holds(parameter)):
                    raise ValueError(
                        f"layer {name!r}: adapter {adapter_name!r} is not trained by this optimizer "
                        "(build the optimizer from the trainable parameters, after the adapter was added)"
                    )
        self.schedule = plan_schedule(self.config, total_steps, lr_schedule)
        self.temperature = self._resolve_temperature(optimizer, learning_rate)
        self._beam_steps = frozenset(self.schedule.beam_steps())
        needs_snapshot = self.config.expansion and self.config.history
        self._snapshot_steps = {self.schedule.snapshot_step(t): t for t in self._beam_steps if needs_snapshot}
        self._step = 0
        self._snapshot: dict[str, Factors] = {}

    @property
    def planned_steps(self) -> tuple[int, ...]:
        """The steps of this run that will operate."""
        return tuple(sorted(self._beam_steps))

    def step(self) -> BeamReport | None:
        """Count one optimizer step. Returns a report when it was a beam step."""
        self._step += 1
        if self._step in self._snapshot_steps:
            self._take_snapshot()
        return self._operate() if self._step in self._beam_steps else None

    def scores(self) -> dict[str, Tensor]:
        """The softmax scores s [r] of every module, summing to 1, in float64 on the CPU."""
        raw = {name: self._access.value(self._scores_of(layer)) for name, layer in self._layers.items()}
        return {name: score_weights(g.cpu().double(), self.temperature, "unit") for name, g in raw.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: {"step": int, "settings": plain values, "snapshot": tensors by name}."""
        snapshot = {
            f"{name}/{factor}/{entry}": tensor
            for name, factors in self._snapshot.items()
            for factor, state in (("a", factors.a), ("b", factors.b))
            for entry, tensor in (("value", state.value), *state.moments.items())
        }
        return {"step": self._step, "settings": self._settings(), "snapshot": snapshot}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: the state belongs to a run with other settings or layers, or lacks its snapshot.
        """
        for name, value in self._settings().items():
            saved = state["settings"].get(name)
            if saved != value:
                raise ValueError(f"the saved beam search has {name}={saved!r}, this run has {name}={value!r}")
        step = int(state["step"])
        snapshot = self._read_snapshot(state["snapshot"])
        due = any(taken <= step < used for taken, used in self._snapshot_steps.items())
        if due and snapshot.keys() != self._layers.keys():
            missing = sorted(self._layers.keys() - snapshot.keys())
            raise ValueError(f"the saved beam search of step {step} lacks the snapshot of {', '.join(missing)}")
        self._step, self._snapshot = step, snapshot

    def save_state(self, path: str | Path) -> None:
        """Write `state_dict` to one safetensors file. All workers hold the same: let one of them write."""
        state = self.state_dict()
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.pop("snapshot").items()}
        save_file(tensors, path, metadata={"beam_search": json.dumps(state)})

    def load_state(self, path: str | Path) -> None:
        """Continue from a file of `save_state`.

        Raises:
            ValueError: as `load_state_dict`, or a safetensors file of something else.
        """
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("beam_search")
            if metadata is None:
                raise ValueError(f"{path} does not hold the state of a beam search")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        self.load_state_dict({**json.loads(metadata), "snapshot": tensors})

    def _take_snapshot(self) -> None:
        self._snapshot = {
            name: Factors(self._to_snapshot_device(factors.a), self._to_snapshot_device(factors.b))
            for name, layer in self._layers.items()
            for factors in (self._read_factors(layer),)
        }

    def _operate(self) -> BeamReport:
        config, threshold = self.config, self.schedule.threshold(self._step)
        scores = self.scores()
        counts = operated_counts(
            list(scores.values()), threshold, scope=config.threshold_scope, crossing=config.threshold_crossing
        )
        generator = pairing_generator(self.seed, self._step)
        operated = {}
        for (name, layer), count in zip(self._layers.items(), counts, strict=True):
            if count == 0:
                continue
            pairs = pair_ranks(scores[name], count, generator, assessment=config.assessment)
            current = self._read_factors(layer)
            source = self._source(name, current)
            self._write_factors(layer, operate_factors(current, source, pairs, copy_moments=config.copy_moments))
            if config.expansion:
                score = self._scores_of(layer)
                averaged = operate_scores(self._access.read(score), pairs, reset_moments=config.reset_score_moments)
                self._access.write(score, averaged)
            operated[name] = list(zip(pairs.pruned.tolist(), pairs.parents.tolist(), strict=True))
        self._snapshot = {}
        report = BeamReport(self._step, threshold, operated)
        logger.info("beam step %d: p = %.4f, %d ranks", report.step, report.threshold, report.operated_ranks)
        return report

    def _source(self, name: str, current: Factors) -> Factors | None:
        """Where children are copied from: the snapshot, or what an ablation puts in its place."""
        if not self.config.expansion:
            return None
        return self._snapshot[name] if self.config.history else current

    def _resolve_temperature(self, optimizer: Any, learning_rate: float | None) -> float:
        if self.config.temperature == "auto":
            if learning_rate is None:
                groups = optimizer.param_groups
                learning_rate = max(float(group.get("initial_lr", group["lr"])) for group in groups)
            # Written into the configuration, so that the saved adapter is loaded with it.
            self.config.temperature = 0.05 if learning_rate >= 1e-4 else 0.03
        for layer in self._layers.values():
            layer.scores(self.adapter_name).temperature = self.config.temperature
        return self.config.temperature

    def _settings(self) -> dict[str, Any]:
        """What must be equal for a saved state to continue this run; plain values."""
        own = {option.name for option in fields(BeamLoraConfig)} - {option.name for option in fields(LoraConfig)}
        settings = {name: getattr(self.config, name) for name in sorted(own - {"snapshot_device"})}
        return settings | {
            "total_steps": self.schedule.total_steps,
            "curve": self.schedule.curve,
            "seed": self.seed,
        }

    def _scores_of(self, layer: BeamLinear) -> nn.Parameter:
        return layer.scores(self.adapter_name).weight

    def _read_factors(self, layer: BeamLinear) -> Factors:
        a, b = layer.factors(self.adapter_name)
        return Factors(self._access.read(a), self._access.read(b))

    def _write_factors(self, layer: BeamLinear, factors: Factors) -> None:
        a, b = layer.factors(self.adapter_name)
        self._access.write(a, factors.a)
        self._access.write(b, factors.b)

    def _to_snapshot_device(self, state: ParameterState) -> ParameterState:
        return state.map(Tensor.cpu) if self.config.snapshot_device == "cpu" else state

    def _read_snapshot(self, tensors: dict[str, Tensor]) -> dict[str, Factors]:
        """Undo the flat names of `state_dict`."""
        found: dict[str, dict[str, dict[str, Tensor]]] = {}
        for key, tensor in tensors.items():
            name, factor, entry = key.rsplit("/", 2)
            found.setdefault(name, {"a": {}, "b": {}})[factor][entry] = tensor.clone()
        unknown = found.keys() - self._layers.keys()
        if unknown:
            raise ValueError(f"the saved beam search has layers that this model has not: {', '.join(sorted(unknown))}")
        for name, entries in found.items():
            rows, columns = entries["a"]["value"].shape, entries["b"]["value"].shape
            layer, r = self._layers[name], self._layers[name].r[self.adapter_name]
            if rows != (r, layer.in_features) or columns != (layer.out_features, r):
                raise ValueError(
                    f"the saved snapshot of {name} has A {list(rows)} and B {list(columns)}: not this layer's"
                )
        return {
            name: Factors(*(ParameterState(e.pop("value"), e) for e in (entries["a"], entries["b"])))
            for name, entries in found.items()
        }


def _unwrapped(model: nn.Module) -> nn.Module:
    """The PEFT model inside DistributedDataParallel, DeepSpeed's engine or torch.compile."""
    while (inner := model._modules.get("module") or model._modules.get("_orig_mod")) is not None:
        model = inner
    return model


def _beam_config(model: nn.Module, adapter_name: str) -> BeamLoraConfig:
    configs = getattr(model, "peft_config", {})
    config = configs.get(adapter_name)
    if not isinstance(config, BeamLoraConfig):
        beam_adapters = [name for name, other in configs.items() if isinstance(other, BeamLoraConfig)]
        raise ValueError(
            f"adapter {adapter_name!r} is not a BeamLoRA adapter of this model; "
            f"it has: {', '.join(beam_adapters) or 'none (build it with get_beamlora_model)'}"
        )
    return config


def _beam_layers(model: nn.Module, adapter_name: str) -> dict[str, BeamLinear]:
    """The adapter's layers by their name in the base model, in model order."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and adapter_name in module.r:
            name = name.removeprefix("base_model.model.")
            if not isinstance(module, BeamLinear):
                raise ValueError(f"layer {name!r}: a {type(module).__name__} without rank scores cannot be searched")
            layers[name] = module
    return layers


def plan_schedule(config: BeamLoraConfig, total_steps: int, lr_schedule: str) -> BeamSchedule:
    """The schedule of a run, refused when no beam step can happen in it."""
    if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
        raise ValueError(f"total_steps={total_steps!r}: must be a whole number of optimizer steps, at least 1")
    if lr_schedule not in _LR_CURVES and config.threshold_schedule == "match_lr":
        raise ValueError(
            f"lr_schedule={lr_schedule!r}: threshold_schedule='match_lr' follows {', '.join(_LR_CURVES)}; "
            "with another learning-rate schedule set threshold_schedule to cosine, linear or constant"
        )
    curve = _LR_CURVES[lr_schedule] if config.threshold_schedule == "match_lr" else config.threshold_schedule

    def with_interval(interval: int) -> BeamSchedule:
        end = window_end(total_steps, config.operate_until)
        return BeamSchedule(total_steps, interval, end, config.p_init, curve, config.threshold_horizon)

    interval = config.interval
    if isinstance(interval, float):
        interval = round(interval * total_steps)
        if interval < 2:
            raise ValueError(
                f"interval={config.interval!r} of {total_steps} steps is {interval} steps: must be at least 2"
            )
    schedule = with_interval(interval)
    if config.p_init == 1:
        logger.warning("p_init=1: no rank is ever operated, this is LoRA with scores")
    elif not schedule.beam_steps():
        largest = next(
            (i for i in range(min(interval, total_steps // 2), 1, -1) if with_interval(i).beam_steps()), None
        )
        raise ValueError(
            f"interval={config.interval!r}: no beam step can happen in {total_steps} steps; "
            + (f"the largest interval that works is {largest}" if largest else "the run is too short for any interval")
        )
    return schedule
