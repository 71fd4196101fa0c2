"""What LLaMA2-7B, 13B and 70B need on 4, 8 and 64 GPUs of 80 GB: worked out from their shapes, nothing is run.

python benchmarks/scaling.py            prints the tables of docs/scaling.md
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from beamplatform.config.sections import DataSection, EvaluationSection, ModelSection, TrainingSection
from beamplatform.config.trial import Trial
from beamplatform.sweep.plan.memory_estimate import MemoryEstimate, estimate, target_shapes

GIB = 2**30
MODELS = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8},
}  # fmt: skip
GPUS = (4, 8, 64)
RANK, LENGTH, MICRO_BATCH = 64, 512, 4
PEAK, SHARE = 989e12, 0.40
"""Dense bfloat16 operations per second of an H100 (NVIDIA's data sheet), and the share of them that is counted on."""

SUITES = {"commonsense": (169_420, 3, 110), "math": (394_000, 3, 230), "code": (103_848, 3, 420)}
"""Examples, epochs, and an assumed mean of tokens per example."""


@dataclass(frozen=True)
class Setting:
    """BeamLoRA at r = 64 on all linear layers of a model, on so many GPUs."""

    name: str
    gpus: int
    stage: int
    model: PreTrainedModel

    @property
    def trial(self) -> Trial:
        training = TrainingSection(
            workers=self.gpus, zero_stage=self.stage, max_steps=10_000, micro_batch=MICRO_BATCH,
            global_batch=MICRO_BATCH * self.gpus, device="gpu",
        )  # fmt: skip
        return Trial(
            suite="math", preset="paper", method="beamlora", seed=0, training=training,
            hyperparameters={"learning_rate": 3e-4, "r": RANK, "p_init": 0.95, "interval": 3000},
            model=ModelSection(path=self.name, dtype="bfloat16", gradient_checkpointing=True),
            data=DataSection(max_length=LENGTH), evaluation=EvaluationSection(),
        )  # fmt: skip

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return target_shapes(self.model, self.trial.make_method(10**6).values)

    @property
    def adapter(self) -> int:
        """Trained values: A, B and a score for each rank."""
        return sum(RANK * (d_out + d_in + 1) for d_out, d_in in self.shapes.values())

    @property
    def weights(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def memory(self) -> MemoryEstimate:
        return estimate(self.trial, self.trial.make_method(10**6), self.model, self.shapes)

    def network(self) -> float:
        """Bytes that a GPU sends in an optimizer step of one micro-batch, over rings.

        ZeRO 0: an all-reduce of the gradient in bfloat16. 1, 2: it is scattered, the new weights are gathered. 3: the
        frozen weights are gathered as well, for the forward pass, for its repetition (checkpointing) and for the
        backward pass.
        """
        passed = (self.gpus - 1) / self.gpus
        sent = 2 * passed * 2 * self.adapter
        return sent + (3 * passed * 2 * self.weights if self.stage == 3 else 0)

    def beam_step(self) -> float:
        """Bytes that a beam step moves: a tenth of all ranks, weight and two moments in float32 (an all-reduce)."""
        return 2 * (self.gpus - 1) / self.gpus * 0.1 * 3 * 4 * self.adapter

    def hours(self, suite: str) -> float:
        """Forward, its repetition and the gradient to the inputs: 6 operations for each weight and token."""
        examples, epochs, tokens = SUITES[suite]
        return 6 * self.weights * examples * epochs * tokens / (self.gpus * PEAK * SHARE) / 3600


def shaped(name: str) -> PreTrainedModel:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(vocab_size=32_000, max_position_embeddings=4096, **MODELS[name]))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sizes = "weights | adapter, optimizer | activations | GiB per GPU"
    print(f"| model | GPUs | ZeRO | {sizes} | sent per step | beam step moves |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in MODELS:
        model = shaped(name)
        for gpus in GPUS:
            for stage in (0, 2, 3):
                one = Setting(name, gpus, stage, model)
                memory = one.memory()
                parts = (memory.weights, memory.adapter, memory.activations, memory.total)
                fits = "" if memory.total < 0.92 * 80e9 else " (too much)"
                sizes = " | ".join(f"{part / GIB:.1f}" for part in parts)
                print(f"| {name} | {gpus} | {stage} | {sizes}{fits} | {one.network() / 1e9:.2f} GB | "
                      f"{one.beam_step() / 1e9:.2f} GB |")  # fmt: skip
    print("\n| model | GPUs | " + " | ".join(f"{suite}, hours" for suite in SUITES) + " |")
    print("|---|---:|" + "---:|" * len(SUITES))
    for name in MODELS:
        model = shaped(name)
        for gpus in GPUS:
            one = Setting(name, gpus, 2, model)
            print(f"| {name} | {gpus} | " + " | ".join(f"{one.hours(suite):.1f}" for suite in SUITES) + " |")


if __name__ == "__main__":
    main()
