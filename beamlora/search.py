"""The beam search: after each optimizer step it takes a snapshot, runs a beam step, or does nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor, nn

from beamlora.config import BeamLoraConfig
from beamlora.exchange import LayerFactors, RankExchange
from beamlora.fragments import Fragments, write_fragments
from beamlora.layer import BeamLinear, beam_layers
from beamlora.optimizer_access import optimizer_access
from beamlora.optimizer_check import check_whole
from beamlora.ranks import Factor
from beamlora.rules import (
    RankPairs,
    average_scores,
    operated_counts,
    pair_ranks,
    pairing_generator,
    score_weights,
)
from beamlora.schedule import plan_schedule
from beamlora.workers import check_agreement, join_parts, worker_count

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BeamReport:
    """What one beam step did.

    Attributes:
        step: the optimizer step, counted from 1.
        threshold: p(t) at this step.
        operated: the (pruned rank, parent rank) pairs of each module in which ranks were replaced. Without expansion
            the parent is the rank that would have been copied.
        bytes_moved: bytes that this worker sent through collectives; 0 if nothing is sharded.
    """

    step: int
    threshold: float
    operated: dict[str, list[tuple[int, int]]]
    bytes_moved: int = 0

    @property
    def operated_ranks(self) -> int:
        """Return the number of replaced ranks, summed over all modules."""
        return sum(len(pairs) for pairs in self.operated.values())


class BeamSearch:
    """Runs BeamLoRA's beam steps on one adapter. Call `step` after every optimizer step (not every micro-batch).

    Steps are optimizer steps, counted from 1. A beam step at step t uses the threshold p(t). The snapshot is taken
    after the update of a step t with t % interval == interval // 2.

    The reference differs in four points:
        - Its counters lag behind: at step t its threshold has advanced t - 1 times, and its snapshot is taken one
          update later. The difference is far below noise.
        - It takes no snapshot if the interval is odd. Here half of an odd interval is rounded down.
        - It sorts equal scores in no fixed order. Here equal scores keep their order.
        - It keeps the scores in bfloat16 in its math and code runs. Here scores are kept in float32.

    Under ZeRO, `step` and `scores` are collective: every worker must call them. Snapshots stay sharded, and a beam
    step moves only the operated ranks between workers.

    Args:
        model: a PEFT model with a BeamLoRA adapter. DistributedDataParallel, DeepSpeed's engine or torch.compile may
            wrap it.
        optimizer: the optimizer that trains the adapter: a torch optimizer, or DeepSpeed's `engine.optimizer`.
        total_steps: number of optimizer steps of the whole run.
        seed: seed of the random pairing of ranks. It must be the same on every worker.
        lr_schedule: the learning-rate schedule, which threshold_schedule="match_lr" follows: cosine, linear, constant
            or constant_with_warmup.
        learning_rate: the peak learning rate, for temperature="auto". The default is the largest learning rate of the
            optimizer's parameter groups.
        adapter_name: the adapter to search.

    Raises:
        ValueError: the adapter or the optimizer does not fit, or no beam step can happen with these settings.
        TypeError: the optimizer is of an unknown type, or its moments cannot be copied rank by rank.
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
            check_whole(name, _shapes(layer, adapter_name))
            for parameter in (*layer.factors(adapter_name), self._scores_of(layer)):
                if not (parameter.requires_grad and self._access.holds(parameter)):
                    raise ValueError(
                        f"layer {name!r}: adapter {adapter_name!r} is not trained by this optimizer "
                        "(build the optimizer from the trainable parameters, after the adapter was added)"
                    )
        factors = [parameter for layer in self._layers.values() for parameter in layer.factors(adapter_name)]
        # The largest factor is checked, because 8-bit optimizers keep the moments of small parameters in 32 bits.
        self._access.check(max(factors, key=nn.Parameter.numel))
        self.schedule = plan_schedule(self.config, total_steps, lr_schedule)
        self.temperature = self._resolve_temperature(optimizer, learning_rate)
        self._beam_steps = frozenset(self.schedule.beam_steps())
        needs_snapshot = self.config.expansion and self.config.history
        self._snapshot_steps = {self.schedule.snapshot_step(t): t for t in self._beam_steps if needs_snapshot}
        self._reset_steps = frozenset(self.schedule.reset_steps())
        self._step = 0
        layers = {name: _layer_factors(layer, adapter_name) for name, layer in self._layers.items()}
        self._exchange = RankExchange(self._access, layers, self.config.snapshot_device)

    @property
    def planned_steps(self) -> tuple[int, ...]:
        """Return the steps of this run at which a beam step happens, in ascending order."""
        return tuple(sorted(self._beam_steps))

    def step(self) -> BeamReport | None:
        """Count one optimizer step, and do what is due after it. Return a report if a beam step was due, else None.

        Raises:
            RuntimeError: the workers do not agree on the ranks to replace.
        """
        self._step += 1
        if self._step in self._snapshot_steps:
            self._exchange.take_snapshot()
        report = self._operate() if self._step in self._beam_steps else None
        if self.config.reset_score_moments == "all" and self._step in self._reset_steps:
            self._reset_score_moments(self._layers)
        elif self.config.reset_score_moments == "operated" and report is not None:
            self._reset_score_moments(report.operated)
        return report

    def scores(self) -> dict[str, Tensor]:
        """Return the softmax scores s [r] of every module by name, in float64 on the CPU.

        The scores of each module sum to 1.
        """
        return self._weights(self._raw_scores())

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs.

        Its keys are "step" (an int), "settings" (plain values) and "snapshot" (fragments by name). Under ZeRO the
        snapshot is only this worker's part, so every worker must save its own state. `save_state` writes these parts
        to files that any number of workers can load.
        """
        return {"step": self._step, "settings": self._settings(), "snapshot": self._exchange.parts()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the search from `state`.

        The state must have been saved by this worker in a run with the same number of workers. If its snapshot is a
        `Fragments`, any number of workers may have saved it.

        Raises:
            ValueError: the state belongs to a run with other settings or layers, or its snapshot is missing.
        """
        for name, value in self._settings().items():
            saved = state["settings"].get(name)
            if saved != value:
                raise ValueError(f"the saved beam search has {name}={saved!r}, this run has {name}={value!r}")
        step, parts = int(state["step"]), state["snapshot"]
        parts = parts if isinstance(parts, Fragments) else Fragments.of(parts)
        due = any(taken <= step < used for taken, used in self._snapshot_steps.items())
        if due:
            self._exchange.load(parts)
        else:
            self._exchange.drop_snapshot()
        self._step = step

    def save_state(self, folder: str | Path) -> None:
        """Write this worker's `state_dict` to a safetensors file in `folder`. Every worker must call this."""
        workers = worker_count(self._access.group) if self._access.sharded else 1
        worker = dist.get_rank(self._access.group) if worker_count() > 1 else 0
        if worker >= workers:
            return  # without sharding all workers hold the same state, and worker 0 alone writes it
        state = self.state_dict()
        path = Path(folder) / f"beam_search-{worker:05}-of-{workers:05}.safetensors"
        write_fragments(path, state.pop("snapshot"), {"beam_search": json.dumps(state)})

    def load_state(self, folder: str | Path) -> None:
        """Continue the search from the files of `save_state`, which any number of workers may have written.

        Raises:
            FileNotFoundError: some of the files are missing.
            ValueError: the files hold something else, or `load_state_dict` refuses the state.
        """
        files = sorted(Path(folder).glob("beam_search-*-of-*.safetensors"))
        if not files or len(files) != int(files[0].stem.rpartition("-")[2]):
            raise FileNotFoundError(
                f"{folder} does not hold the whole state of a beam search (beam_search-*.safetensors)"
            )
        with safe_open(files[0], framework="pt") as file:
            metadata = (file.metadata() or {}).get("beam_search")
        if metadata is None:
            raise ValueError(f"{files[0]} does not hold the state of a beam search")
        self.load_state_dict({**json.loads(metadata), "snapshot": Fragments.from_files(files)})

    def _operate(self) -> BeamReport:
        config, threshold = self.config, self.schedule.threshold(self._step)
        raw = self._raw_scores()
        scores = self._weights(raw)
        counts = operated_counts(
            list(scores.values()), threshold, scope=config.threshold_scope, crossing=config.threshold_crossing
        )
        generator = pairing_generator(self.seed, self._step)
        pairs = {
            name: pair_ranks(scores[name], count, generator, assessment=config.assessment)
            for name, count in zip(self._layers, counts, strict=True)
            if count
        }
        operated = {
            name: list(zip(ranks.pruned.tolist(), ranks.parents.tolist(), strict=True)) for name, ranks in pairs.items()
        }
        device = next(iter(raw.values())).device
        check_agreement(f"beam step at step {self._step}", operated, device, self._access.group)
        moved = sum(g.numel() * g.element_size() for g in raw.values())
        moved += self._exchange.replace(
            operated, expansion=config.expansion, history=config.history, copy_moments=config.copy_moments
        )
        if config.expansion:
            self._average_scores(raw, pairs)
        self._exchange.drop_snapshot()
        moved = moved if self._access.sharded and worker_count(self._access.group) > 1 else 0
        report = BeamReport(self._step, threshold, operated, moved)
        logger.info("beam step %d: p = %.4f, %d ranks", report.step, report.threshold, report.operated_ranks)
        return report

    def _weights(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sizes = [len(g) for g in raw.values()]
        parts = torch.cat(list(raw.values())).cpu().double().split(sizes)
        return {name: score_weights(g, self.temperature, "unit") for name, g in zip(raw, parts, strict=True)}

    @torch.no_grad()
    def _average_scores(self, raw: Mapping[str, Tensor], pairs: Mapping[str, RankPairs]) -> None:
        """Give both ranks of each pair the mean of their raw scores, computed for all modules at once."""
        if not pairs:
            return
        sizes = [len(raw[name]) for name in pairs]
        starts = accumulate(sizes[:-1], initial=0)
        moved = [(p.pruned + start, p.parents + start) for p, start in zip(pairs.values(), starts, strict=True)]
        together = RankPairs(*(torch.cat(ranks) for ranks in zip(*moved, strict=True)))
        averaged = average_scores(torch.cat([raw[name] for name in pairs]), together)
        for name, new in zip(pairs, averaged.split(sizes), strict=True):
            parameter = self._scores_of(self._layers[name])
            shard = self._access.shard(parameter)
            shard.value.copy_(shard.of(new))
            self._access.refresh(parameter, new)

    def _reset_score_moments(self, layers: Iterable[str]) -> None:
        for name in layers:
            for moment in self._access.shard(self._scores_of(self._layers[name])).moments.values():
                moment.zero_()

    def _raw_scores(self) -> dict[str, Tensor]:
        """Return the complete raw scores g [r] of every module by name. One collective joins those of all modules."""
        parameters = [self._scores_of(layer) for layer in self._layers.values()]
        sizes = [int(layer.r[self.adapter_name]) for layer in self._layers.values()]
        dtype = torch.promote_types(torch.float32, parameters[0].dtype)
        whole = torch.zeros(sum(sizes), dtype=dtype, device=parameters[0].device)
        for part, parameter in zip(whole.split(sizes), parameters, strict=True):
            shard = self._access.shard(parameter)
            shard.of(part).copy_(shard.value)
        if self._access.sharded:
            join_parts(whole, self._access.group)
        return dict(zip(self._layers, whole.split(sizes), strict=True))

    def _resolve_temperature(self, optimizer: Any, learning_rate: float | None) -> float:
        if self.config.temperature == "auto":
            if learning_rate is None:
                groups = optimizer.param_groups
                learning_rate = max(float(group.get("initial_lr", group["lr"])) for group in groups)
            # The temperature is written into the configuration, so that it is saved and loaded with the adapter.
            self.config.temperature = 0.05 if learning_rate >= 1e-4 else 0.03
        for layer in self._layers.values():
            layer.scores(self.adapter_name).temperature = self.config.temperature
        return self.config.temperature

    def _settings(self) -> dict[str, Any]:
        """Return the settings, as plain values, that a saved state must share with this run."""
        beam_fields = {field.name for field in fields(BeamLoraConfig)} - {field.name for field in fields(LoraConfig)}
        settings = {name: getattr(self.config, name) for name in sorted(beam_fields - {"snapshot_device"})}
        return settings | {
            "total_steps": self.schedule.total_steps,
            "curve": self.schedule.curve,
            "seed": self.seed,
        }

    def _scores_of(self, layer: BeamLinear) -> nn.Parameter:
        return layer.scores(self.adapter_name).weight


def _layer_factors(layer: BeamLinear, adapter_name: str) -> LayerFactors:
    r, d_in, d_out = (int(size) for size in (layer.r[adapter_name], layer.in_features, layer.out_features))
    return LayerFactors(layer.factors(adapter_name), (Factor((r, d_in), 0), Factor((d_out, r), 1)))


def _shapes(layer: BeamLinear, adapter_name: str) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Return the adapter's parameters in one layer by name, each with the shape that it must have."""
    layer_factors = _layer_factors(layer, adapter_name)
    (a, b), (factor_a, factor_b) = layer_factors.parameters, layer_factors.factors
    return {
        "A": (a, factor_a.shape),
        "B": (b, factor_b.shape),
        "scores": (layer.scores(adapter_name).weight, factor_a.shape[:1]),
    }


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the PEFT model inside DistributedDataParallel, DeepSpeed's engine or torch.compile."""
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
    """Return the adapter's layers by their names in the base model, in model order."""
    return {name.removeprefix("base_model.model."): layer for name, layer in beam_layers(model, adapter_name)}
