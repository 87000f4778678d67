"""The Seatbelt profile says what it should, and where macOS does not contain, nothing runs."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.config import SandboxConfig
from sdpo_mlx.core.errors import SandboxError
from sdpo_mlx.sandbox import choice, seatbelt
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.sandbox.launch import Limits, launch
from sdpo_mlx.sandbox.probe import CHECKS, Probe
from sdpo_mlx.sandbox.seatbelt import Python, SeatbeltSandbox, installed_python, profile, quoted
from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox
from sdpo_mlx.sandbox.watchdog import resident, watchdog

PYTHON = Python(("/opt/py/bin/python3",), ("/opt/py/lib/python3.11",), ("/opt/py/lib/python3.11/site-packages",))
WORK = "/private/var/folders/ab/T/sdpo-1"
# One word of the profile: a bracket, a text literal with its escapes, or an atom.
WORDS = re.compile(r'\s*(\(|\)|"(?:[^"\\]|\\.)*"|[^\s()"]+)', re.S)

Form = list["Form | str"]


def forms(text: str) -> list[Form]:
    """The profile as nested lists; fails on text that is not well formed."""
    stack: list[Form] = [[]]
    position = 0
    while text[position:].strip():
        word = WORDS.match(text, position)
        assert word is not None
        position = word.end()
        if word[1] == "(":
            stack.append([])
        elif word[1] == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(word[1])
    assert len(stack) == 1
    return [form for form in stack[0] if isinstance(form, list)]


def rules(verdict: str, operation: str, text: str) -> list[Form]:
    """The matchers of all rules of one verdict that name an operation."""
    found = [form for form in forms(text) if form[0] == verdict and operation in form]
    return [matcher for form in found for matcher in form[1:] if isinstance(matcher, list)]


def test_profile_denies_first_and_closes_with_denials() -> None:
    text = profile(PYTHON, WORK)
    assert forms(text)[:2] == [["version", "1"], ["deny", "default"]]
    last = [form[1] for form in forms(text)[-8:] if form[0] == "deny"]
    assert {"network*", "mach-lookup", "process-fork", "sysctl-write", "system-socket"} <= set(map(str, last))


def test_profile_allows_the_interpreter_alone_to_be_executed() -> None:
    assert rules("allow", "process-exec", profile(PYTHON, WORK)) == [["literal", '"/opt/py/bin/python3"']]


def test_profile_allows_writing_in_the_work_folder_and_to_null_alone() -> None:
    text = profile(PYTHON, WORK)
    assert rules("allow", "file-write*", text) == [["subpath", f'"{WORK}"']]
    assert rules("allow", "file-write-data", text) == [["literal", '"/dev/null"']]


def test_profile_allows_reading_nothing_of_people() -> None:
    text = profile(PYTHON, WORK)
    read = [str(matcher[1]).strip('"') for matcher in rules("allow", "file-read*", text)]
    assert set(read) >= {"/usr/lib", "/System/Library", "/opt/py/lib/python3.11", WORK}
    for secret in ("/Users/me/.ssh/id", "/etc/passwd", "/private/etc/hosts", "/Library/Keychains/x", "/tmp/x"):
        assert not any(secret.startswith(path) for path in read)
    assert ["subpath", '"/opt/py/lib/python3.11/site-packages"'] in rules("deny", "file-read*", text)


def test_profile_names_no_operation_that_reaches_outside() -> None:
    allowed = {str(word) for form in forms(profile(PYTHON, WORK)) if form[0] == "allow" for word in form[1:]}
    assert {word for word in allowed if not word.startswith("[")} == {
        "process-exec",
        "file-read*",
        "file-read-data",
        "file-read-metadata",
        "file-map-executable",
        "file-write-data",
        "file-write*",
        "sysctl-read",
        "signal",
        "process-info*",
    }
    assert ["signal", "process-info*", ["target", "self"]] in [form[1:] for form in forms(profile(PYTHON, WORK))]


@given(st.text(max_size=40))
def test_no_path_can_add_a_rule(name: str) -> None:
    path = f"/work/{name}"
    try:
        text = profile(PYTHON, path)
    except ValueError:
        assert not path.isprintable() or ".." in path
        return
    plain = profile(PYTHON, WORK)
    assert len(forms(text)) == len(forms(plain))
    assert [form[:3] for form in forms(text) if form[0] != "allow"] == [
        form[:3] for form in forms(plain) if form[0] != "allow"
    ]
    written = rules("allow", "file-write*", text)
    assert [re.sub(r"\\(.)", r"\1", str(matcher[1])[1:-1]) for matcher in written] == [path]


@pytest.mark.parametrize("path", ["", "/", "relative", "/a/../b", "/a\nb", "/a\0b", "/a\x1b[1m", "/a\u202eb"])
def test_path_that_could_mean_another_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no path"):
        quoted(path)


def test_own_interpreter_is_named_by_real_paths() -> None:
    python = installed_python()
    assert all(Path(path).resolve() == Path(path) for path in (*python.executables, *python.readable))
    assert forms(profile(python, WORK))


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that says it is a Mac, with `sandbox-exec` to be put on its PATH."""
    monkeypatch.setattr(choice.sys, "platform", "darwin")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(UnconfinedSandbox, "run", lambda *_, **__: pytest.fail("fell back to no containment"))
    return tmp_path


def fake(folder: Path, script: str) -> None:
    program = folder / "sandbox-exec"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


CONTAINS_NOTHING = '[ "$1" = -p ] || exit 9\nshift 2\nexec "$@"'


def test_opening_on_a_mac_refuses_without_sandbox_exec(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(mac))
    with pytest.raises(SandboxError, match=r"sandbox-exec.*--sandbox unconfined") as caught:
        open_sandbox(SandboxConfig())
    assert caught.value.exit_code == 4


def test_opening_on_a_mac_refuses_a_broken_profile(mac: Path) -> None:
    fake(mac, 'echo "sandbox-exec: profile:3: unbound variable" >&2; exit 65')
    with pytest.raises(SandboxError, match=r"seatbelt does not run Python .sandbox-exec: profile:3: unbound variable"):
        open_sandbox(SandboxConfig())


def test_opening_on_a_mac_refuses_a_sandbox_that_contains_nothing(mac: Path) -> None:
    fake(mac, CONTAINS_NOTHING)
    with pytest.raises(SandboxError, match="seatbelt runs but does not contain: home_invisible"):
        open_sandbox(SandboxConfig(kind="seatbelt"))


@pytest.mark.parametrize("failing", CHECKS)
def test_opening_on_a_mac_refuses_when_one_check_fails(
    mac: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    fake(mac, CONTAINS_NOTHING)
    monkeypatch.setattr(seatbelt, "probe", lambda *_, **__: Probe({name: name != failing for name in CHECKS}))
    monkeypatch.setattr(SeatbeltSandbox, "run", lambda *_, **__: launch(["/bin/echo", "held"], b"", 5.0))
    with pytest.raises(
        SandboxError, match=f"does not contain: .*{failing if failing != 'memory_capped' else 'memory'}"
    ):
        open_sandbox(SandboxConfig())


def test_opening_on_a_mac_accepts_what_holds_in_every_check(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(mac, CONTAINS_NOTHING)
    monkeypatch.setattr(seatbelt, "probe", lambda *_, **__: Probe(dict.fromkeys(CHECKS, True)))
    sandbox = open_sandbox(SandboxConfig(memory_mb=64))
    assert sandbox.kind == "seatbelt"
    assert (
        sandbox.run("import os\nopen('x', 'w').write('1')\nprint(os.listdir(), input())", b"in").stdout == b"['x'] in\n"
    )


@pytest.mark.parametrize(("kind", "platform"), [("seatbelt", "linux"), ("bubblewrap", "darwin")])
def test_opening_refuses_the_mechanism_of_another_system(
    monkeypatch: pytest.MonkeyPatch, kind: str, platform: str
) -> None:
    monkeypatch.setattr(choice.sys, "platform", platform)
    with pytest.raises(SandboxError, match=f"{kind} does not exist on {platform}"):
        open_sandbox(SandboxConfig.model_validate({"kind": kind}))


ALLOCATES = "kept = [b'x' * (1 << 20) for _ in range(300)]\nimport time\ntime.sleep(30)"


def test_watchdog_ends_a_program_that_holds_too_much() -> None:
    argv = [sys.executable, "-S", "-c", ALLOCATES]
    assert launch(argv, b"", 20.0, over=watchdog(100 << 20)).status == "signal"
    assert launch(argv, b"", 2.0, over=watchdog(1 << 30)).status == "timeout"


def test_watchdog_counts_children_too() -> None:
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', {ALLOCATES!r}])"
    assert launch([sys.executable, "-S", "-c", parent], b"", 20.0, over=watchdog(100 << 20)).status == "signal"


def test_memory_of_a_process_that_has_gone_is_zero() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(30)"], start_new_session=True)
    for _ in range(100):
        if (held := resident(process.pid)) > 1 << 20:
            break
        time.sleep(0.02)
    assert 1 << 20 < held < 1 << 30
    process.kill()
    process.wait()
    assert resident(process.pid) == 0


def test_unconfined_on_a_mac_is_watched_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.sys, "platform", "darwin")
    sandbox = UnconfinedSandbox(Limits(memory_mb=60))
    monkeypatch.setattr(Limits, "arguments", lambda *_, **__: ["-1"] * 6)  # as if no limit of the kernel bound it
    assert sandbox.run(ALLOCATES, seconds=20.0).status == "signal"
