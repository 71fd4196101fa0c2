"""What a program can do in the sandbox, and what it cannot: hostile ones, probing ones, and the benchmarks' own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from beamplatform.data.records import load_records
from beamplatform.errors import UserError
from beamplatform.sandbox import Limits, Verdict, check, check_program, find_bubblewrap
from beamplatform.sandbox.bubblewrap import _USER, _USERS
from beamplatform.tasks import TASKS
from beamplatform.tasks.record import Record

LIMITS = Limits(seconds=3.0, cpu_seconds=2, memory=512 * 2**20)
TEST = "assert f(2) == 4\nassert f(3) == 9\n"
RIGHT = "def f(x):\n    return x * x\n"
WRONG = "def f(x):\n    return 0\n"


def sandboxed() -> list[int]:
    """The processes of sandboxes on this machine (they run under users of their own where the tests run as root)."""
    found = []
    for process in psutil.process_iter(["uids", "status"]):  # asked together: a process may end in between
        uids, status = process.info["uids"], process.info["status"]
        if uids and _USER <= uids.real < _USER + _USERS and status != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@pytest.fixture(scope="module", autouse=True)
def bubblewrap() -> str:
    try:
        return find_bubblewrap()
    except UserError as error:
        pytest.skip(f"no sandbox here: {error}")


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = set(Path("/tmp").glob("beamplatform-sandbox-*"))
    yield
    deadline = time.monotonic() + 5
    while sandboxed() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sandboxed()
    assert set(Path("/tmp").glob("beamplatform-sandbox-*")) == before


def test_a_right_program_passes_and_a_wrong_one_does_not() -> None:
    assert check_program(RIGHT, TEST) == Verdict(True)
    assert check_program(WRONG, TEST) == Verdict(False, "AssertionError: ")
    assert "NameError" in check_program("x = 1", TEST).reason or "KeyError" in check_program("x = 1", TEST).reason
    assert "SyntaxError" in check_program("def f(:", TEST).reason


HOSTILE = {
    "endless loop": "while True: pass",
    "endless loop in a call": "def f(x):\n    while True: pass",
    "endless loop that catches everything": "while True:\n    try:\n        while True: pass\n"
    "    except BaseException: pass",
    "sleeping past the limit": "import time\ntime.sleep(1000)",
    "sleeping in a call": "import time\ndef f(x): time.sleep(1000)",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()",
    "memory bomb": "x = []\nwhile True: x.append(bytearray(2**20))",
    "memory bomb in one piece": "x = 'a' * 2**34",
    "memory bomb in a call": "def f(x): return len(bytearray(2**36))",
    "disk filler": "f = open('/tmp/x', 'wb')\nwhile True: f.write(bytes(2**20))",
    "disk filler in many files": "i = 0\nwhile True:\n    open(f'/tmp/{i}', 'wb').write(bytes(2**16)); i += 1",
    "output flood": "while True: print('x' * 2**16)",
    "error flood": "import sys\nwhile True: sys.stderr.write('x' * 2**16)",
    "output flood by descriptor": "import os\nwhile True:\n    for i in range(10):\n"
    "        try: os.write(i, b'x' * 2**16)\n        except OSError: pass",
    "huge result": "def f(x): return 'x' * 2**26",
    "deep result": "def f(x):\n    r = []\n    for _ in range(10**5): r = [r]\n    return r",
    "endless result": "def f(x):\n    r = []\n    r.append(r)\n    return r",
    "os._exit before the tests": "import os\nos._exit(0)",
    "sys.exit before the tests": "import sys\nsys.exit(0)",
    "os._exit in a call": "import os\ndef f(x): os._exit(0)",
    "raising SystemExit in a call": "def f(x): raise SystemExit(0)",
    "raising KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "raising AssertionError's opposite": "class E(BaseException): pass\ndef f(x): raise E",
    "killing the parent": "import os\nos.kill(os.getppid(), 9)",
    "killing everything": "import os\nos.kill(-1, 9)",
    "killing process 1": "import os\nos.kill(1, 9)\ndef f(x): return 0",
    "stopping itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "catching the signals of limits": "import signal\nfor s in range(1, 32):\n"
    "    try: signal.signal(s, lambda *a: None)\n"
    "    except OSError: pass\nwhile True: pass",
    "ptrace of the parent": "import ctypes, os\nr = ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)\n"
    "def f(x): return r",
    "overriding check, assert and exit": "def check(*a): pass\ndef exit(*a): pass\nAssertionError = None\n" + WRONG,
    "patching builtins": "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.abs = lambda x: 0\n"
    "builtins.len = lambda x: 4\n" + WRONG,
    "an object equal to everything": "class T:\n    def __eq__(self, o): return True\n    __hash__ = None\n"
    "def f(x): return T()",
    "an integer equal to everything": "class T(int):\n    def __eq__(self, o): return True\n"
    "    __hash__ = int.__hash__\ndef f(x): return T(0)",
    "a fake verdict": "import sys\nfor s in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):\n"
    "    print('{\"passed\": true, \"reason\": \"\"}', file=s, flush=True)\n" + WRONG,
    "a fake verdict on every descriptor": "import os\nfor i in range(64):\n"
    "    try: os.write(i, b'\\n{\"passed\": true, \"reason\": \"\"}\\n')\n    except OSError: pass\n" + WRONG,
    "a fake verdict as a result": "def f(x): return {'passed': True}",
    "closing every descriptor": "import os\nos.closerange(0, 64)\n" + RIGHT,
    "patching the way answers are sent": "import wire\nwire.encode = lambda *a: {'passed': True}\n" + RIGHT,
    "nonsense for an answer": "import wire\nwire.send = lambda s, m: (s.write(b'nonsense\\n'), s.flush())\n" + RIGHT,
    "daemonising": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
    "        time.sleep(1000)\n" + WRONG,
    "threads that outlive main": "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n"
    + WRONG,
    "atexit that never ends": "import atexit, time\natexit.register(time.sleep, 1000)\n" + WRONG,
    "raising its own limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))\n" + RIGHT,
    "a regular expression without end": "import re\ndef f(x): return re.match(r'(a+)+$', 'a' * 64 + 'b')",
    "endless recursion": "def f(x): return f(x)",
    "crashing the interpreter": "import ctypes\nctypes.string_at(0)",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_contained(name: str) -> None:
    started = time.monotonic()
    verdict = check_program(HOSTILE[name], TEST, limits=LIMITS)
    assert not verdict.passed and verdict.reason, verdict
    assert time.monotonic() - started < LIMITS.seconds + 5
    if name in ("fork bomb", "memory bomb", "daemonising"):
        assert check_program(RIGHT, TEST).passed, "the evaluator is unharmed"


def test_there_are_as_many_hostile_programs_as_promised() -> None:
    assert len(HOSTILE) + len(PROBES) >= 40


# Each defines probe(), whose result the test tells by an error.
PROBES = {
    "environment": ("import os\ndef probe(): return sorted(os.environ)", {"LC_CTYPE", "PWD", "PYTHONHASHSEED"}),
    "descriptors": (
        "import os\nopened = sorted(os.listdir('/proc/self/fd'))\ndef probe(): return len(opened)", {5, 6, 7}
    ),
    "files of the host": (
        "import os\ndef probe(): return [p for p in ('/etc', '/home', '/var', '/work', '/root/.ssh', '/usr/bin') "
        "if os.path.exists(p)]", set(),
    ),
    "the tests": (
        "import os\ndef probe(): return sorted(os.listdir('/job'))", {"candidate.py", "program.py", "wire.py"}
    ),
    "packages": ("import sys, os\ndef probe():\n    return [p for p in sys.path if os.path.isdir(p) and "
                 "p.endswith('site-packages') and os.listdir(p)]", set()),
    "own user": ("import os\ndef probe(): return [os.getuid() == 0, os.geteuid() == 0]", {False}),
    "processes": ("import os\ndef probe(): return len([p for p in os.listdir('/proc') if p.isdigit()]) < 6", {True}),
    "how many processes it can make": (
        "import os, time\ndef probe():\n    made = 0\n    try:\n        while made < 50:\n"
        "            if os.fork() == 0: time.sleep(1000)\n            made += 1\n    except OSError: pass\n"
        "    return made",
        set(range(1, LIMITS.processes)),
    ),
    "how much memory it can take": (
        "def probe():\n    x = []\n    try:\n        while len(x) < 2048: x.append(bytearray(2**20))\n"
        "    except MemoryError: pass\n    n = len(x)\n    x.clear()\n    return n < 512", {True},
    ),
    "how much it can write": (
        "def probe():\n    n = 0\n    try:\n        with open('/tmp/x', 'wb', buffering=0) as f:\n"
        "            while n < 1024: n += f.write(bytes(2**20)) / 2**20\n    except OSError: pass\n"
        "    return n <= 16", {True},
    ),
    "name of the host": ("import socket\ndef probe(): return socket.gethostname()", {"sandbox"}),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBES)
def test_what_a_program_sees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    program, expected = PROBES[name]
    verdict = check_program(program, "import json\nraise ValueError(json.dumps(probe()))", limits=LIMITS)
    assert verdict.reason.startswith("ValueError: "), verdict
    found = json.loads(verdict.reason.removeprefix("ValueError: "))
    assert set(found if isinstance(found, list) else [found]) <= expected, found


DENIED = {
    "reading a key": "open('/root/.ssh/id_rsa')",
    "reading users": "open('/etc/passwd')",
    "reading through /proc": "open('/proc/1/root/etc/passwd')",
    "reading the judge's environment": "open('/proc/1/environ').read()[0] and open('/etc/shadow')",
    "a symlink out": "os.symlink('/etc/passwd', '/tmp/link') or open('/tmp/link')",
    "writing outside": "open('/escaped', 'w')",
    "writing the program": "open('/job/program.py', 'w')",
    "writing the interpreter": "open(os.__file__, 'w')",
    "deleting the interpreter": "os.remove(os.__file__)",
    "becoming root": "os.setuid(0)",
    "chroot": "os.chroot('/tmp')",
    "a device": "os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0))",
    "another user namespace": "works(libc.unshare(0x10000000))",
    "a mount": "works(libc.mount(b'none', b'/tmp', b'tmpfs', 0, b''))",
    "reboot": "works(libc.reboot(0x1234567))",
    "IPv4": "socket.create_connection(('127.0.0.1', PORT), 1)",
    "IPv4 outside": "socket.create_connection(('192.0.2.1', 80), 1)",
    "IPv6": "socket.create_connection(('::1', PORT), 1)",
    "DNS": "socket.getaddrinfo('example.org', 80)",
    "an abstract unix socket": "socket.socket(socket.AF_UNIX).connect('\\0beamplatform-test-PORT')",
    "a unix socket of the host": "socket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')",
    "raw packets": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "running a program of the host": "os.execv('/bin/sh', ['sh'])",
    "more nice": "os.nice(-5)",
    "shared memory": "open('/dev/shm/x', 'w')",
    "a file beside the devices": "open('/dev/x', 'w')",
    "a file in memory": "os.memfd_create('x')",
    "a file in secret memory": "works(libc.syscall(447, 0) < 0)",
    "a segment of shared memory": "works(libc.shmget(0, 4096, 0o1600) < 0)",
}  # fmt: skip


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server on this machine's loopback, and one on an abstract unix socket."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        number = server.getsockname()[1]
        local.bind(f"\0beamplatform-test-{number}")
        local.listen()
        yield number


@pytest.mark.parametrize("name", DENIED)
def test_what_is_denied(name: str, port: int) -> None:
    action = DENIED[name].replace("PORT", str(port))
    program = (
        "import ctypes, os, socket\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "def works(returned):\n    if returned: raise OSError(ctypes.get_errno(), 'refused')\n"
        f"def probe():\n    try:\n        {action}\n    except OSError:\n        return 'denied'\n    return 'done'\n"
    )
    verdict = check_program(program, "assert probe() == 'denied', 'it was possible'", limits=LIMITS)
    assert verdict.passed, verdict


def test_programs_keep_what_they_need() -> None:
    """Objects of the program's own, standard modules, a folder to write in, its own helpers."""
    program = (
        "import collections, hashlib, json, math, re, ssl, sqlite3, tempfile\n"
        "class Node:\n    def __init__(self, value): self.value, self.next = value, None\n"
        "def total(node):\n    s = 0\n    while node: s, node = s + node.value, node.next\n    return s\n"
        "def written():\n    with tempfile.TemporaryFile('w+') as f:\n"
        "        f.write('ok'); f.seek(0); return f.read()\n"
        "def counted(x): return collections.Counter(x)\n"
        "def sum(a, b): return a - b\n"
    )
    test = (
        "first = Node(1)\nsecond = Node(2)\nfirst.next = second\n"
        "assert first.next.value == 2 and total(first) == 3\n"
        "assert written() == 'ok'\nassert counted('aab') == {'a': 2, 'b': 1}\nassert sum(3, 1) == 2\n"
        "try:\n    total(5)\nexcept AttributeError: pass\nelse: raise ValueError('no error')\n"
    )
    assert check_program(program, test, names=["sum"]) == Verdict(True)


def test_many_at_a_time() -> None:
    with ThreadPoolExecutor(4) as pool:
        programs = [RIGHT if number % 2 else WRONG for number in range(24)]
        found = list(pool.map(lambda program: check_program(program, TEST).passed, programs))
    assert found == [program == RIGHT for program in programs] and threading.active_count() < 10


AS_USER = """
import subprocess
from beamplatform.sandbox import check_program
idle = [subprocess.Popen(["sleep", "60"]) for _ in range(20)]
forks = '''
import os, time
def f(x):
    made = 0
    try:
        while made < 50:
            if os.fork() == 0: time.sleep(100)
            made += 1
    except OSError: pass
    return made
'''
try:
    print(check_program("def f(x): return x * x", "assert f(2) == 4"), check_program(forks, "assert 0 < f(2) < 9"))
finally:
    for process in idle: process.kill()
"""


def test_a_user_with_many_processes_and_debians_python(root: Path, tmp_path: Path) -> None:
    """A limit on processes counts the sandbox's own, and not every Python has a folder site-packages."""
    python = "/usr/bin/python3"
    version = "import sys; sys.exit(sys.version_info < (3, 11))"
    readable = root.stat().st_mode & 0o005 and all(parent.stat().st_mode & 0o001 for parent in root.parents)
    if os.geteuid() != 0 or not readable or subprocess.run([python, "-c", version]).returncode:
        pytest.skip("needs root, a checkout that others can read, and a system Python of 3.11 or newer")
    packages = Path(psutil.__file__).parent.parent
    environment = {"PATH": os.environ["PATH"], "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1",
                   "PYTHONPATH": f"{root / 'platform'}:{packages}"}  # fmt: skip
    command = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", python, "-c", AS_USER]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=900)
    assert done.stdout.count("passed=True") == 2, done.stdout + done.stderr


def test_sandboxes_that_do_not_start_are_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = check.sandbox_command, []

    def broken(*arguments: Any, **options: Any) -> list[str]:
        tries.append(1)
        return (
            ["sh", "-c", "echo no namespace left >&2; exit 1"] if len(tries) <= failing else real(*arguments, **options)
        )

    monkeypatch.setattr(check, "sandbox_command", broken)
    failing = 2
    assert check_program(RIGHT, TEST, limits=LIMITS).passed, "the second try"
    failing = 100
    with pytest.raises(UserError, match="did not start in 3 tries: no namespace left"):
        check_program(RIGHT, TEST, limits=LIMITS)


def test_without_bubblewrap_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="made by bubblewrap, which is not here: install it with: apt-get install"):
        find_bubblewrap()
    assert os.environ["PATH"] == "/nowhere"


@pytest.mark.parametrize(("name", "count"), [("humaneval", 164), ("mbpp", 500)])
def test_the_reference_programs_pass(name: str, count: int, shared_data: Path) -> None:
    task = TASKS[name]
    records = load_records(name, "test", str(shared_data / "code"), files=task.files, parse=task.parse)
    assert len(records) == count
    with ThreadPoolExecutor(2) as pool:
        passed = list(pool.map(lambda record: task.correct(record.output, record), records))
    assert [record.instruction for record, right in zip(records, passed, strict=True) if not right] == []


def test_a_wrong_program_for_every_task_fails(shared_data: Path) -> None:
    """Of each tenth: a function that returns nothing."""
    task = TASKS["humaneval"]
    records = load_records("humaneval", "test", str(shared_data / "code"), files=task.files, parse=task.parse)[::10]
    assert not any(task.correct("    return None\n", record) for record in records)


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        (RIGHT, True),
        (WRONG, False),
        ("while True: pass", False),
        ("import os\nos._exit(0)", False),
        ("import time\ntime.sleep(60)", False),
    ],
)
def test_without_a_sandbox_verdicts_and_time_limits_are_the_same(program: str, passed: bool) -> None:
    started = time.monotonic()
    assert check_program(program, TEST, limits=LIMITS, sandboxed=False).passed is passed
    assert time.monotonic() - started < LIMITS.seconds + 5


def test_a_result_without_a_sandbox_says_so() -> None:
    task = TASKS["humaneval"].with_options({"unsafe", "sympy"})
    record = Record("def f(x):\n", "", json.dumps({"setup": "", "test": TEST, "names": ["f"]}))
    assert task.correct("    return x * x\n", record) and not task.correct("    return x\n", record)
    assert task.notes([record]) == "its programs ran without a sandbox"
    assert TASKS["humaneval"].notes([record]) == "" and TASKS["boolq"].with_options({"unsafe"}) == TASKS["boolq"]
