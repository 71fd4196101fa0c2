"""Train, evaluate and record one run: `python pipelines/train.py --suite commonsense --method beamlora`."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from beamplatform.cli.exit_codes import main_guard
from beamplatform.cli.options import Parser, add_suite_options, check_name, load, unsafe_options
from beamplatform.errors import UserError, shortened

EXAMPLES = """examples:
  python pipelines/train.py --suite commonsense --method beamlora
  python pipelines/train.py --suite commonsense --method lora --seed 3 --set methods.lora.r=16
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one trial; return 0 if it succeeded, 1 if it failed, 2 for bad input, 130 on Ctrl-C."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add_suite_options(parser)
    parser.add_argument("--method", required=True, help="one of the suite's methods")
    parser.add_argument("--seed", default="0", help="training seed (default: 0)")
    parser.add_argument("--name", help="the run's name; default: suite, method, seed and time")
    arguments = parser.parse_args(argv)

    check_name(arguments.name)
    if not re.fullmatch(r"-?[0-9]{1,20}", arguments.seed):
        raise UserError(
            f"--seed {shortened(arguments.seed)}: must be one number; pipelines/sweep.py takes several (--seeds)"
        )
    suite, preset_name, preset = load(arguments, {"--seed": ("search.seeds", f"[{int(arguments.seed)}]")})
    if arguments.method not in preset.methods:
        raise UserError(f"--method {arguments.method}: not in this preset; allowed: {', '.join(preset.methods)}")
    searched = preset.space(arguments.method).domains
    if searched:
        key = next(iter(searched))
        raise UserError(
            f"--method {arguments.method}: this preset searches {', '.join(searched)}; a single run needs one value "
            f"each, such as --set methods.{arguments.method}.{key}={searched[key].values[0]}"
        )
    from beamplatform.sweep.command import Request, sweep

    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = arguments.name or f"{suite.name}-{arguments.method}-seed{int(arguments.seed)}-{stamp}"
    return sweep(
        Request(
            suite.name,
            preset_name,
            preset,
            [arguments.method],
            name=name,
            storage=arguments.storage,
            tracking_uri=arguments.tracking_uri,
            options=unsafe_options(arguments),
            probe=False,
        )
    )


if __name__ == "__main__":
    main_guard(main)
