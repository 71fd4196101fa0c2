"""A worker process of the training tests, without Ray: `one_worker.py SPEC RANK WORLD PORT`.

SPEC is a JSON file {"trial": ..., "folder": ..., "checkpoints": location or null}. Worker 0 writes into the folder
`rows.json` (metrics by step), `final.pt` (trained parameters by name, whole, and the logits of token ids 3..98) and the
export.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    spec_path, rank, world, port = sys.argv[1:]
    spec = json.loads(Path(spec_path).read_text())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}

    import torch
    from torch import distributed

    from beamplatform.config.trial import Trial
    from beamplatform.training.checkpoint_store import CheckpointStore
    from beamplatform.training.engine import whole_parameters
    from beamplatform.training.loop import Worker
    from beamplatform.training.run import start_run

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    folder = Path(spec["folder"])
    checkpoints = CheckpointStore(spec["checkpoints"]) if spec["checkpoints"] else None
    run = start_run(
        Trial.model_validate(spec["trial"]), Worker(int(rank), int(world), torch.device("cpu")), checkpoints
    )
    run.train(lambda progress: None)
    rows = run.progress.rows
    with whole_parameters(run.engine) as model:
        final = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    ids = torch.arange(3, 99).reshape(4, 24)
    run.engine.eval()
    with torch.no_grad():
        final["logits"] = run.engine(input_ids=ids).logits.float()
    run.export(str(folder / "export"))
    if rank == "0":
        (folder / "rows.json").write_text(json.dumps(rows))
        torch.save(final, folder / "final.pt")
    distributed.barrier()


if __name__ == "__main__":
    main()
    # Not the interpreter's own end: threads of torch.distributed that still run make that abort now and then.
    sys.stdout.flush()
    os._exit(0)
