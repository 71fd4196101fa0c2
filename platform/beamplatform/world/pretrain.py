"""Make the tiny model: `python -m beamplatform.world.pretrain --out FOLDER`.

Trains the tokenizer and a small Llama from scratch on the world's text, on one CPU, and writes a folder that
transformers and vLLM load. The shipped folder `assets/tiny` was made with the defaults.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.world.facts import world
from beamplatform.world.text import PROMPT_HEAD, PROMPT_TAIL, Passage, passages
from beamplatform.world.tokenizer import BOS, EOS, PAD, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """All settings that decide the model; saved beside the model as pretraining.json."""

    seed: int = 1
    vocab_size: int = 1600
    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 6
    heads: int = 4
    previous_token_heads: int = 2
    max_length: int = 2048
    steps: int = 3200
    batch_tokens: int = 2048
    precision: str = "bfloat16"
    learning_rate: float = 5e-3
    matrix_learning_rate: float = 2e-2
    warmup: int = 100
    weight_decay: float = 0.05
    prompt_weight: float = 0.2
    quiz_weight: float = 5.0
    facts: int = 2
    lookups: int = 2
    quizzes: int = 7
    drills: int = 1
    lookup_steps: int = 600


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids and the weight of each token as a target, both [passages, length]."""

    ids: torch.Tensor
    weights: torch.Tensor


def encoded(items: Iterator[Passage], tokenizer: Any, recipe: Recipe) -> Iterator[tuple[list[int], list[float]]]:
    """Yield the token ids (bos, text, eos) and the target weights of each passage."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    for item in items:
        ids, weights = [bos], [0.0]
        for piece, learnt in item.parts:
            new = tokenizer.encode(piece, add_special_tokens=False).ids
            if item.kind in ("fact", "drill"):
                weight = 1.0 if learnt else recipe.prompt_weight
            else:
                weight = recipe.quiz_weight if learnt else 0.0
            ids += new
            weights += [weight] * len(new)
        yield [*ids, eos], [*weights, 1.0]


def batches(rows: Iterator[tuple[list[int], list[float]]], recipe: Recipe, pad: int) -> Iterator[Batch]:
    """Yield batches of about `batch_tokens` tokens; pools of passages are sorted by length to reduce padding."""
    import torch

    generator = torch.Generator().manual_seed(recipe.seed)
    while True:
        pool = sorted(itertools.islice(rows, 4096), key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[float]]]] = [[]]
        for row in pool:
            if (len(groups[-1]) + 1) * len(row[0]) > recipe.batch_tokens:
                groups.append([])
            groups[-1].append(row)
        for index in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[index]
            length = len(group[-1][0])
            yield Batch(
                torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in group]),
                torch.tensor([weights + [0.0] * (length - len(weights)) for _, weights in group]),
            )


def weighted_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Weighted mean cross-entropy of the next token; logits are computed only for targets with a weight above 0."""
    import torch.nn.functional as F

    counted = batch.weights[:, 1:] > 0
    hidden = model.model(batch.ids).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[counted]).float()
    weights = batch.weights[:, 1:][counted]
    return (F.cross_entropy(logits, batch.ids[:, 1:][counted], reduction="none") * weights).sum() / weights.sum()


def create_model(recipe: Recipe, tokenizer: Any) -> Any:
    """An untrained LlamaForCausalLM whose vocabulary is padded to a multiple of 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = LlamaForCausalLM(config)
    start_previous_token_heads(model, count=recipe.previous_token_heads)
    return model


def start_previous_token_heads(model: Any, count: int) -> None:
    """Initialise the first `count` heads of the first layer so that they attend to the previous token.

    Looking up which label stands before an option needs such a head, and gradient descent takes millions of tokens to
    find one. A constant first component of all embeddings gives every query and key a constant part. Rotary embedding
    turns the query at position i by i angles and the key at position j by j angles. A key that starts out turned by one
    more angle therefore matches best at j = i - 1.
    """
    import torch

    head_dim, size, frequencies = model.config.head_dim, model.config.hidden_size, 6
    half = head_dim // 2
    angles = 10_000.0 ** (-torch.arange(half) / half)[:frequencies]
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0.0133 * size**0.5
        for start in range(0, count * head_dim, head_dim):
            attention.q_proj.weight[start : start + head_dim] *= 0.2
            attention.k_proj.weight[start : start + head_dim] *= 0.2
            attention.q_proj.weight[start : start + frequencies, 0] = 0.9
            attention.k_proj.weight[start : start + frequencies, 0] = 0.9 * angles.cos()
            attention.k_proj.weight[start + half : start + half + frequencies, 0] = 0.9 * angles.sin()


def quiz_accuracy(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """For each kind of quiz, the share whose last token is the model's likeliest prediction."""
    import torch

    items = list(itertools.islice(passages(world(), 987, facts=0, lookups=1, quizzes=3, drills=0), count))
    rows = [(tokenizer.encode(item.text).ids, item.kind) for item in items]
    rows.sort(key=lambda row: len(row[0]))
    right: dict[str, list[int]] = {}
    model.eval()
    with torch.no_grad():
        for start in range(0, count, 64):
            part = rows[start : start + 64]
            longest = len(part[-1][0])
            ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in part])
            ends = torch.tensor([len(row) - 2 for row, _ in part])
            best = model(ids).logits[torch.arange(len(part)), ends].argmax(-1).tolist()
            for (row, kind), guess in zip(part, best, strict=True):
                right.setdefault(kind, []).append(int(guess == row[-1]))
    model.train()
    return {kind: round(sum(hits) / len(hits), 3) for kind, hits in sorted(right.items())}


def pretrain(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Train by the recipe and write the model folder; returns the final loss, the quiz accuracy and the seconds."""
    import torch

    torch.manual_seed(recipe.seed)
    mixture = {"facts": recipe.facts, "lookups": recipe.lookups, "quizzes": recipe.quizzes, "drills": recipe.drills}
    sample = itertools.islice(passages(world(), recipe.seed + 1, **mixture), 20_000)
    plain = (p.text.replace(PROMPT_HEAD, "").replace(PROMPT_TAIL, "\n") for p in sample)
    tokenizer = train_tokenizer(plain, recipe.vocab_size)
    model = create_model(recipe, tokenizer)
    model.set_attn_implementation("eager")  # twice as fast as SDPA at these sizes in bfloat16
    log.info("%d parameters, %d tokens", sum(p.numel() for p in model.parameters()), tokenizer.get_vocab_size())
    # Training begins mostly with plain look-ups of labels and words: before the model can do these, quizzes give no
    # signal.
    lookup = {"facts": 1, "lookups": 8, "quizzes": 1, "drills": 0}
    first, second = (
        batches(encoded(passages(world(), seed, **parts), tokenizer, recipe), recipe, tokenizer.token_to_id(PAD))
        for seed, parts in ((recipe.seed + 2, lookup), (recipe.seed, mixture))
    )
    source = itertools.chain(itertools.islice(first, recipe.lookup_steps), second)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    peaks = [recipe.matrix_learning_rate, recipe.learning_rate]
    started, mean = time.monotonic(), 0.0
    for step, batch in enumerate(itertools.islice(source, recipe.steps), 1):
        rate = min(1.0, step / recipe.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss = weighted_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        mean = loss.item() if step == 1 else 0.98 * mean + 0.02 * loss.item()
        if step % 200 == 0 or step == recipe.steps:
            quiz = quiz_accuracy(model, tokenizer, 256)
            left = (time.monotonic() - started) / step * (recipe.steps - step)
            _save(model, tokenizer, out, recipe)
            log.info("step %d of %d, loss %.3f, quizzes %s, %.0f s left", step, recipe.steps, mean, quiz, left)
    result = {
        "loss": round(mean, 4),
        "quiz_accuracy": quiz_accuracy(model, tokenizer, 2048),
        "seconds": round(time.monotonic() - started),
    }
    model.eval()
    _save(model, tokenizer, out, recipe)
    (out / "pretraining.json").write_text(json.dumps({"recipe": asdict(recipe), "result": result}, indent=2) + "\n")
    return result


def _save(model: Any, tokenizer: Any, out: Path, recipe: Recipe) -> None:
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, out, recipe.max_length)


def main() -> None:
    """Run the command line, whose options include all fields of the recipe."""
    parser = argparse.ArgumentParser(description="Pretrain the embedded world's tiny Llama.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model and tokenizer to")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    for name, default in asdict(Recipe()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=f"default {default}")
    options = vars(parser.parse_args())
    out, threads = options.pop("out"), options.pop("threads")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    import torch

    torch.set_num_threads(threads)
    log.info("%s", pretrain(Recipe(**options), out))


if __name__ == "__main__":
    main()
