"""Runs under a stand-in for Seatbelt: started without a fork, ended by each cap, swept after a killed trainer."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_mac import CONTAINS_NOTHING, fake_sandbox_exec, pretend_mac
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.config import SandboxConfig
from sdpo_mlx.core.errors import SandboxError
from sdpo_mlx.sandbox import attack_cache, bootstrap, seatbelt, watchdog
from sdpo_mlx.sandbox import denials as denials_module
from sdpo_mlx.sandbox.attacks import Attack
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.sandbox.denials import denials
from sdpo_mlx.sandbox.interpreter import python_build
from sdpo_mlx.sandbox.launch import Limits
from sdpo_mlx.sandbox.probe import MAC_CHECKS, Probe
from sdpo_mlx.sandbox.seatbelt import SeatbeltSandbox, end_left_behind
from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox
from sdpo_mlx.sandbox.work_folder import BYTES, ENTRIES, PREFIX, record

MIB = 1 << 20


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    pretend_mac(monkeypatch, tmp_path)
    fake_sandbox_exec(tmp_path, CONTAINS_NOTHING)
    return tmp_path


def test_no_run_on_a_mac_forks_this_process(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forks(*_: object, **__: object) -> None:
        pytest.fail("forked")

    monkeypatch.setattr(os, "fork", forks)
    monkeypatch.setattr(os, "forkpty", forks)
    monkeypatch.setattr(subprocess, "_fork_exec", forks)
    sandbox = SeatbeltSandbox()  # asks what the profile may name, which Python loads, what was left behind
    for each in (sandbox, UnconfinedSandbox()):
        assert each.run("print(input())", b"in").stdout == b"in\n"
    assert sandbox.run("import time; time.sleep(60)", seconds=0.5).status == "timeout"
    assert (mac / "sandbox-exec").exists()


@pytest.mark.parametrize(
    "fills",
    [
        f"for i in range(4):\n    open(str(i), 'wb').write(b'x' * {BYTES // 3})",
        f"for i in range({ENTRIES + 100}):\n    open(str(i), 'w').close()",
        "for i in range(40):\n    os.mkdir('d')\n    os.chdir('d')",
    ],
    ids=["bytes", "names", "depth"],
)
def test_a_run_that_fills_its_folder_is_ended(mac: Path, fills: str) -> None:
    before = set(Path(tempfile.gettempdir()).glob(f"{PREFIX}{os.getpid()}-*"))
    program = f"import os, time\n{fills}\nprint('filled', flush=True)\ntime.sleep(60)"
    assert SeatbeltSandbox(Limits(file_mb=64)).run(program, seconds=30.0).status == "signal"
    assert set(Path(tempfile.gettempdir()).glob(f"{PREFIX}{os.getpid()}-*")) == before
    assert mac.exists()


@pytest.mark.parametrize("name", ["a\u202eb", "a\nb"])
def test_temporary_folder_that_a_profile_cannot_name_is_refused_at_the_start(
    mac: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (mac / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(mac / name))
    with pytest.raises(SandboxError, match=r"temporary folder has no path for a sandbox profile.*set TMPDIR") as caught:
        open_sandbox(SandboxConfig())
    assert caught.value.exit_code == 4
    assert list((mac / name).iterdir()) == []


TRAINER = """
import sys
from sdpo_mlx.sandbox import seatbelt
seatbelt.SANDBOX_EXEC, seatbelt.OWNER = sys.argv[1], int(sys.argv[2])
program = "import time; open('running', 'w').close(); time.sleep(60)"
seatbelt.SeatbeltSandbox().run(program, seconds=60.0)
"""


def eventually(holds: Callable[[], object]) -> bool:
    for _ in range(600):
        if holds():
            return True
        time.sleep(0.05)
    return False


def running(pid: int) -> bool:
    """Whether a process runs, one that ended and was not waited for left out."""
    asked = subprocess.run([seatbelt.PS, "-o", "stat=", "-p", str(pid)], capture_output=True, check=False)
    return bool(asked.stdout.strip()) and not asked.stdout.strip().startswith(b"Z")


PS = pytest.mark.skipif(not os.access(seatbelt.PS, os.X_OK), reason="no ps")


@PS
def test_a_killed_trainer_leaves_no_program_and_no_folder(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mac / "temporary"
    folder.mkdir()
    argv = [sys.executable, "-c", TRAINER, str(mac / "sandbox-exec"), str(os.getuid())]
    trainer = subprocess.Popen(argv, env={**os.environ, "TMPDIR": str(folder)})
    try:
        assert eventually(lambda: list(folder.rglob("running")))
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    left = [each for each in folder.iterdir() if (each / "group").exists()]
    assert len(left) == 1
    program = int((left[0] / "group").read_text(encoding="ascii"))
    assert eventually(lambda: not running(program))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    SeatbeltSandbox()
    assert list(folder.iterdir()) == []


@PS
@pytest.mark.parametrize("named", [True, False])
def test_start_ends_what_was_left_only_if_its_command_names_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: bool
) -> None:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    outer = tmp_path / f"{PREFIX}{ended.pid}-left"
    (outer / "work").mkdir(parents=True)
    argv = [sys.executable, "-S", "-c", "import time; time.sleep(60)", *([str(outer / "work")] if named else [])]
    process = subprocess.Popen(argv, start_new_session=True)
    try:
        record(outer / "work", process.pid)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        end_left_behind()
        assert not outer.exists()
        if named:
            assert process.wait(timeout=10) == -signal.SIGKILL
        else:
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_start_keeps_the_folder_of_a_trainer_that_lives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outer = tmp_path / f"{PREFIX}{os.getpid()}-mine"
    outer.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    end_left_behind()
    assert outer.is_dir()


class Kernel:
    """Limits of address space as XNU's: none below the present map, and `least` is what that takes."""

    def __init__(self, least: int) -> None:
        self.least, self.set = least, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    def getrlimit(self, _: int) -> tuple[int, int]:
        return self.set

    def setrlimit(self, _: int, new: tuple[int, int]) -> None:
        soft, hard = (1 << 63 if each == resource.RLIM_INFINITY else each for each in new)
        if soft < self.least or soft > hard or hard > (1 << 63 if self.set[1] < 0 else self.set[1]):
            raise ValueError(new)
        self.set = new


@given(least=st.integers(0, 1 << 45), value=st.integers(64 * MIB, 1 << 33))
def test_address_space_is_limited_above_the_present_map(least: int, value: int) -> None:
    kernel = Kernel(least)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap.resource, "getrlimit", kernel.getrlimit)
        patch.setattr(bootstrap.resource, "setrlimit", kernel.setrlimit)
        bootstrap._limit("RLIMIT_AS", value)
    soft, hard = kernel.set
    assert soft == hard
    assert (soft == value) if value >= least else 0 <= soft - (least + value) <= MIB


def test_address_space_stays_open_where_the_kernel_takes_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(1 << 62)
    monkeypatch.setattr(bootstrap.resource, "getrlimit", kernel.getrlimit)
    monkeypatch.setattr(bootstrap.resource, "setrlimit", kernel.setrlimit)
    bootstrap._limit("RLIMIT_AS", 512 * MIB)
    assert kernel.set == (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class Libproc:
    """`proc_listpids` and `proc_pid_rusage` for processes with a footprint, a process that has gone, or a refusal."""

    def __init__(self, held: dict[int, int | None], code: int = 3) -> None:
        self.held, self.code = held, code

    def proc_listpids(self, kind: int, group: int, found: Any, size: int) -> int:
        assert (kind, group) == (2, 7)
        found._obj[: len(self.held)] = list(self.held)
        assert size >= ctypes.sizeof(ctypes.c_int) * len(self.held)
        return ctypes.sizeof(ctypes.c_int) * len(self.held)

    def proc_pid_rusage(self, pid: int, flavor: int, usage: Any) -> int:
        assert flavor == 0
        if (held := self.held[pid]) is None:
            ctypes.set_errno(self.code)
            return -1
        usage._obj.resident, usage._obj.phys_footprint = 1, held
        return 0


@pytest.mark.parametrize(
    ("library", "over"),
    [
        (Libproc({7: 60 * MIB, 8: 60 * MIB}), True),
        (Libproc({7: 60 * MIB, 8: 20 * MIB}), False),
        (Libproc({7: None}), False),  # ended a moment ago
        (Libproc({7: None}, code=1), True),  # not permitted to look
    ],
)
def test_memory_on_a_mac_is_the_footprint_of_the_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: Libproc, over: bool
) -> None:
    monkeypatch.setattr(watchdog, "_PROC", tmp_path / "none")
    monkeypatch.setattr(watchdog, "_libproc", lambda: library)
    assert watchdog.watchdog(100 * MIB)(7) is over


def test_usage_has_the_layout_of_the_system() -> None:
    assert ctypes.sizeof(watchdog._Usage) == 96
    assert watchdog._Usage.phys_footprint.offset == 72


@pytest.fixture
def asked(mac: Path, monkeypatch: pytest.MonkeyPatch) -> list[Attack]:
    """The answer to the attack list, which is emptied by each question."""
    assert mac.is_dir()
    answer: list[Attack] = []
    monkeypatch.setattr(seatbelt, "probe", lambda *_, **__: Probe(dict.fromkeys(MAC_CHECKS, True)))
    monkeypatch.setattr(SeatbeltSandbox, "_memory_is_held", lambda _: True)
    monkeypatch.setattr(seatbelt, "attack_report", lambda _: [answer.pop() for _ in range(len(answer))])
    return answer


def test_attack_list_is_run_once_for_a_machine(asked: list[Attack]) -> None:
    asked.append(Attack("fork", refused=True))
    first = open_sandbox(SandboxConfig()).self_test()
    asked.append(Attack("fork", refused=False))
    assert open_sandbox(SandboxConfig()).self_test() == first
    assert first["refused:fork"] is True
    assert len(asked) == 1


@pytest.mark.parametrize("changed", ["system", "python", "profile", "list", "file"])
def test_attack_list_is_run_again_when_its_answer_may_differ(
    asked: list[Attack], mac: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    asked.append(Attack("fork", refused=True))
    open_sandbox(SandboxConfig())
    if changed == "system":
        monkeypatch.setattr(attack_cache, "system_build", lambda: "25A1")
    elif changed == "python":
        real = SeatbeltSandbox._described
        monkeypatch.setattr(SeatbeltSandbox, "_described", lambda self: [*real(self)[:1], "1", *real(self)[2:]])
    elif changed == "profile":
        monkeypatch.setattr(seatbelt, "CLOSED", seatbelt.CLOSED[:-1])
    elif changed == "list":
        (mac / "attacks.py").write_text("", encoding="utf-8")
        monkeypatch.setattr(attack_cache.attacks, "__file__", str(mac / "attacks.py"))
    else:
        next((mac / "cache").rglob("*.json")).write_text("{", encoding="utf-8")
    asked.append(Attack("fork", refused=False))
    with pytest.raises(SandboxError, match="refused:fork"):
        open_sandbox(SandboxConfig())


def test_attack_that_got_through_is_not_remembered(asked: list[Attack], mac: Path) -> None:
    asked.append(Attack("fork", refused=None))
    with pytest.raises(SandboxError, match="refused:fork"):
        open_sandbox(SandboxConfig())
    assert list((mac / "cache").rglob("*.json")) == []


def test_interpreter_copied_into_an_environment_runs_programs(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--copies", "--without-pip", str(tmp_path / "v")], check=True)
    program = (
        "import sys\n"
        "from sdpo_mlx.sandbox.interpreter import find_interpreter\n"
        "from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox\n"
        "assert sys.prefix != sys.base_prefix\n"
        "print(find_interpreter().executable)\n"
        "print(UnconfinedSandbox().run('import json; print(json.dumps(7))').stdout)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    argv = [str(tmp_path / "v/bin/python"), "-c", program]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    executable, answer = done.stdout.splitlines()
    assert answer == "b'7\\n'"
    assert not executable.startswith(str(tmp_path))


LOG_LINES = """Timestamp               Ty Process[PID:TID]
2025-01-02 10:00:00.100 E  kernel[0:1f2] (Sandbox) Sandbox: Python(812) deny(1) file-read-data /private/etc/hosts
2025-01-02 10:00:00.100 E  kernel[0:1f2] (Sandbox) Sandbox: mdworker(9) deny(1) file-read-data /other
2025-01-02 10:00:00.101 E  kernel[0:1f2] (Sandbox) 3 duplicate reports for Sandbox: Python(812) deny(1) process-fork
2025-01-02 10:00:00.102 E  kernel[0:1f2] (Sandbox) Sandbox: Python(812) deny(1) file-read-data /private/etc/hosts
2025-01-02 10:00:00.103 E  kernel[0:1f2] (Sandbox) Sandbox: sandbox-exec(812) deny(1) process-exec* /a b/(c)
2025-01-02 10:00:00.104 E  kernel[0:1f2] (Sandbox) Sandbox: Python(812) deny(1) mach-lookup com.apple.logd
"""


def test_denials_in_the_log_are_those_of_the_program() -> None:
    assert denials(LOG_LINES, ("Python", "sandbox-exec")) == [
        "file-read-data /private/etc/hosts",
        "process-fork",
        "process-exec* /a b/(c)",
    ]
    assert denials("no log", ("Python",)) == []


def test_refusal_says_what_the_system_denied(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sandbox_exec(mac, "kill -ABRT $$")
    monkeypatch.setattr(denials_module, "LOG", str(mac / "log"))
    (mac / "log").write_text(f"#!/bin/sh\ncat <<'E'\n{LOG_LINES}E\n", encoding="utf-8")
    (mac / "log").chmod(0o755)
    monkeypatch.setattr(denials_module, "CSRUTIL", str(mac / "csrutil"))
    (mac / "csrutil").write_text("#!/bin/sh\necho 'System Integrity Protection status: enabled.'\n", encoding="utf-8")
    (mac / "csrutil").chmod(0o755)
    facts = f"Python build: {re.escape(python_build())}; integrity protection: enabled"
    with pytest.raises(
        SandboxError, match=rf"SIGABRT.*{facts}; denied: process-exec\* /a b/\(c\).*could not read a file"
    ):
        open_sandbox(SandboxConfig())


@pytest.mark.parametrize(
    ("prefix", "config", "build"),
    [
        ("/Library/Frameworks/Python.framework/Versions/3.13", {"PYTHONFRAMEWORK": "Python"}, "framework"),
        ("/opt/homebrew/Cellar/python@3.13/3.13.1/Frameworks", {"PYTHONFRAMEWORK": "Python"}, "Homebrew, framework"),
        ("/u/.local/share/uv/python/cpython-3.13-macos", {"Py_ENABLE_SHARED": 1}, "uv, shared library"),
        ("/u/.pyenv/versions/3.13.1", {"Py_ENABLE_SHARED": 0}, "pyenv, static"),
        ("/usr", {}, "static"),
    ],
)
def test_build_of_python_is_named(prefix: str, config: dict[str, object], build: str) -> None:
    assert python_build(config, prefix) == build


def test_build_of_python_names_conda_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "conda-meta").mkdir()
    assert python_build({}, str(tmp_path)) == "conda, static"
