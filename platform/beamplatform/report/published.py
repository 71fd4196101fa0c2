"""The accuracies that the BeamLoRA paper reports (arXiv 2502.13604, Tables 1 and 2), in percent."""

from __future__ import annotations

from collections.abc import Mapping

_CODE_AND_MATH = ("gsm8k", "MATH", "humaneval", "mbpp")
_COMMONSENSE = (
    "ARC-Challenge", "social_i_qa", "winogrande", "boolq", "ARC-Easy", "piqa", "openbookqa", "hellaswag",
)  # fmt: skip

_TABLES: Mapping[tuple[str, int, tuple[str, ...]], Mapping[str, tuple[float, ...]]] = {
    ("Llama-2-7b", 64, _CODE_AND_MATH): {
        "full": (66.50, 19.80, 38.01, 46.03),
        "lora": (66.31, 19.09, 39.23, 43.47),
        "dora": (65.53, 19.25, 38.41, 42.95),
        "pissa": (64.87, 17.67, 35.77, 39.33),
        "milora": (66.19, 18.45, 36.79, 44.62),
        "relora": (62.55, 18.08, 35.98, 45.59),
        "adalora": (68.04, 17.02, 35.16, 46.56),
        "increlora": (65.58, 16.93, 34.35, 42.77),
        "beamlora": (67.05, 19.39, 43.90, 46.30),
    },
    ("Mistral-7B", 64, _CODE_AND_MATH): {
        "full": (77.70, 28.20, 53.86, 61.73),
        "lora": (77.56, 28.04, 54.27, 60.85),
        "dora": (77.86, 28.14, 53.46, 62.08),
        "milora": (77.36, 26.71, 50.00, 62.88),
        "adalora": (77.91, 27.53, 46.95, 60.14),
        "beamlora": (78.11, 28.28, 54.07, 62.70),
    },
    ("Llama-2-7b", 32, _COMMONSENSE): {
        "lora": (64.7, 79.5, 82.6, 69.8, 79.8, 79.9, 81.0, 83.6),
        "dora": (68.2, 76.0, 82.6, 71.8, 83.7, 83.7, 82.4, 89.1),
        "pissa": (60.2, 78.4, 78.0, 67.6, 75.8, 78.1, 75.6, 76.6),
        "milora": (68.8, 80.1, 82.0, 67.6, 82.8, 83.8, 80.6, 88.2),
        "relora": (59.3, 76.9, 77.2, 63.9, 75.4, 76.4, 63.2, 62.2),
        "adalora": (69.5, 66.4, 78.6, 62.1, 84.1, 83.2, 79.2, 42.1),
        "increlora": (65.5, 61.3, 81.4, 63.6, 81.3, 70.7, 73.8, 66.9),
        "beamlora": (71.0, 78.9, 82.7, 71.6, 83.7, 82.8, 84.8, 90.5),
    },
    ("Llama-2-13b", 32, _COMMONSENSE): {
        "lora": (75.8, 80.9, 86.1, 75.0, 87.2, 86.2, 85.4, 92.6),
        "dora": (74.6, 81.2, 86.3, 74.4, 86.8, 84.3, 84.2, 93.4),
        "milora": (73.0, 80.3, 86.7, 73.6, 87.1, 81.1, 85.6, 92.0),
        "adalora": (75.8, 73.1, 84.5, 67.7, 88.3, 83.3, 83.4, 90.7),
        "beamlora": (75.5, 81.3, 86.1, 74.7, 88.0, 85.6, 86.2, 94.3),
    },
}  # fmt: skip


def published(model: str, method: str, rank: str | None) -> dict[str, float]:
    """Return task -> accuracy (0..1) that the paper reports for this model, method and rank; empty if it has none.

    Args:
        model: a folder or hub id whose last part begins with the model's name (meta-llama/Llama-2-7b-hf).
        rank: r as text, as MLflow records it. Ignored for full fine-tuning, which has no rank.
    """
    last = model.rstrip("/").rpartition("/")[2].lower()
    accuracies: dict[str, float] = {}
    for (name, r, tasks), rows in _TABLES.items():
        chat = any(word in last for word in ("chat", "instruct"))
        if last.startswith(name.lower()) and not chat and method in rows and (method == "full" or rank == str(r)):
            accuracies |= {task: value / 100 for task, value in zip(tasks, rows[method], strict=True)}
    return accuracies
