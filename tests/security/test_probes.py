"""Every attack fails in the sandbox, is seen to fail from the outside, and works where nothing holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from probe_checks import check_blocked
from probe_targets import survivors, unconfined, world
from probes import ATTACKS

from sdpo_mlx.core import text
from sdpo_mlx.sandbox.bubblewrap import BubblewrapSandbox
from sdpo_mlx.sandbox.launch import OUTPUT_CAP, Limits

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing: apt install bubblewrap")
SECONDS = {"answers": 20.0, "signal": 20.0, "output_limit": 20.0, "timeout": 0.6}
MEMORY_MB = 400 + os.getpid() % 97  # an argument that marks the processes of this module
MARK = f"\x00{MEMORY_MB << 20}\x00".encode()
# What a kernel or a container around the tests says to everybody.
DENIED_TO_ALL = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENOENT)


@pytest.fixture(scope="module")
def box() -> BubblewrapSandbox:
    return BubblewrapSandbox(Limits(memory_mb=MEMORY_MB))


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_blocked(box: BubblewrapSandbox, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    attack = ATTACKS[name]
    with world() as planted, Path(__file__).open() as lock:
        if attack.group == "processes":  # a bomb's processes count against those of a bomb in another test process
            fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setenv("SDPO_PROBE_KEY", planted.token)
        result = box.run(attack.program, planted.ask, seconds=SECONDS[attack.ends])
        assert survivors(MARK) == []
        assert planted.harm() == []
        assert planted.token.encode() not in result.stdout + result.stderr
    check_blocked(attack, result.status, result.stdout, result.code, result.seconds, result.stderr[-500:])
    assert max(len(result.stdout), len(result.stderr)) <= OUTPUT_CAP


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.control in ("user", "root")])
def test_attack_works_where_nothing_holds_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    attack = ATTACKS[name]
    if attack.control == "root" and os.geteuid() != 0:
        pytest.skip("only root can show this one")
    with world() as planted, tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("SDPO_PROBE_KEY", planted.token)
        said = json.loads(unconfined(attack.program, planted.ask, Path(folder)) or "{}")
    if not said.get("achieved") and said.get("errno", errno.EPERM) in DENIED_TO_ALL:
        pytest.skip(f"this machine refuses it to everybody: {said}")
    assert said["achieved"], said


def test_attacks_are_many_in_every_group() -> None:
    groups = Counter(attack.group for attack in ATTACKS.values())
    wanted = {
        "files",
        "privileges",
        "network",
        "processes",
        "memory",
        "time",
        "output",
        "signals",
        "terminal",
        "kernel",
    }
    assert set(groups) == wanted
    assert groups.total() >= 60
    shown = sum(attack.control in ("user", "root") for attack in ATTACKS.values())
    assert shown >= 0.6 * groups.total()


def test_orphan_that_floods_ends_with_its_run(box: BubblewrapSandbox) -> None:
    box.run("import os\nif os.fork() == 0:\n    os.setpgrp()\n    while True: os.write(1, b'x')", seconds=5.0)
    assert survivors(MARK) == []


def test_nothing_stays_for_the_next_run(box: BubblewrapSandbox) -> None:
    assert box.run("open('left', 'w').write('x')\nimport os; print(os.listdir('.'))").stdout == b"['left']\n"
    assert box.run("import os; print(os.listdir('.'))").stdout == b"[]\n"


def test_environment_of_the_parent_changes_nothing(
    box: BubblewrapSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("planted = True")
    program = "import json; print(hasattr(json, 'planted'))"
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "PYTHONHOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "none.so"))
    assert box.run(program).stdout == b"False\n"
    monkeypatch.delenv("PYTHONHOME")
    control = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert control.stdout == b"True\n"


def test_escape_sequences_reach_no_terminal(box: BubblewrapSandbox) -> None:
    program = r"print('\x1b]0;title\x07\x1b[2J\x1b[31mred\x9b5n\u202egnp\r\x08\x00')"
    said = box.run(program).stdout.decode("utf-8", "replace")
    assert "\x1b" in said
    shown = text.display(said)
    assert "red" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e", "\r", "\x08", "\x00"}


@pytest.mark.parametrize(
    "groups",
    [
        ("files", "network", "processes"),
        pytest.param(("privileges", "memory", "terminal", "kernel"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_attacks_are_blocked_for_an_ordinary_user(groups: tuple[str, ...]) -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests were run by an ordinary user already")
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("util-linux is missing")
    found = as_ordinary_user("probe_process.py", *groups)
    if "bwrap" in found:
        pytest.skip(f"no ordinary user may make namespaces here: {found['bwrap']}")
    assert found["user"] != 0
    assert found["harm"] == []
    wanted = {name for name, attack in ATTACKS.items() if attack.ends == "answers" and attack.group in groups}
    assert set(found["said"]) == wanted
    for name, (status, stdout) in found["said"].items():
        check_blocked(ATTACKS[name], status, stdout.encode())


def as_ordinary_user(script: str, *arguments: str) -> dict[str, Any]:
    """What a script of this folder prints as nobody, with the interpreter and the sources mounted in its reach."""
    root = Path(tempfile.mkdtemp(prefix="sdpo-nobody-"))
    places = {"python": sys.base_prefix, "sources": str(ROOT)}
    commands = ["set -e", "mount --make-rprivate /", f"chmod 755 {root}"]
    for name, real in places.items():
        (root / name).mkdir()
        commands.append(f"mount --bind '{real}' {root / name}")
    python = f"{root}/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    library = (
        f"LD_LIBRARY_PATH={root}/python/lib PYTHONPATH={root}/sources:{root}/sources/tests/support HOME=/nonexistent"
    )
    commands.append(
        f"exec setpriv --reuid 65534 --regid 65534 --clear-groups env {library} {python} -B "
        f"{root}/sources/tests/support/{script} {' '.join(arguments)}"
    )
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", "\n".join(commands)], capture_output=True, cwd="/", check=False
        )
    finally:
        for folder in (*(root / name for name in places), root):
            folder.rmdir()  # never by its content: what is mounted there is real
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    if done.returncode != 0:
        pytest.skip(f"this machine does not let root do that: {done.stderr.decode()[-300:]}")
    return json.loads(done.stdout)
