"""Generation with vLLM: many adapters over one base model, on CUDA or with the CPU build."""

from __future__ import annotations

import gc
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, get_args

from beamplatform.errors import UserError
from beamplatform.hardware import cuda_is_available
from beamplatform.inference.adapter_check import PEFT_ONLY, adapter_rank, is_set, read_adapter_config
from beamplatform.inference.applied_check import PROBES, blaming, require_in_use
from beamplatform.inference.engine import Export, Generation, Request, by_export
from beamplatform.inference.export_check import check_export
from beamplatform.inference.identity import draw_seed, fingerprint
from beamplatform.inference.text import TextCodec, load_codec

logger = logging.getLogger(__name__)

MAX_BEAMS = 10
"""vLLM's beam search requests the 2 * beams likeliest tokens, and an engine returns at most 20 by default."""

BATCHES_PER_SEARCH = 4
"""Number of batches in one call of vLLM's beam search, which returns all its answers at once."""

_Asked = tuple[int, dict[str, list[int]], Any]
"""A request's index, its prompt in vLLM's form, and its LoRARequest (None for a model without an adapter)."""

LARGEST_RANK = 512
"""The largest rank of an adapter that vLLM serves, written here so that vLLM need not be imported."""


class VllmEngine:
    """One vLLM engine at a time: for the base model with its adapters, or for one merged model.

    vLLM reserves its memory when it starts, so the running engine is shut down before another starts. Send the requests
    for the base model and all adapters first, and all requests for a merged model in one call.

    Beam search is vLLM's own. vLLM selects completed sequences by their score per token *of prompt and completion*.
    From the sequences that it returns, this class chooses the best by the score per token of the completion, as
    transformers does. The sequences can still differ from those of transformers. The transformers engine is the one
    that reproduces the published `beams: 4`.

    The process must not belong to another torch.distributed group: vLLM forms one and closes it.
    """

    def __init__(self, base_model: str, *, dtype: str, batch_size: int, max_adapters: int, max_lora_rank: int) -> None:
        self._base_model = base_model
        self._dtype = dtype
        self._batch_size = batch_size
        self._max_adapters = max_adapters
        if max_lora_rank > LARGEST_RANK:
            raise UserError(f"adapters of rank {max_lora_rank}: vLLM serves at most rank {LARGEST_RANK}; lower r")
        self._max_lora_rank = max_lora_rank
        self._engine: tuple[str, Any] | None = None
        self._adapters: OrderedDict[str, int] = OrderedDict()
        self._last_adapter_id = 0
        self._in_use: set[str] = set()

    @cached_property
    def _codec(self) -> TextCodec:
        return load_codec(self._base_model)

    def generate(self, requests: Sequence[Request], generation: Generation) -> Iterator[tuple[int, list[str]]]:
        """See `Engine.generate`.

        Requests for up to `max_adapters` adapters share batches; requests for the base model form their own.
        """
        if generation.beams > 1 and generation.stop:
            raise UserError("vLLM's beam search knows no stop texts: use one beam, or the engine 'transformers'")
        if generation.beams > MAX_BEAMS:
            raise UserError(
                f"vLLM searches with at most {MAX_BEAMS} beams, got {generation.beams}: use the engine 'transformers'"
            )
        ids = self._codec.encode([request.prompt for request in requests], generation.max_new_tokens)
        for group in self._groups(by_export(requests)):
            prepared: list[_Asked] = []
            for export, indices in group.items():
                llm, adapter = self._serve(export, [ids[index] for index in indices[:PROBES]])
                prepared += [(index, {"prompt_token_ids": ids[index]}, adapter) for index in indices]
            run = self._search if generation.beams > 1 else self._sample
            for index, rows in run(llm, prepared, generation):
                yield index, [self._codec.decode(ids[index], row, generation.stop) for row in rows]

    def _groups(self, exports: dict[Export | None, list[int]]) -> Iterator[dict[Export | None, list[int]]]:
        """Yield the exports that run together: the base model, up to `max_adapters` adapters, or one merged model."""
        adapters = [item for item in exports.items() if item[0] and item[0].kind == "adapter"]
        if None in exports:
            yield {None: exports[None]}
        for start in range(0, len(adapters), self._max_adapters):
            yield dict(adapters[start : start + self._max_adapters])
        for export, indices in exports.items():
            if export and export.kind == "merged":
                yield {export: indices}

    @property
    def version(self) -> str:
        """See `Engine.version`; vLLM's CPU build has its own name."""
        name = packages_distributions()["vllm"][0]
        return f"{name} {version(name)}"

    def close(self) -> None:
        """See `Engine.close`."""
        if self._engine is None:
            return
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        _, llm = self._engine
        self._engine = None
        self._adapters.clear()
        self._in_use.clear()
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()

    def _sample(
        self, llm: Any, asked: Sequence[_Asked], generation: Generation
    ) -> Iterator[tuple[int, list[list[int]]]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine, waiting = llm.llm_engine, set()
        try:
            for index, prompt, adapter in asked:
                parameters = SamplingParams(
                    n=generation.samples,
                    temperature=generation.temperature,
                    top_p=generation.top_p if generation.temperature else 1.0,
                    seed=draw_seed(generation.seed, prompt) if generation.temperature else None,
                    max_tokens=generation.max_new_tokens,
                    stop=list(generation.stop),
                    stop_token_ids=list(self._codec.eos_token_ids),
                    # Completions are decoded by `_codec` in both engines. Only stop texts need vLLM's own decoding.
                    detokenize=bool(generation.stop),
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                engine.add_request(str(index), prompt, parameters, lora_request=adapter)
                waiting.add(str(index))
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        waiting.remove(output.request_id)
                        yield int(output.request_id), [list(completion.token_ids) for completion in output.outputs]
        finally:
            if waiting:  # an error, or the caller has stopped reading the answers
                engine.abort_request(sorted(waiting))

    def _search(
        self, llm: Any, asked: Sequence[_Asked], generation: Generation
    ) -> Iterator[tuple[int, list[list[int]]]]:
        from vllm.sampling_params import BeamSearchParams

        parameters = BeamSearchParams(beam_width=generation.beams, max_tokens=generation.max_new_tokens)
        size = self._batch_size * BATCHES_PER_SEARCH
        for start in range(0, len(asked), size):
            batch = asked[start : start + size]
            outputs = llm.beam_search(
                [prompt for _, prompt, _ in batch],
                parameters,
                lora_request=[adapter for *_, adapter in batch] if batch[0][2] else None,
                concurrency_limit=self._batch_size,
            )
            for (index, prompt, _), output in zip(batch, outputs, strict=True):
                length = len(prompt["prompt_token_ids"])
                best = max(output.sequences, key=lambda beam: beam.cum_logprob / (len(beam.tokens) - length))
                yield index, [list(best.tokens[length:])]

    def _serve(self, export: Export | None, probes: list[list[int]]) -> tuple[Any, Any]:
        """Return the running engine that serves `export`, and its `LoRARequest` if it is an adapter.

        A new adapter is tried on the token ids `probes`.
        """
        # vLLM's engine ends when it cannot load a model or an adapter, so everything is checked before.
        name = fingerprint(export) if export else ""
        if export and export.kind == "merged":
            if self._engine is None or self._engine[0] != name:
                with blaming(export):
                    check_export(self._base_model, export)
            return self._start(name, export.path), None
        if export is None:
            return self._start("", self._base_model), None
        if name not in self._adapters:
            with blaming(export):
                check_export(self._base_model, export)
                check_servable(Path(export.path), self._lora_rank)
        llm = self._start("", self._base_model)
        adapter = self._adapter_request(llm, name, export)
        if name not in self._in_use:
            require_in_use(export, self._thinks(llm, probes, None), self._thinks(llm, probes, adapter))
            self._in_use.add(name)
        return llm, adapter

    def _thinks(self, llm: Any, probes: list[list[int]], adapter: Any) -> list[dict[int, float]]:
        """Token id -> log-probability of the likeliest next tokens, for each prompt."""
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=1, logprobs=20, detokenize=False)
        inputs = [{"prompt_token_ids": row} for row in probes]
        outputs = llm.generate(inputs, parameters, use_tqdm=False, lora_request=adapter)
        return [{token: entry.logprob for token, entry in o.outputs[0].logprobs[0].items()} for o in outputs]

    def _adapter_request(self, llm: Any, name: str, export: Export) -> Any:
        from vllm.lora.request import LoRARequest

        if name not in self._adapters:
            # One slot stays free for the base model's requests, so an old adapter is removed before a new one is added.
            if len(self._adapters) == self._max_adapters:
                evicted, evicted_id = self._adapters.popitem(last=False)
                llm.llm_engine.remove_lora(evicted_id)
                self._in_use.discard(evicted)
            self._last_adapter_id += 1
            self._adapters[name] = self._last_adapter_id
        self._adapters.move_to_end(name)
        return LoRARequest(name, self._adapters[name], export.path)

    @cached_property
    def _lora_rank(self) -> int:
        return padded_rank(self._max_lora_rank)

    def _start(self, name: str, path: str) -> Any:
        """Return the engine called `name` ("" for the base model); an engine of another name is shut down first."""
        if self._engine is not None and self._engine[0] == name:
            return self._engine[1]
        self.close()
        lora: dict[str, Any] = {}
        if not name:
            # One slot more than adapters: when every slot is taken, vLLM 0.32 can answer a request for the base
            # model with an adapter.
            lora = {
                "enable_lora": True,
                "max_loras": self._max_adapters + 1,
                "max_lora_rank": self._lora_rank,
            }
        with _vllm_environment():
            from vllm import LLM

            logger.info("starting vLLM for %s in %s", path, self._dtype)
            llm = LLM(
                model=path,
                tokenizer=self._base_model,
                dtype=self._dtype,
                max_num_seqs=self._batch_size,
                generation_config="vllm",
                load_format="safetensors",  # pickled weights can run code
                use_tqdm_on_load=False,
                # Compiling pays off on GPUs only.
                enforce_eager=not cuda_is_available(),
                **lora,
            )
        self._engine = (name, llm)
        return llm


def padded_rank(rank: int) -> int:
    """Return the smallest rank for which vLLM can reserve memory and which is at least `rank`.

    Raises:
        UserError: `rank` is above the largest rank that vLLM serves.
    """
    from vllm.config.lora import MaxLoRARanks

    ranks: tuple[int, ...] = get_args(MaxLoRARanks)
    fitting = [r for r in ranks if r >= rank]
    if not fitting:
        raise UserError(f"max_lora_rank is {rank}, vLLM serves adapters up to rank {max(ranks)}")
    return min(fitting)


def check_servable(folder: Path, max_lora_rank: int) -> None:
    """Check that vLLM can serve this LoRA adapter.

    Raises:
        UserError: its rank is above `max_lora_rank`, or it uses more than plain LoRA of one rank.
    """
    config = read_adapter_config(folder)
    if (rank := adapter_rank(folder)) > max_lora_rank:
        raise UserError(f"adapter {folder} has rank {rank}, above this engine's max_lora_rank of {max_lora_rank}")
    for key in sorted(PEFT_ONLY):
        if is_set(config.get(key)):
            raise UserError(
                f"adapter {folder} has {key}={config[key]!r}, which vLLM cannot serve: "
                "export a merged model, or use the engine 'transformers'"
            )


@contextmanager
def _vllm_environment() -> Iterator[None]:
    """Set the environment variables that vLLM reads at its start, except those that the user has set."""
    defaults = {
        # In this process, the engine starts in a fifth of the time, and leaves nothing behind when the process ends.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # In GiB; without a limit, the CPU build takes most of the machine's memory.
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # vLLM's log records go where the program's own records go.
        "VLLM_CONFIGURE_LOGGING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    added = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
