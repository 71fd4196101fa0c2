"""Search, train, evaluate and compare: `python pipelines/sweep.py --suite commonsense`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from beamplatform.cli import main_guard
from beamplatform.errors import UserError
from beamplatform.options import add_suite_options, as_list, load, split, suite_name, unsafe_options

if TYPE_CHECKING:
    from beamplatform.sweep.saved import SavedSweep

EXAMPLES = """examples:
  python pipelines/sweep.py --suite commonsense                 the embedded world without a GPU, the paper's with one
  python pipelines/sweep.py --suite commonsense --dry-run       what would run, and its memory; starts nothing
  python pipelines/sweep.py --suite commonsense --methods beamlora,lora --seeds 0,1,2
  python pipelines/sweep.py --suite commonsense --methods all   all nine methods
  python pipelines/sweep.py --suite commonsense --search tpe --trials 16
  python pipelines/sweep.py --suite commonsense --resume        go on after an interruption
  python pipelines/sweep.py --suite commonsense --extend --seeds 2,3   two more seeds for the last sweep
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
    parser.add_argument(
        "--seeds", metavar="0,1", help="training seeds of each method's chosen configuration, instead of the suite's"
    )
    parser.add_argument(
        "--search", metavar="NAME", help="how configurations are searched: random, grid, tpe, asha, hyperband or bohb"
    )
    parser.add_argument("--trials", metavar="N", help="configurations tried for each method")
    parser.add_argument(
        "--budget",
        metavar="HOURS",
        help="GPU-hours of search for each method (on CPUs worker-hours), not --trials",
    )
    parser.add_argument("--max-concurrent", metavar="N", help="most trials at once; default: as many as fit")
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="NAME",
        help="go on with an interrupted sweep of this suite (default: its last one), as it was started",
    )  # fmt: skip
    parser.add_argument(
        "--extend", nargs="?", const="", metavar="NAME",
        help="add methods, seeds or trials to a sweep of this suite (default: its last one); what is done stays",
    )  # fmt: skip
    parser.add_argument("--no-probe", action="store_true", help="do not time the first steps before the sweep starts")
    parser.add_argument("--name", help="the sweep's name; default: suite, preset and time")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved trials and estimated memory, then stop"
    )
    arguments = parser.parse_args(argv)

    if arguments.resume is not None:
        return _resume(arguments)
    if arguments.trials is not None and arguments.budget is None:
        arguments.overrides.append("search.budget=null")  # the one takes the place of the other
    saved = _extended(arguments) if arguments.extend is not None else None
    seeds = {"--seeds": ("search.seeds", as_list(arguments.seeds))}
    suite, preset_name, preset = load(arguments, seeds | _searched(arguments))
    named = split(arguments.methods) if arguments.methods else preset.default_methods()
    methods = list(preset.methods if "all" in named else dict.fromkeys(named))
    for method in methods:
        if method not in preset.methods:
            raise UserError(
                f"--methods {method}: not in preset {preset_name}; allowed: all, {', '.join(preset.methods)}"
            )
    from beamplatform.sweep.command import Request, dry_run, sweep

    name = arguments.name or f"{suite.name}-{preset_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    request = Request(
        suite.name,
        preset_name,
        preset,
        methods,
        name=saved.name if saved is not None else name,
        storage=arguments.storage,
        tracking_uri=arguments.tracking_uri,
        saved=saved,
        options=unsafe_options(arguments),
        extended=saved is not None,
        typed=_typed(arguments),
        probe=not arguments.no_probe,
    )
    return dry_run(request) if arguments.dry_run else sweep(request)


def _searched(arguments: argparse.Namespace) -> dict[str, tuple[str, str | None]]:
    """The options of the search: option -> (key of the preset, value)."""
    return {
        "--search": ("search.algorithm", arguments.search),
        "--trials": ("search.trials", arguments.trials),
        "--budget": ("search.budget", arguments.budget),
        "--max-concurrent": ("search.max_concurrent", arguments.max_concurrent),
    }


def _typed(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that an extension takes over from its sweep; those of the search as values of the preset."""
    added = [f"{key}={value}" for key, value in _searched(arguments).values() if value is not None]
    return {"data_dir": arguments.data_dir, "overrides": [*arguments.overrides, *added]}


def _extended(arguments: argparse.Namespace) -> SavedSweep:
    """The sweep to extend; `arguments` become its options and what is given now: added, or in place of the old."""
    from beamplatform.sweep.saved import find_sweep, storage_of

    if arguments.name:
        raise UserError("--name: an extended sweep keeps its name; leave it out, or start another sweep")
    suite = suite_name(arguments.suite)
    saved = find_sweep(storage_of(arguments.storage), suite, arguments.extend or None, "--extend")
    if arguments.preset not in (None, saved.preset_name):
        raise UserError(f"--preset {arguments.preset}: the sweep {saved.name} is of the preset {saved.preset_name}")
    arguments.preset = saved.preset_name
    arguments.data_dir = arguments.data_dir or saved.options.get("data_dir")
    arguments.overrides = [*saved.options.get("overrides", []), *_typed(arguments)["overrides"]]
    arguments.methods = ",".join([*saved.methods, *split(arguments.methods or "")])
    seeds = [str(seed) for seed in saved.resolved().search.seeds]
    arguments.seeds = ",".join(dict.fromkeys([*seeds, *split(arguments.seeds or "")]))
    return saved


def _resume(arguments: argparse.Namespace) -> int:
    """The sweep as it was started; what would change it is refused."""
    from beamplatform.sweep.command import resume

    fixed = ("preset", "data_dir", "overrides", "methods", "seeds", "search", "trials", "budget", "name", "dry_run")
    given = [option for option in fixed if getattr(arguments, option)]
    if given:
        option = {"overrides": "--set"}.get(given[0], "--" + given[0].replace("_", "-"))
        raise UserError(f"{option}: a resumed sweep goes on as it was started; leave it out, or use --extend")
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
