"""Score adapters or merged models: `python pipelines/evaluate.py --suite commonsense --adapter PATH`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from beamplatform.cli.exit_codes import main_guard
from beamplatform.cli.options import (
    Parser,
    add_preset_options,
    add_tracking_option,
    as_list,
    as_text,
    load,
    unsafe_options,
)

EXAMPLES = """examples:
  python pipelines/evaluate.py --suite commonsense                                 the base model
  python pipelines/evaluate.py --suite commonsense --adapter runs/SWEEP/trials/TRIAL/export
  python pipelines/evaluate.py --suite commonsense --adapter one --adapter two --engine vllm --output scores/
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; return 0 if all models were scored, 1 if one could not be asked, 2 for bad input, 130 on Ctrl-C."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add_preset_options(parser)
    add_tracking_option(parser)
    parser.add_argument(
        "--adapter", metavar="DIR", action="append", default=[],
        help="a LoRA adapter or a merged model, ours or not; may be repeated, adapters are then asked together; "
        "default: the base model",
    )  # fmt: skip
    parser.add_argument("--model", metavar="PATH", help="the base model, instead of the preset's: a folder or hub id")
    parser.add_argument("--tasks", metavar="A,B", help="only these tasks, instead of the preset's")
    parser.add_argument("--engine", help="auto, transformers or vllm, instead of the preset's")
    parser.add_argument("--max-records", metavar="N", help="only the first N questions of each task")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="write scores.json and predictions/<task>.parquet here"
    )
    parser.add_argument(
        "--answers", metavar="DIR", default="runs/answers",
        help="answers are kept here, and what was answered before is not asked again; a folder or an fsspec URI "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--ask-again", action="store_true", help="neither use nor keep answers")
    arguments = parser.parse_args(argv)

    suite, _, preset = load(
        arguments,
        {
            "--model": ("model.path", as_text(arguments.model)),
            "--tasks": ("evaluation.tasks", as_list("--tasks", arguments.tasks)),
            "--engine": ("evaluation.engine", arguments.engine),
            "--max-records": ("evaluation.max_records", arguments.max_records),
        },
    )
    from beamplatform.evaluation.command import score_exports

    output = arguments.output

    store = None if arguments.ask_again else arguments.answers
    return score_exports(
        suite.name,
        preset,
        [os.path.expanduser(folder) for folder in arguments.adapter],
        output=Path(os.path.expanduser(output)) if output is not None else None,
        store=store,
        tracking_uri=arguments.tracking_uri,
        options=unsafe_options(arguments),
    )


if __name__ == "__main__":
    main_guard(main)
