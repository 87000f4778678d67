"""What the Seatbelt profile closes stays closed, and its text names no more than it must."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seatbelt_forms import forms, rules

from sdpo_mlx.sandbox import mac_python, probe
from sdpo_mlx.sandbox.mac_python import Python, installed_python, kernel_path
from sdpo_mlx.sandbox.seatbelt_profile import CLOSED, for_folder, profile
from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox

PYTHON = Python(
    ("/opt/py/bin/python3",),
    ("/opt/py/lib/python3.11",),
    files=("/opt/py/Python", "/opt/ssl/libssl.dylib"),
    links=("/opt/link",),
    hidden=("/opt/py/lib/python3.11/site-packages",),
)
WORK = "/private/var/folders/ab/T/sdpo-1"
# How the operations begin that nothing may allow: network, services (keychain, pasteboard, directory, launchd),
# devices, other applications and processes, links to files outside, marks on files that forbid their removal.
NEVER = (
    *("network", "mach", "ipc", "iokit", "appleevent", "system", "process-fork", "process-codesigning", "nvram"),
    *("sysctl-write", "job-creation", "lsopen", "user-preference", "authorization", "device", "dynamic-code"),
    *("file-link", "file-clone", "file-mknod", "file-ioctl", "file-write-flags", "file-write-setugid"),
    *("file-write-owner", "file-write-acl", "file-write-xattr", "file-write-mount", "pseudo-tty"),
    *("distributed-notification", "hid-control"),
)


def allowed(text: str) -> set[str]:
    """Operations of all allow rules."""
    return {word for form in forms(text) if form[0] == "allow" for word in form[1:] if isinstance(word, str)}


@pytest.mark.parametrize("closed", [CLOSED, CLOSED[:1], ()])
@pytest.mark.parametrize("imports", [True, False])
def test_what_looks_loose_is_allowed_by_no_rule(imports: bool, closed: tuple[str, ...]) -> None:
    text = profile(PYTHON, WORK, imports=imports, closed=closed)
    assert forms(text)[1] == ["deny", "default"]
    names = allowed(text)
    assert [name for name, start in itertools.product(names, NEVER) if name.startswith(start)] == []
    # a wildcard would take in more than it says; these two are filtered
    assert {name for name in names if "*" in name} == {"file-read*", "process-info*"}
    assert "default" not in names


def test_no_rule_allows_without_a_filter() -> None:
    for form in forms(profile(PYTHON, WORK)):
        if form[0] == "allow":
            assert any(isinstance(word, list) for word in form), form


def test_signals_and_facts_reach_the_program_itself_alone() -> None:
    text = profile(PYTHON, WORK)
    assert rules("allow", "signal", text) == [["target", "self"]]
    assert rules("allow", "process-info*", text) == [["target", "self"]]
    assert rules("deny", "process-info*", text) == [["target", "others"]]


def test_what_a_program_can_write_it_can_neither_execute_nor_load() -> None:
    text = profile(PYTHON, WORK)
    written = {str(matcher[1]) for matcher in rules("allow", "file-write-create", text)}
    for operation in ("process-exec", "file-map-executable"):
        assert not written & {str(matcher[1]) for matcher in rules("allow", operation, text)}


def test_files_are_granted_as_files_and_links_by_their_names_alone() -> None:
    text = profile(PYTHON, WORK)
    read = rules("allow", "file-read*", text)
    for path in (*PYTHON.files, *PYTHON.executables):
        assert ["literal", f'"{path}"'] in read
        assert ["subpath", f'"{path}"'] not in read
    assert rules("allow", "file-read-metadata", text)[-1] == ["literal", '"/opt/link"']
    assert not [matcher for matcher in read if "/opt/link" in str(matcher)]


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_profile_made_once_is_the_profile_of_every_folder(name: str) -> None:
    path = f"/private/var/{name}/work"
    try:
        expected = profile(PYTHON, path, imports=True)
    except ValueError:
        with pytest.raises(ValueError, match="no path"):
            for_folder(profile(PYTHON, WORK, imports=True), WORK, path)
        return
    assert for_folder(profile(PYTHON, WORK, imports=True), WORK, path) == expected


def test_resources_beside_a_build_without_a_framework_are_not_granted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = tmp_path.resolve()
    (base / "Resources/Python.app/Contents/MacOS").mkdir(parents=True)
    (base / "Python").write_text("", encoding="ascii")
    real = mac_python.sysconfig.get_config_var
    monkeypatch.setattr(mac_python.sys, "base_prefix", str(base))
    monkeypatch.setattr(
        mac_python.sysconfig, "get_config_var", lambda name: "" if name == "PYTHONFRAMEWORK" else real(name)
    )
    monkeypatch.setattr(mac_python, "loaded_images", lambda *_: ())
    python = installed_python()
    assert not [path for path in (*python.executables, *python.folders, *python.files) if path.startswith(str(base))]


def test_paths_are_spelled_as_the_kernel_stores_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []

    def stored(descriptor: int, command: int, room: bytes) -> bytes:
        assert (command, len(room)) == (50, 1024)  # F_GETPATH, MAXPATHLEN
        asked.append(descriptor)
        return "/Users/Me/É".encode().ljust(1024, b"\0")

    monkeypatch.setattr(mac_python, "fcntl", SimpleNamespace(fcntl=stored))
    assert kernel_path(tmp_path) == str(tmp_path.resolve())
    monkeypatch.setattr(mac_python.sys, "platform", "darwin")
    assert kernel_path(tmp_path) == "/Users/Me/É"
    assert len(asked) == 1


# A folder and a file that show that they exist, and refuse to be read.
CLOSED_PATHS = """
import builtins, os
listed, opened = os.listdir, builtins.open
def refuse(ask):
    def asked(path, *others, **words):
        if str(path) in {paths!r}:
            raise PermissionError(path)
        return ask(path, *others, **words)
    return asked
os.listdir, builtins.open = refuse(listed), refuse(opened)
"""


@pytest.mark.parametrize(("closed", "invisible"), [(True, True), (False, False)])
def test_name_of_a_folder_above_python_is_no_sight_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed: bool, invisible: bool
) -> None:
    (tmp_path / "users").mkdir()
    (tmp_path / "accounts").write_text("x", encoding="ascii")
    paths = [str(tmp_path / name) for name in ("users", "accounts")]
    monkeypatch.setattr(probe, "_MAC_SYSTEM", paths)
    monkeypatch.setattr(probe, "_MAC_HIDDEN", ())
    sandbox: Any = UnconfinedSandbox()
    run = sandbox.run
    sandbox.kind = "seatbelt"
    before = CLOSED_PATHS.format(paths=paths if closed else [])
    sandbox.run = lambda program, *words, **others: run(before + program, *words, **others)
    found = probe.probe(sandbox, memory_mb=1, forks=1, checks=("system_invisible",))
    assert found.message == ""
    assert found.checks == {"system_invisible": invisible}
