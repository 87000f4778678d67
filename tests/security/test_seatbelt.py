"""The Seatbelt profile says what it should, and where macOS does not contain, nothing runs."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_mac import CONTAINS_NOTHING, fake_sandbox_exec, pretend_mac
from hypothesis import given
from hypothesis import strategies as st
from seatbelt_forms import forms, rules

from sdpo_mlx.config import SandboxConfig
from sdpo_mlx.core.errors import SandboxError
from sdpo_mlx.sandbox import choice, mac_python, seatbelt
from sdpo_mlx.sandbox.attacks import Attack, attack_report
from sdpo_mlx.sandbox.bubblewrap import BubblewrapSandbox
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.sandbox.launch import Limits, launch
from sdpo_mlx.sandbox.mac_python import Python, installed_python, library_grants, links_on_the_way
from sdpo_mlx.sandbox.probe import MAC_CHECKS, Probe
from sdpo_mlx.sandbox.seatbelt import SeatbeltSandbox
from sdpo_mlx.sandbox.seatbelt_profile import CLOSED, CRYPTEXES, IMPORT, profile, quoted
from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox
from sdpo_mlx.sandbox.watchdog import footprint, watchdog
from sdpo_mlx.sandbox.work_folder import over, remove, work_folder

PYTHON = Python(("/opt/py/bin/python3",), ("/opt/py/lib/python3.11",), hidden=("/opt/py/lib/python3.11/site-packages",))
WORK = "/private/var/folders/ab/T/sdpo-1"


def test_profile_closes_first_and_opens_nothing_of_it_again() -> None:
    form = forms(profile(PYTHON, WORK))
    assert form[:2] == [["version", "1"], ["deny", "default"]]
    assert form[2 : 2 + len(CLOSED)] == [["deny", each] for each in CLOSED]
    opened = {str(word) for each in form if each[0] == "allow" for word in each[1:] if isinstance(word, str)}
    assert opened & set(CLOSED) == {"file-map-executable", "process-info*"}


def test_profile_filters_what_it_tells_of_the_system() -> None:
    matchers = rules("allow", "sysctl-read", profile(PYTHON, WORK))
    assert matchers
    assert not any("kern.proc" in str(matcher) for matcher in matchers)
    assert rules("deny", "sysctl-read", profile(PYTHON, WORK)) == [["sysctl-name-prefix", '"kern.proc"']]


@pytest.mark.parametrize("imports", [True, False])
def test_profile_names_what_the_loader_reads(imports: bool) -> None:
    text = profile(PYTHON, WORK, imports=imports)
    assert [line for line in text.splitlines() if "import" in line] == [IMPORT] * imports
    assert imports or all(["subpath", f'"{path}"'] in rules("allow", "file-read*", text) for path in CRYPTEXES)


def test_profile_allows_the_interpreter_alone_to_be_executed() -> None:
    assert rules("allow", "process-exec", profile(PYTHON, WORK)) == [["literal", '"/opt/py/bin/python3"']]


def test_profile_allows_writing_in_the_work_folder_and_to_null_alone() -> None:
    text = profile(PYTHON, WORK)
    assert rules("allow", "file-write-create", text) == [["subpath", f'"{WORK}"']]
    assert ["literal", f'"{WORK}"'] in rules("deny", "file-write-unlink", text)
    assert rules("allow", "file-write-data", text) == [["literal", '"/dev/null"'], ["subpath", f'"{WORK}"']]


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
        "file-write-create",
        "file-write-unlink",
        "file-write-mode",
        "file-write-times",
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
    assert [form[:2] for form in forms(text)] == [form[:2] for form in forms(plain)]
    written = rules("allow", "file-write-create", text)
    assert [re.sub(r"\\(.)", r"\1", str(matcher[1])[1:-1]) for matcher in written] == [path]


@pytest.mark.parametrize("path", ["", "/", "relative", "/a/../b", "/a\nb", "/a\0b", "/a\x1b[1m", "/a\u202eb"])
def test_path_that_could_mean_another_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no path"):
        quoted(path)


def test_own_interpreter_is_named_by_real_paths() -> None:
    python = installed_python()
    assert all(Path(path).resolve() == Path(path) for path in (*python.executables, *python.folders, *python.files))
    assert forms(profile(python, WORK))


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    pretend_mac(monkeypatch, tmp_path)
    monkeypatch.setattr(UnconfinedSandbox, "run", lambda *_, **__: pytest.fail("fell back to no containment"))
    return tmp_path


# Answers as a Seatbelt that cannot start: one line on stderr, one code.
@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ('echo "sandbox-exec: sandbox_apply: Operation not permitted" >&2; exit 71', "runs in a sandbox itself"),
        ("kill -ABRT $$", "SIGABRT"),
        ("exit 71", "code 71"),
    ],
)
def test_refusal_names_how_seatbelt_ended(mac: Path, script: str, cause: str) -> None:
    fake_sandbox_exec(mac, script)
    with pytest.raises(SandboxError, match=cause):
        open_sandbox(SandboxConfig())


def test_opening_on_a_mac_refuses_without_sandbox_exec(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(mac))
    fake_sandbox_exec(mac, CONTAINS_NOTHING)
    monkeypatch.setattr(seatbelt, "SANDBOX_EXEC", str(mac / "missing" / "sandbox-exec"))  # one on the PATH is not used
    with pytest.raises(SandboxError, match=r"sandbox-exec.*--sandbox unconfined") as caught:
        open_sandbox(SandboxConfig())
    assert caught.value.exit_code == 4


def test_opening_on_a_mac_refuses_a_broken_profile(mac: Path) -> None:
    fake_sandbox_exec(mac, 'echo "sandbox-exec: profile:3: unbound variable" >&2; exit 65')
    with pytest.raises(SandboxError, match=r"seatbelt does not run Python .sandbox-exec: profile:3: unbound variable"):
        open_sandbox(SandboxConfig())


def test_opening_on_a_mac_refuses_a_sandbox_that_contains_nothing(mac: Path) -> None:
    fake_sandbox_exec(mac, CONTAINS_NOTHING)
    with pytest.raises(SandboxError, match="seatbelt runs but does not contain: home_invisible"):
        open_sandbox(SandboxConfig(kind="seatbelt"))


@pytest.mark.parametrize("failing", MAC_CHECKS)
def test_opening_on_a_mac_refuses_when_one_check_fails(
    mac: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    fake_sandbox_exec(mac, CONTAINS_NOTHING)
    monkeypatch.setattr(seatbelt, "attack_report", lambda _: [])
    monkeypatch.setattr(seatbelt, "probe", lambda *_, **__: Probe({name: name != failing for name in MAC_CHECKS}))
    monkeypatch.setattr(SeatbeltSandbox, "run", lambda *_, **__: launch(["/bin/echo", "held"], b"", 5.0))
    with pytest.raises(
        SandboxError, match=f"does not contain: .*{failing if failing != 'memory_capped' else 'memory'}"
    ):
        open_sandbox(SandboxConfig())


def test_opening_on_a_mac_accepts_what_holds_in_every_check(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sandbox_exec(mac, CONTAINS_NOTHING)
    monkeypatch.setattr(seatbelt, "attack_report", lambda _: [])
    monkeypatch.setattr(seatbelt, "probe", lambda *_, **__: Probe(dict.fromkeys(MAC_CHECKS, True)))
    sandbox = open_sandbox(SandboxConfig(memory_mb=512))
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
        if (held := footprint(process.pid)) > 1 << 20:
            break
        time.sleep(0.02)
    assert 1 << 20 < held < 1 << 30
    process.kill()
    process.wait()
    assert footprint(process.pid) == 0


def test_unconfined_on_a_mac_is_watched_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.sys, "platform", "darwin")
    sandbox = UnconfinedSandbox(Limits(memory_mb=60))
    monkeypatch.setattr(Limits, "arguments", lambda *_, **__: ["-1"] * 6)  # as if no limit of the kernel bound it
    assert sandbox.run(ALLOCATES, seconds=20.0).status == "signal"


def test_watchdog_ends_what_it_cannot_measure() -> None:
    def fails(pid: int) -> int:
        raise PermissionError(pid)

    assert watchdog(1 << 40, fails)(1)


@pytest.mark.skipif(sys.platform != "darwin" and shutil.which("bwrap") is None, reason="bubblewrap is missing")
def test_attacks_fail_in_a_sandbox_and_work_without_one() -> None:
    sandbox = SeatbeltSandbox() if sys.platform == "darwin" else BubblewrapSandbox()
    report = attack_report(sandbox, UnconfinedSandbox())
    assert [each for each in report if each.refused is not True] == []
    # a Mac without a screen does not run every service, and then nobody finds it
    assert [each for each in report if each.works is not True and not each.name.startswith("service ")] == []


def test_an_attack_that_gets_through_is_refused_at_the_start(mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sandbox_exec(mac, CONTAINS_NOTHING)
    monkeypatch.setattr(seatbelt, "probe", lambda *_, **__: Probe(dict.fromkeys(MAC_CHECKS, True)))
    monkeypatch.setattr(seatbelt, "attack_report", lambda _: [Attack("fork", refused=False)])
    with pytest.raises(SandboxError, match="refused:fork"):
        open_sandbox(SandboxConfig(memory_mb=64))


def test_clean_up_follows_no_link_and_leaves_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir(mode=0o750)
    with work_folder() as work:
        (work / "link").symlink_to(canary)
        (work / "closed").mkdir(mode=0)
        deep = os.open(work, os.O_RDONLY)
        for _ in range(1_000):
            os.mkdir("d", dir_fd=deep)
            below = os.open("d", os.O_RDONLY, dir_fd=deep)
            os.close(deep)
            deep = below
        os.close(deep)
        assert over(work)
    assert not work.parent.exists()
    assert stat.S_IMODE(canary.stat().st_mode) == 0o750


def test_clean_up_of_a_folder_replaced_by_a_link_keeps_its_target(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "work").symlink_to(tmp_path / "kept")
    assert remove(tmp_path / "outer")
    assert (tmp_path / "kept").is_dir()


def test_folder_is_over_by_bytes_and_by_names(tmp_path: Path) -> None:
    assert not over(tmp_path)
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    assert over(tmp_path, most=50_000)
    assert not over(tmp_path, most=1 << 20)
    assert over(tmp_path, entries=0)


def test_framework_build_is_started_without_its_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = tmp_path.resolve() / "Python.framework/Versions/3.12"
    program = base / "Resources/Python.app/Contents/MacOS/PythonT"
    for path in (base / "bin/python3.12", program, base / "PythonT"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="ascii")
        path.chmod(0o755)
    real = mac_python.sysconfig.get_config_var
    monkeypatch.setattr(mac_python.sys, "base_prefix", str(base))
    monkeypatch.setattr(mac_python.sys, "_base_executable", str(base / "bin/python3.12"))
    monkeypatch.setattr(
        mac_python.sysconfig, "get_config_var", lambda name: "PythonT" if name == "PYTHONFRAMEWORK" else real(name)
    )
    monkeypatch.setattr(mac_python, "loaded_images", lambda *_: ())
    python = installed_python()
    assert python.executables == (str(program),)
    assert str(base / "PythonT") in python.files
    assert "bin/python3.12" not in profile(python, WORK)


def test_libraries_are_granted_as_files_and_links_by_name(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    for name in ("cellar/lib/libssl.dylib", "site-packages/x.so"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("", encoding="ascii")
    (root / "opt").symlink_to("cellar")
    image = str(root / "opt/lib/libssl.dylib")
    assert library_grants([image, str(root / "site-packages/x.so"), str(root / "cellar"), "/usr/lib/x"]) == (
        str(root / "cellar/lib/libssl.dylib"),
    )
    assert links_on_the_way(image) == [str(root / "opt")]
