"""How a pipeline ends: with which exit code and which words, on odd machines too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(folder: Path, body: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A pipeline whose `main` has this body."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    program = (
        "import errno, os, sys\nfrom beamplatform.cli.exit_codes import main_guard\n"
        "from beamplatform.errors import UserError\n"
        f"def main(argv):\n{lines}    return 0\nmain_guard(main)\n"
    )
    (folder / "pipeline.py").write_text(program, encoding="utf-8")
    line = [sys.executable, "pipeline.py"]
    environment = {**os.environ, **variables}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300)


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ("raise UserError('a\\nb')", 2, "error: a b\n"),
        (
            "raise OSError(errno.ENOSPC, 'Disk full', 'there')",
            2,
            "error: there: Disk full\n",
        ),
        ("raise OSError(errno.EROFS, 'Read-only file system')", 2, "error: Read-only file system\n"),
        ("open('x' * 300)", 2, f"error: {'x' * 300}: File name too long\n"),
        ("raise MemoryError", 2, "error: there is not enough memory on this machine\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("raise BrokenPipeError", 141, ""),
    ],
)
def test_what_a_user_or_a_machine_can_cause_is_one_line(tmp_path: Path, body: str, code: int, error: str) -> None:
    done = run(tmp_path, body)
    assert (done.returncode, done.stderr) == (code, error)


def test_a_defect_keeps_its_traceback(tmp_path: Path) -> None:
    for body in ("raise KeyError('x')", "raise OSError('of no number')"):
        done = run(tmp_path, body)
        assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_without_utf8_in_the_locale(tmp_path: Path, locale: str) -> None:
    body = "open('file', 'w').write('±')\nprint('±', sys.argv[0])\nprint('→', file=sys.stderr)"
    done = run(tmp_path, body, LC_ALL=locale, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "± pipeline.py\n", "→\n")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "±"


def test_an_output_that_cannot_show_a_sign(tmp_path: Path) -> None:
    done = run(tmp_path, "print('±')", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xb1\n", "")


def test_a_user_without_a_home(tmp_path: Path) -> None:
    body = "from pathlib import Path\nprint(Path.home().is_dir(), Path.home())"
    done = run(tmp_path, body, HOME="nowhere")
    there, _, home = done.stdout.strip().partition(" ")
    assert done.returncode == 0 and there == "True" and not Path(home).exists(), "gone at the end"


def test_output_that_the_caller_has_closed(tmp_path: Path) -> None:
    body = "print('nobody reads this')\nopen('file', 'w').write(str(os.open('other', os.O_CREAT)))"
    run(tmp_path, body)
    done = subprocess.run(["sh", "-c", f"{sys.executable} pipeline.py >&- 2>&-"], cwd=tmp_path, timeout=300)
    assert done.returncode == 0 and int((tmp_path / "file").read_text()) > 2
