"""A forked program is to its caller what a program that was started anew would be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest

PROGRAM = """
import atexit, os, signal, sys, threading, time
atexit.register(lambda: print("at exit"))
print(sys.argv[1:], os.getcwd(), sorted(os.environ), __name__, os.getpgid(0) == os.getpid())
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, file=sys.stderr)
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
if sys.argv[1] == "wait":
    open("ready", "w").close()
    time.sleep(600)
if sys.argv[1] == "raise":
    raise ValueError("why")
sys.exit({"word": "a word", "number": 3}.get(sys.argv[1]))
"""
ENVIRONMENT = {"PATH": os.environ["PATH"], "OWN": "1", "LC_CTYPE": "C.UTF-8"}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.mark.parametrize("ending", ["none", "number", "word", "raise"])
def test_output_environment_folder_and_exit_code_are_those_of_a_process_of_its_own(script: Path, ending: str) -> None:
    folder = script.parent
    line = [sys.executable, script, ending, "two words"]
    alone = subprocess.run(  # heeding SIGINT, which a shell's background job, as these tests may be, hands down ignored
        line, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, preexec_fn=forked._heed_interrupts
    )
    found = forked.run(script, ending, "two words", folder=folder, environment=ENVIRONMENT)
    assert (found.returncode, found.stdout) == (alone.returncode, alone.stdout)
    assert found.stderr.splitlines()[-1] == alone.stderr.splitlines()[-1] and "thread\nat exit" in found.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signals_reach_it(script: Path, number: signal.Signals) -> None:
    program = forked.start(script, "wait", output=script.parent, folder=script.parent, session=True)
    while not (script.parent / "ready").exists():
        time.sleep(0.05)
    assert program.poll() is None and os.getpgid(program.pid) == program.pid
    program.send_signal(number)
    output, errors = program.communicate(timeout=60)
    assert program.returncode == -number
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT) and "True" in output


def test_it_has_torch_at_once_and_no_thread_of_the_server(tmp_path: Path) -> None:
    script = tmp_path / "loaded.py"
    script.write_text("import sys, threading\nprint('torch' in sys.modules, threading.active_count())")
    assert forked.run(script).stdout == "True 1\n"


def test_what_libraries_read_while_they_are_imported_is_the_programs_own(tmp_path: Path) -> None:
    script = tmp_path / "asks.py"
    script.write_text("import sys; from huggingface_hub import constants; print(constants.ENDPOINT, sys.argv[1:])")
    mirror = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:1"}
    assert forked.run(script, "a b", environment=mirror).stdout == "http://127.0.0.1:1 ['a b']\n"
    assert "127.0.0.1" not in forked.run(script).stdout


def test_what_ray_has_read_at_its_import_is_the_programs_own(tmp_path: Path) -> None:
    """A token's use is set in the environment by each `ray.init`, for whatever is started afterwards."""
    script = tmp_path / "asks.py"
    script.write_text(
        "import ray; from ray._raylet import Config, get_authentication_mode\n"
        "from ray._private.ray_constants import RAY_LOG_TO_DRIVER as log\n"
        "print(int(get_authentication_mode()), Config.metrics_report_interval_ms(), log)"
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for changes, expected in (
        ({}, "0 10000 True\n"),
        ({"RAY_AUTH_MODE": "token"}, "1 10000 True\n"),
        ({"RAY_metrics_report_interval_ms": "2000"}, "0 2000 True\n"),
        ({"RAY_LOG_TO_DRIVER": "0"}, "0 10000 False\n"),
    ):
        assert forked.run(script, environment={**plain, **changes}).stdout == expected
