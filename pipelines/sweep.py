"""Search, train, evaluate and compare: `python pipelines/sweep.py --suite commonsense`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from beamplatform.cli import main_guard
from beamplatform.errors import UserError
from beamplatform.options import add_suite_options, as_list, load, suite_name, unsafe_options

EXAMPLES = """examples:
  python pipelines/sweep.py --suite commonsense                 the embedded world without a GPU, the paper's with one
  python pipelines/sweep.py --suite commonsense --dry-run       what would run, and its memory; starts nothing
  python pipelines/sweep.py --suite commonsense --methods beamlora,lora --seeds 0,1,2
  python pipelines/sweep.py --suite commonsense --methods all   all nine methods
  python pipelines/sweep.py --suite commonsense --resume        go on after an interruption
  python pipelines/sweep.py --suite my_suite.yaml --set training.max_steps=500 --set methods.beamlora.p_init=0.97
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sweep; 0 when every trial succeeded, 1 when some failed, 2 for bad input, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_suite_options(parser)
    parser.add_argument(
        "--methods", metavar="A,B",
        help="these methods of the suite, in this order, or 'all'; default: those the preset names in search.methods",
    )  # fmt: skip
    parser.add_argument("--seeds", metavar="0,1", help="training seeds of every configuration, instead of the suite's")
    parser.add_argument("--samples", metavar="N", help="draws from each method's non-grid domains")
    parser.add_argument("--max-concurrent", metavar="N", help="most trials at once; default: as many as fit")
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="NAME",
        help="go on with an interrupted sweep of this suite (default: its last one), as it was started",
    )  # fmt: skip
    parser.add_argument("--name", help="the sweep's name; default: suite, preset and time")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved trials and estimated memory, then stop"
    )
    arguments = parser.parse_args(argv)

    if arguments.resume is not None:
        return _resume(arguments)
    suite, preset_name, preset = load(
        arguments,
        {
            "--seeds": ("search.seeds", as_list(arguments.seeds)),
            "--samples": ("search.samples", arguments.samples),
            "--max-concurrent": ("search.max_concurrent", arguments.max_concurrent),
        },
    )
    named = [name.strip() for name in arguments.methods.split(",")] if arguments.methods else preset.default_methods()
    methods = list(preset.methods if named == ["all"] else dict.fromkeys(named))
    for method in methods:
        if method not in preset.methods:
            raise UserError(
                f"--methods {method}: not in preset {preset_name}; allowed: all, {', '.join(preset.methods)}"
            )
    from beamplatform.sweep.command import dry_run, sweep

    if arguments.dry_run:
        return dry_run(suite, preset_name, preset, methods)
    name = arguments.name or f"{suite.name}-{preset_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return sweep(
        suite,
        preset_name,
        preset,
        methods,
        name=name,
        storage=arguments.storage,
        tracking_uri=arguments.tracking_uri,
        options=unsafe_options(arguments),
    )


def _resume(arguments: argparse.Namespace) -> int:
    """The sweep as it was started; what would change it is refused."""
    from beamplatform.sweep.command import resume

    fixed = ("preset", "data_dir", "overrides", "methods", "seeds", "samples", "name", "dry_run")
    given = [option for option in fixed if getattr(arguments, option)]
    if given:
        option = {"overrides": "--set"}.get(given[0], "--" + given[0].replace("_", "-"))
        raise UserError(f"{option}: a resumed sweep goes on as it was started; leave it out, or start another sweep")
    concurrent = None
    if arguments.max_concurrent is not None:
        if not arguments.max_concurrent.isdecimal() or int(arguments.max_concurrent) < 1:
            raise UserError(f"--max-concurrent {arguments.max_concurrent}: must be an integer >= 1")
        concurrent = int(arguments.max_concurrent)
    return resume(
        suite_name(arguments.suite),
        arguments.resume or None,
        storage=arguments.storage,
        tracking_uri=arguments.tracking_uri,
        concurrent=concurrent,
        options=unsafe_options(arguments),
    )


if __name__ == "__main__":
    main_guard(main)
