"""The sandbox holds, and where it cannot, nothing that a model wrote is executed."""

from __future__ import annotations

import os
import shutil
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from waiting import HANG_SECONDS

from sdpo_mlx.config import SandboxConfig
from sdpo_mlx.core.errors import SandboxError
from sdpo_mlx.sandbox import choice
from sdpo_mlx.sandbox.base import Sandbox
from sdpo_mlx.sandbox.bubblewrap import BubblewrapSandbox
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.sandbox.launch import OUTPUT_CAP, Limits
from sdpo_mlx.sandbox.probe import CHECKS
from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing: apt install bubblewrap")


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox(SandboxConfig(kind="bubblewrap", seconds=5.0))


def fake_bwrap(folder: Path, script: str) -> None:
    program = folder / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_opening_refuses_when_bwrap_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"apt install bubblewrap; .*--sandbox unconfined") as caught:
        open_sandbox(SandboxConfig())
    assert caught.value.exit_code == 4
    assert "\n" not in caught.value.line()


def test_opening_refuses_and_runs_nothing_when_namespaces_are_denied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = "bwrap: No permissions to create new namespace"
    fake_bwrap(tmp_path, f'echo "{said}" >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(UnconfinedSandbox, "run", lambda *_, **__: pytest.fail("fell back to no containment"))
    with pytest.raises(SandboxError, match="No permissions to create new namespace") as caught:
        open_sandbox(SandboxConfig())
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"kernel/apparmor_restrict_unprivileged_userns": "1"}, "AppArmor"),
        ({"user/max_user_namespaces": "0"}, "set to deny user namespaces"),
        ({}, "Docker"),
    ],
)
def test_refusal_names_the_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, str], cause: str
) -> None:
    fake_bwrap(tmp_path, 'echo "bwrap: denied" >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(choice, "_setting", lambda name: settings.get(name, ""))
    with pytest.raises(SandboxError, match=cause):
        open_sandbox(SandboxConfig())


def test_opening_refuses_a_bwrap_that_contains_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_bwrap(tmp_path, 'while [ "$1" != "--" ]; do shift; done; shift 2; exec python3 "$@"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(SandboxError, match=r"home_invisible|does not run"):
        open_sandbox(SandboxConfig())


@needs_bwrap
def test_opening_refuses_a_bwrap_without_its_seccomp_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = shutil.which("bwrap")
    cases = '--seccomp) skip=NEXT;; NEXT*) skip=;; *) set -- "$@" "$word";;'
    drop = f'for word do shift; case "$skip$word" in {cases} esac; done'
    fake_bwrap(tmp_path, f'{drop}\nexec {real} "$@"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(SandboxError, match=r"does not contain: .*kernel_guarded"):
        open_sandbox(SandboxConfig(kind="bubblewrap"))


@needs_bwrap
def test_opening_refuses_a_machine_whose_kernel_calls_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "here", "6", "1", "riscv64")))
    with pytest.raises(SandboxError, match="riscv64") as caught:
        BubblewrapSandbox()
    assert caught.value.exit_code == 4


@needs_bwrap
def test_every_run_has_the_whole_filter_and_no_descriptor_of_another(box: Sandbox) -> None:
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    program = (
        "import os, socket\nseen = []\nfor fd in range(3, 512):\n    try: seen.append(os.fstat(fd) and fd)\n"
        "    except OSError: pass\ntry: os.memfd_create('x')\nexcept PermissionError: print(seen)"
    )
    with ThreadPoolExecutor(8) as pool:
        said = {result.stdout for result in pool.map(box.run, [program] * 40, timeout=HANG_SECONDS)}
    assert said == {b"[]\n"}
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == before


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_opening_refuses_where_no_mechanism_exists(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(choice.sys, "platform", platform)
    with pytest.raises(SandboxError, match=r"--sandbox unconfined"):
        open_sandbox(SandboxConfig())


def test_unconfined_comes_only_by_name() -> None:
    sandbox = open_sandbox(SandboxConfig(kind="unconfined"))
    assert sandbox.kind == "unconfined"
    assert sandbox.run("print(input())", b"hello\n").stdout == b"hello\n"


def test_unconfined_caps_output_time_and_memory() -> None:
    sandbox = open_sandbox(SandboxConfig(kind="unconfined", seconds=1.0))
    assert sandbox.run("while True: print('x' * 1000)").status == "output_limit"
    assert sandbox.run("while True: pass").status == "timeout"
    if os.uname().sysname == "Linux":
        assert b"MemoryError" in sandbox.run("bytearray(1 << 33)").stderr


@needs_bwrap
def test_self_test_holds_in_every_point(box: Sandbox) -> None:
    assert box.self_test() == dict.fromkeys(CHECKS, True)


PROBES = {
    "home": "import os; print(os.path.exists({home!r}) or os.path.exists('/root') or os.path.exists('/home'))",
    "repository": "import os; print(os.path.exists({here!r}))",
    "etc": "import os; print(os.path.exists('/etc'))",
    "proc": "import os; print(os.path.exists('/proc/1'))",
    "environment": "import os; print(bool(os.environ))",
    "packages": "import os, sys; print(any(os.listdir(p) for p in sys.path if 'packages' in p))",
    "root user": "import os; print(os.getuid() == 0)",
    "setuid": "import os; os.setuid(0); print(True)",
    "network": "import socket; socket.create_connection(('1.1.1.1', 53), 1); print(True)",
    "write outside": "open('/python/x', 'w'); print(True)",
    "write root": "open('/x', 'w'); print(True)",
    "write dev": "open('/dev/x', 'w'); print(True)",
    "memory": "x = bytearray(1 << 30); print(True)",
    "big file": "open('x', 'wb').write(bytes(9 << 20)); print(True)",
    "full disk": "[open(str(i), 'wb').write(bytes(1 << 20)) for i in range(12)]; print(True)",
    "many files": "kept = [open('/dev/null') for _ in range(100)]; print(True)",
    "raise limits": "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 40, 1 << 40)); print(True)",
    "threads": "import threading, time\nfor _ in range(99): threading.Thread(target=time.sleep, args=(2,)).start()\n"
    "print(True)",
    "shell": "import subprocess; subprocess.run(['/bin/sh', '-c', 'true'], check=True); print(True)",
    "kill outside": "import os; os.kill({pid}, 0); print(True)",
}


@needs_bwrap
@pytest.mark.parametrize("name", PROBES)
def test_probe_is_blocked(box: Sandbox, name: str) -> None:
    names = {"home": str(Path.home()), "here": str(Path(__file__).parent), "pid": str(os.getpid())}
    program = PROBES[name]
    for key, value in names.items():
        program = program.replace("{" + key + "!r}", repr(value)).replace("{" + key + "}", value)
    result = box.run(program)
    assert result.stdout.strip() in (b"False", b"")
    assert result.stdout.strip() == b"False" or b"Error" in result.stderr or result.status == "signal"


@needs_bwrap
def test_fork_bomb_ends_with_its_run(box: Sandbox) -> None:
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert box.run(bomb, seconds=1.0).status == "timeout"
    assert box.run("print(1)").stdout == b"1\n"


@needs_bwrap
@pytest.mark.parametrize("ending", ["os._exit(0)", "time.sleep(60)", "print('x' * 100_000)"])
def test_no_descendant_outlives_its_run(box: Sandbox, ending: str) -> None:
    program = f"import os, time\nif os.fork() == 0:\n    os.setpgrp()\n    time.sleep(60)\nelse: {ending}"
    limits = Limits(seconds=1.0, memory_mb=400 + os.getpid() % 97)  # an argument that marks this run's processes
    BubblewrapSandbox(limits).run(program)
    mark = f"\x00{limits.memory_mb << 20}\x00".encode()
    for _ in range(100):  # the kernel buries them a moment after the kill
        left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if _holds(p, mark)]
        if not left:
            break
        time.sleep(0.05)
    assert left == []


def _holds(cmdline: Path, mark: bytes) -> bool:
    try:
        return mark in cmdline.read_bytes()
    except OSError:
        return False


@needs_bwrap
@pytest.mark.parametrize("fd", [1, 2])
def test_output_flood_is_cut_and_killed(box: Sandbox, fd: int) -> None:
    result = box.run(f"import os\nwhile True: os.write({fd}, b'x' * 10000)")
    assert result.status == "output_limit"
    assert len(result.stdout) <= OUTPUT_CAP
    assert len(result.stderr) <= OUTPUT_CAP


@needs_bwrap
def test_endless_loop_runs_out_of_time(box: Sandbox) -> None:
    assert box.run("while True: pass", seconds=0.5).status == "timeout"


@needs_bwrap
def test_program_that_closes_its_outputs_still_runs_out_of_time(box: Sandbox) -> None:
    program = "import os, time\nos.close(1); os.close(2); time.sleep(60)"
    assert box.run(program, seconds=0.5).status == "timeout"


@needs_bwrap
def test_input_larger_than_a_pipe_arrives_whole(box: Sandbox) -> None:
    data = os.urandom(300_000)
    result = box.run("import sys; print(len(sys.stdin.buffer.read()))", data)
    assert result.stdout == b"300000\n"


@needs_bwrap
def test_program_that_ignores_its_input_is_no_error(box: Sandbox) -> None:
    assert box.run("print(1)", b"x" * 1_000_000).stdout == b"1\n"


@needs_bwrap
def test_hashing_is_fixed_from_run_to_run(box: Sandbox) -> None:
    assert len({box.run("print(hash('a'), set('abcdef'))").stdout for _ in range(3)}) == 1
