"""Search, train, evaluate and compare: `python pipelines/sweep.py --suite commonsense`."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from beamplatform.cli.exit_codes import main_guard
from beamplatform.cli.options import (
    Parser,
    add_suite_options,
    as_text,
    check_name,
    load,
    seeds_of,
    split,
    suite_name,
    unsafe_options,
)
from beamplatform.errors import UserError, shortened

if TYPE_CHECKING:
    from beamplatform.config.suite import Preset
    from beamplatform.sweep.plan.saved_sweep import SavedSweep

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
    """Run one sweep; return 0 if every trial succeeded, 1 if some failed, 2 for bad input, 130 on Ctrl-C."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add_suite_options(parser)
    parser.add_argument(
        "--methods", metavar="A,B",
        help="these methods of the suite, in this order, or 'all'; default: those the preset names in search.methods",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", metavar="0,1",
        help="training seeds of each method's chosen configuration, instead of the suite's; 0-3 is 0,1,2,3",
    )  # fmt: skip
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

    check_name(arguments.name)
    if arguments.resume is not None:
        return _resume(arguments)
    _trials_or_budget(arguments)
    named = None if arguments.methods is None else split("--methods", arguments.methods)
    seeds = None if arguments.seeds is None else seeds_of("--seeds", arguments.seeds)
    saved = _extended(arguments) if arguments.extend is not None else None
    earlier: list[str] = []
    if saved is not None:
        before = [str(seed) for seed in saved.resolved().search.seeds]
        seeds = None if seeds is None else list(dict.fromkeys([*before, *seeds]))
        folder = saved.options.get("data_dir")
        earlier = [f"data.source={as_text(folder)}"] if folder is not None else []
        earlier += [*saved.options.get("overrides", []), f"search.seeds=[{', '.join(before)}]"]
    seeds_option = {"--seeds": ("search.seeds", None if seeds is None else f"[{','.join(seeds)}]")}
    suite, preset_name, preset = load(arguments, seeds_option | _searched(arguments), earlier)
    methods = _methods(named, saved, preset_name, preset)
    from beamplatform.sweep.command import Request, dry_run, sweep

    if saved is not None:
        name = saved.name
    else:
        name = arguments.name or f"{suite.name}-{preset_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    request = Request(
        suite.name,
        preset_name,
        preset,
        methods,
        name=name,
        storage=arguments.storage,
        tracking_uri=arguments.tracking_uri,
        saved=saved,
        options=unsafe_options(arguments),
        extended=saved is not None,
        typed=_typed(arguments, saved),
        probe=not arguments.no_probe,
    )
    return dry_run(request) if arguments.dry_run else sweep(request)


def _trials_or_budget(arguments: argparse.Namespace) -> None:
    """Remove the budget of the suite, or of the sweep to extend, if a number of trials is given instead."""
    overrides = dict(text.partition("=")[::2] for text in arguments.overrides)
    trials = arguments.trials or overrides.get("search.trials")
    budget = arguments.budget or overrides.get("search.budget")
    if trials and budget not in (None, "null", "~"):
        raise UserError(f"--trials {trials}, --budget {budget}: give one of the two, not both")
    if trials and budget is None:
        arguments.overrides.append("search.budget=null")


def _searched(arguments: argparse.Namespace) -> dict[str, tuple[str, str | None]]:
    """Return the search options: option -> (key of the preset, value)."""
    return {
        "--search": ("search.algorithm", arguments.search),
        "--trials": ("search.trials", arguments.trials),
        "--budget": ("search.budget", arguments.budget),
        "--max-concurrent": ("search.max_concurrent", arguments.max_concurrent),
    }


def _typed(arguments: argparse.Namespace, saved: SavedSweep | None) -> dict[str, Any]:
    """Return the options to save for later extensions; search options are written as overrides (`KEY=VALUE`)."""
    before = saved.options if saved is not None else {}
    searched = [f"{key}={value}" for key, value in _searched(arguments).values() if value is not None]
    return {
        "data_dir": arguments.data_dir or before.get("data_dir"),
        "overrides": [*before.get("overrides", []), *arguments.overrides, *searched],
    }


def _methods(named: list[str] | None, saved: SavedSweep | None, preset_name: str, preset: Preset) -> list[str]:
    """Return the methods to compare, in order: those of the sweep to extend, if any, then those named.

    Without either, return the preset's default methods.
    """
    if named is not None and "all" in named:
        if len(named) > 1:
            raise UserError(f"--methods {','.join(named)}: all means every method; name it alone")
        named = list(preset.methods)
    if saved is not None:
        named = list(dict.fromkeys([*saved.methods, *(named or ())]))
    for method in named or ():
        if method not in preset.methods:
            raise UserError(
                f"--methods {method}: not in preset {preset_name}; allowed: all, {', '.join(preset.methods)}"
            )
    return list(named or preset.default_methods())


def _extended(arguments: argparse.Namespace) -> SavedSweep:
    """Return the sweep to extend, and set `arguments.preset` to its preset."""
    from beamplatform.sweep.plan.saved_sweep import find_sweep, storage_of

    if arguments.name is not None:
        raise UserError("--name: an extended sweep keeps its name; leave it out, or start another sweep")
    suite = suite_name(arguments.suite)
    saved = find_sweep(storage_of(arguments.storage), suite, arguments.extend or None, "--extend")
    if arguments.preset not in (None, saved.preset_name):
        raise UserError(f"--preset {arguments.preset}: the sweep {saved.name} is of the preset {saved.preset_name}")
    arguments.preset = saved.preset_name
    return saved


def _resume(arguments: argparse.Namespace) -> int:
    """Resume a sweep as it was started, and return the exit code. Options that would change the sweep are refused."""
    from beamplatform.sweep.command import resume

    fixed = ("preset", "data_dir", "overrides", "methods", "seeds", "search", "trials", "budget", "name", "dry_run",
             "extend")  # fmt: skip
    refused = [option for option in fixed if getattr(arguments, option) not in (None, False, [])]
    if refused:
        option = {"overrides": "--set"}.get(refused[0], "--" + refused[0].replace("_", "-"))
        raise UserError(f"{option}: a resumed sweep goes on as it was started; leave it out, or use --extend")
    concurrent = None
    if arguments.max_concurrent is not None:
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", arguments.max_concurrent):
            raise UserError(
                f"--max-concurrent {shortened(arguments.max_concurrent)}: must be an integer from 1 to 10^9"
            )
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
