"""A worker of test_resume.py and of the methods' battery: `resume_worker.py SPEC RANK WORLD PORT`.

SPEC is a JSON file {"trials": {name: trial}, "points": [steps], "interrupt": step or null, "folder": ...}. Each trial
runs from start to end, with a checkpoint after every step; then again for four steps from each of `points`, and to the
end from a run that was interrupted between two micro-batches of step `interrupt`. Every worker writes
FOLDER/NAME-RANK.pt: {"whole" | point: {step: seen}}, where seen is all that a run is: parameters, moments, the method's
state, the tokens of the batch, metrics; and {"final": {"live": weights of the forward pass by name, whole, "logits": of
token ids 3..98}}. The whole run's export is in FOLDER/NAME/export.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any


class Interrupted(Exception):
    pass


MEASURED = ("per_second", "seconds", "memory")
"""Parts of the names of metrics that no two runs have alike."""


def main() -> None:
    spec_path, rank_text, world_text, port = sys.argv[1:]
    spec, rank, world = json.loads(Path(spec_path).read_text()), int(rank_text), int(world_text)
    os.environ |= {"RANK": rank_text, "LOCAL_RANK": rank_text, "WORLD_SIZE": world_text}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}

    import numpy
    import torch
    from torch import distributed

    from beamlora.optimizer_access import optimizer_access
    from beamplatform.config.trial import Trial
    from beamplatform.training import loop
    from beamplatform.training.checkpoint_store import CheckpointStore
    from beamplatform.training.engine import whole_parameters
    from beamplatform.training.run import start_run

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    folder = Path(spec["folder"])
    place = loop.Worker(rank, world, torch.device("cpu"))
    collate = loop.collate
    batch: list[list[int]] = []
    interrupt_after: list[int | None] = [None]

    def noted(examples: Any, *rest: Any) -> Any:
        """The loop's own collate; keeps the tokens, and raises when so many micro-batches have been seen."""
        if len(batch) == interrupt_after[0]:
            raise Interrupted
        batch.append([token for example in examples for token in example.ids])
        return collate(examples, *rest)

    loop.collate = noted

    final: dict[str, Any] = {}

    def finish(this: Any, name: str) -> None:
        this.engine.eval()
        with torch.no_grad():
            final["logits"] = this.engine(input_ids=torch.arange(3, 99).reshape(4, 24)).logits.float()
        with whole_parameters(this.engine) as model:
            final["live"] = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
        this.export(str(folder / name / "export"))

    def run(
        trial: Trial, name: str, place_of: str, *, keep: bool = False, until: int = 10**6, interrupt: int | None = None
    ) -> dict[int, Any]:
        # What a new process would not know either.
        torch.manual_seed(random.getrandbits(40))
        numpy.random.seed(random.getrandbits(30))
        this = start_run(trial, place, CheckpointStore(str(folder / name / place_of)))
        access, model = optimizer_access(this.engine.optimizer), this.engine.module
        seen: dict[int, Any] = {}
        sent = len(this.progress.rows)
        batch.clear()

        def report(progress: Any) -> None:
            nonlocal sent
            own = this.method.state()
            tensors = {f"method/{key}": tensor.clone() for key, tensor in own.tensors.items()}
            tensors |= {f"part/{key}": tensor.clone() for key, (_, tensor) in own.parts.items()}
            for key, parameter in model.named_parameters():
                if parameter.requires_grad:
                    tensors |= {f"{key}/{entry}": t for entry, t in access.read(parameter).tensors().items()}
            rows = progress.rows[sent:]
            sent = len(progress.rows)
            seen[progress.step] = {
                "tensors": tensors,
                "values": json.dumps(own.values),
                "batch": [list(tokens) for tokens in batch],
                "metrics": [
                    {key: value for key, value in row.items() if not any(word in key for word in MEASURED)}
                    for _, row in rows
                ],
                "generator": torch.get_rng_state(),
                "generators": repr((random.getstate(), numpy.random.get_state()[1].tolist())),
            }
            batch.clear()
            if progress.step == until:
                raise Interrupted
            interrupt_after[0] = 1 if progress.step + 1 == interrupt else None
            if keep and rank == 0 and progress.step < this.method.plan.total_steps:
                step = f"step-{progress.step:08}"
                shutil.copytree(folder / name / "whole" / step, folder / name / f"at-{progress.step}" / step)

        with contextlib.suppress(Interrupted):
            this.train(report)
        interrupt_after[0] = None
        if place_of == "whole":
            finish(this, name)
        this.engine.destroy()
        gc.collect()
        return seen

    for name, value in spec["trials"].items():
        trial = Trial.model_validate(value)
        found: dict[Any, Any] = {"whole": run(trial, name, "whole", keep=True), "final": final}
        distributed.barrier()
        for point in spec["points"]:
            found[point] = run(trial, name, f"at-{point}", until=point + 4)
        if spec["interrupt"]:
            run(trial, name, "interrupted", interrupt=spec["interrupt"])
            found["interrupted"] = run(trial, name, "interrupted")
        torch.save(found, folder / f"{name}-{rank}.pt")
    distributed.barrier()


if __name__ == "__main__":
    main()
    # Not the interpreter's own end: threads of torch.distributed that still run make that abort now and then.
    sys.stdout.flush()
    os._exit(0)
