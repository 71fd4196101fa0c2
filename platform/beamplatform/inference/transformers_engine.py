"""Generation with transformers and PEFT, which runs anywhere and is the reference for the vLLM engine."""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from beamplatform.hardware import cuda_is_available
from beamplatform.inference.applied_check import PROBES, blaming, require_in_use
from beamplatform.inference.engine import Export, Generation, Request, by_export
from beamplatform.inference.export_check import check_export
from beamplatform.inference.identity import draw_seed, fingerprint
from beamplatform.inference.text import TextCodec, load_codec
from beamplatform.models.loading import load_model, quiet_transformers

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class TransformersEngine:
    """Holds the base model once, with several adapters on it, and at most one merged model beside it.

    A merged model is loaded at the first request for it, and freed at the next request for another export. So send all
    requests for a merged model in one call.
    """

    def __init__(self, base_model: str, *, dtype: str, batch_size: int, max_adapters: int) -> None:
        self._base_model = base_model
        self._dtype = dtype
        self._batch_size = batch_size
        self._max_adapters = max_adapters
        self._base: Any = None
        self._adapted: Any = None
        self._adapters: OrderedDict[str, None] = OrderedDict()
        self._in_use: set[str] = set()
        self._merged: tuple[str, Any] | None = None

    @cached_property
    def _codec(self) -> TextCodec:
        return load_codec(self._base_model)

    @cached_property
    def _device(self) -> str:

        return "cuda" if cuda_is_available() else "cpu"

    def generate(self, requests: Sequence[Request], generation: Generation) -> Iterator[tuple[int, list[str]]]:
        """See `Engine.generate`."""
        ids = self._codec.encode([request.prompt for request in requests], generation.max_new_tokens)
        for export, indices in by_export(requests).items():
            # Longest prompts first: similar lengths need little padding, and a batch too large for memory fails early.
            indices.sort(key=lambda index: len(ids[index]), reverse=True)
            model = self._model(export, [ids[index] for index in indices[:PROBES]])
            for start in range(0, len(indices), self._batch_size):
                batch = indices[start : start + self._batch_size]
                with self._without_adapters(export):
                    rows = self._generate_batch(model, [ids[index] for index in batch], generation)
                for position, index in enumerate(batch):
                    samples = rows[position * generation.samples : (position + 1) * generation.samples]
                    yield index, [self._codec.decode(ids[index], row, generation.stop) for row in samples]

    @property
    def version(self) -> str:
        """See `Engine.version`."""
        return f"transformers {version('transformers')}"

    def close(self) -> None:
        """See `Engine.close`."""
        self._base = self._adapted = self._merged = None
        self._adapters.clear()
        self._in_use.clear()
        self._free()

    def _generate_batch(self, model: Any, ids: list[list[int]], generation: Generation) -> list[list[int]]:
        """Return the new token ids, in `generation.samples` rows for each prompt."""
        import torch
        from transformers import GenerationConfig

        input_ids, attention_mask = self._pad_left(ids)
        sampling = {"temperature": generation.temperature, "top_p": generation.top_p, "top_k": 0}
        config = GenerationConfig(
            do_sample=generation.temperature > 0,
            num_beams=generation.beams,
            num_return_sequences=generation.samples,
            max_new_tokens=generation.max_new_tokens,
            eos_token_id=list(self._codec.eos_token_ids),
            pad_token_id=self._codec.pad_token_id,
            stop_strings=list(generation.stop) or None,
            **(sampling if generation.temperature > 0 else {}),
        )
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(draw_seed(generation.seed, ids))
            sequences = model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=config,
                tokenizer=self._codec.tokenizer if generation.stop else None,
            )
        rows: list[list[int]] = sequences[:, input_ids.shape[1] :].tolist()
        return rows

    @contextmanager
    def _without_adapters(self, export: Export | None) -> Iterator[None]:
        """Disable all adapters inside this context if the request is for the base model (`export` is None)."""
        with self._adapted.disable_adapter() if export is None and self._adapted is not None else nullcontext():
            yield

    def _last_logits(self, model: Any, ids: list[list[int]]) -> list[list[float]]:
        """The logits of the next token, [prompts, vocabulary]."""
        import torch

        input_ids, attention_mask = self._pad_left(ids)
        with torch.no_grad():
            logits: list[list[float]] = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, -1].tolist()
        return logits

    def _pad_left(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and attention mask, both [prompts, longest prompt]; every prompt ends in the last column."""
        import torch

        longest = max(map(len, ids))
        padding = [[self._codec.pad_token_id] * (longest - len(row)) for row in ids]
        input_ids = torch.tensor([pad + row for pad, row in zip(padding, ids, strict=True)])
        mask = torch.tensor([[0] * len(pad) + [1] * len(row) for pad, row in zip(padding, ids, strict=True)])
        return input_ids.to(self._device), mask.to(self._device)

    def _model(self, export: Export | None, probes: list[list[int]]) -> Any:
        """Return the model that serves `export`, with its adapter active; a new adapter is tried on `probes`."""
        name = fingerprint(export) if export else ""
        if self._merged and self._merged[0] != name:
            self._merged = None
            self._free()
        if export and export.kind == "merged":
            if self._merged is None:
                with blaming(export):
                    check_export(self._base_model, export)
                    self._merged = (name, self._load(export.path))
            return self._merged[1]
        if self._base is None:
            self._base = self._load(self._base_model)
        if export is None:
            return self._base
        if name not in self._adapters:
            with blaming(export):
                check_export(self._base_model, export)
            self._add_adapter(name, export)
        self._switch_on(name)
        if name not in self._in_use:
            with self._without_adapters(None):
                base = self._last_logits(self._base, probes)
            require_in_use(export, base, self._last_logits(self._adapted, probes))
            self._in_use.add(name)
        return self._adapted

    def _add_adapter(self, name: str, export: Export) -> None:
        from peft import PeftModel

        if self._adapted is None:
            self._adapted = PeftModel.from_pretrained(self._base, export.path, adapter_name=name)
        else:
            self._adapted.load_adapter(export.path, adapter_name=name)

    def _switch_on(self, name: str) -> None:
        self._adapters[name] = None
        self._adapters.move_to_end(name)
        self._adapted.set_adapter(name)
        self._adapted.eval()
        # Old adapters are deleted only now that the new one is active: PEFT cannot delete a model's last adapter.
        while len(self._adapters) > self._max_adapters:
            unused, _ = self._adapters.popitem(last=False)
            self._adapted.delete_adapter(unused)
            self._in_use.discard(unused)

    def _load(self, path: str) -> Any:
        import torch
        from transformers import GenerationConfig

        logger.info("loading %s in %s on %s", path, self._dtype, self._device)
        with quiet_transformers():
            model: Any = load_model(path, getattr(torch, self._dtype), what="the model")
        # The model's own generation config would set whatever a call leaves unset, such as a repetition penalty.
        model.generation_config = GenerationConfig()
        return model.to(self._device).eval()

    def _free(self) -> None:
        import torch

        gc.collect()
        if cuda_is_available():
            torch.cuda.empty_cache()
