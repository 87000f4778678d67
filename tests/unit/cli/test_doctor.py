"""`sdpo doctor`: every check, its faults and their fixes; macOS by what its commands would print."""

from __future__ import annotations

import json
import math
import re
import sys
from importlib.metadata import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from command import sdpo
from packaging.requirements import Requirement
from paths import ROOT
from sdpo_cli.diagnostics import checks, disk, hardware, packages
from sdpo_cli.diagnostics.finding import Finding, run_check

from sdpo_mlx.config import SandboxConfig
from sdpo_mlx.core.errors import SandboxError

GB = 2**30
KEYS = {"name", "ok", "found", "fix", "required", "checked", "facts"}
METAL = {
    "resource_limit": 499000,
    "max_buffer_length": 9534832640,
    "architecture": "applegpu_g13g",
    "memory_size": 16 * GB,
    "max_recommended_working_set_size": 11453251584,
    "device_name": "Apple M1",
}


# ---- the whole


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The findings by name, in an empty folder, with empty caches, and without any command of macOS."""
    folder = tmp_path_factory.mktemp("doctor")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SDPO_HOME", str(folder / "cache"))
        patch.setenv("HF_HOME", str(folder / "hub"))
        patch.setattr(hardware, "sysctl", lambda _: pytest.fail("a command of macOS was called"))
        code, out, _ = sdpo("doctor", "--json")
    document = json.loads(out)
    assert (code, document["ok"]) == (0, True)
    assert all(set(each) == KEYS for each in document["findings"])
    assert all(bool(each["fix"]) is not each["ok"] for each in document["findings"])
    return {each["name"]: each for each in document["findings"]}


@pytest.mark.skipif(sys.platform != "linux", reason="the facts of Linux")
def test_doctor_reports_facts_of_every_part_without_commands_of_macos(
    found: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    facts = {name: each["facts"] for name, each in found.items()}
    assert facts["packages"]["mlx"] == packages.installed("mlx") != ""
    assert facts["chip"]["cores"] >= 1
    assert facts["memory"]["memory_bytes"] >= facts["memory"]["plan_bytes"] > GB // 4
    assert facts["blas"]["gflops"] > 0
    assert facts["metal"] == {"metal": False}
    assert Path(facts["disk"]["path"]).name == "runs"
    assert (facts["cache"]["bytes"], facts["cache"]["whole"]) == (0, True)
    assert facts["models"]["here"] == ["tiny"]
    assert facts["sandbox"]["kind"] in (None, "bubblewrap")
    unchecked = {name for name, each in found.items() if not each["checked"]}
    assert unchecked == {"wired_limit", "gpu_limits"}
    assert found["wired_limit"]["found"].startswith("not checked")
    assert set(facts["power"]) == {"on_battery", "charge_percent"}
    assert {f"extra {name}" for name in metadata("sdpo-mlx").get_all("Provides-Extra") or []} <= set(found)


def test_documented_names_and_facts_are_those_of_the_document(found: dict[str, dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition("## `sdpo doctor --json`")[2].partition("\n## ")[0]
    rows = {
        line.split("|")[1]: set(re.findall(r"`([\w-]+)`", line.split("|")[2]))
        for line in section.splitlines()
        if "|" in line
    }
    documented = {name: keys for cell, keys in rows.items() for name in re.findall(r"`([^`]+)`", cell)}
    for cache in ("cache", "hub_cache"):
        documented[cache] = documented[cache] | documented["disk"]
    assert {name for name in found if not name.startswith("extra ")} <= set(documented)
    for name, each in found.items():
        assert set(each["facts"]) <= documented["extra NAME" if name.startswith("extra ") else name], name


def test_text_output_has_a_line_per_finding_then_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        Finding("cache_of_ours", False, "full\x1b[2J", "make room"),
        Finding("backend", False, "gone", "install it", required=True),
        Finding("far_away", True, "not checked: why", checked=False),
    ]
    monkeypatch.setattr(checks, "examine", lambda: made)
    code, out, _ = sdpo("doctor")
    assert code == 2
    assert "\x1b" not in out
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["no", "no", "--"]
    fixes = lines[lines.index("to fix:") + 1 :]
    assert [line.split(":")[0].strip() for line in fixes] == ["backend", "cache of ours"]
    assert "training cannot run" in fixes[0]


@pytest.mark.parametrize("raised", [RuntimeError("odd"), SandboxError("no such thing"), KeyError("x")])
def test_check_that_raises_is_a_finding_with_a_fix(raised: Exception) -> None:
    def check() -> list[Finding]:
        raise raised

    (broken,) = run_check("part", check, required=True)
    assert (broken.name, broken.ok, broken.required) == ("part", False, True)
    assert broken.fix


def test_missing_mlx_stops_training_and_other_checks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sdpo_mlx.backends.mlx.device", None)
    code, out, _ = sdpo("doctor", "--json")
    faults = {each["name"]: each for each in json.loads(out)["findings"] if not each["ok"]}
    assert code == 2
    assert {"backend", "blas"} <= set(faults)
    assert faults["backend"]["required"]
    assert not faults["blas"]["required"]


# ---- chip, memory, BLAS


def test_chip_has_a_name_without_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sdpo_mlx.backends.mlx.device", None)
    (found,) = hardware.chip()
    assert (found.ok, bool(found.facts["chip"])) == (True, True)


def test_little_memory_is_a_fault_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500_000_000))
    (little,) = hardware.memory()
    assert (little.ok, little.facts["available_bytes"]) == (False, 500_000_000)
    assert "close other programs" in little.fix


def test_available_memory_is_at_most_that_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "total_memory", lambda: 2 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GB))
    (found,) = hardware.memory()
    assert (found.ok, found.facts["available_bytes"]) == (True, 2 * GB)


@pytest.mark.parametrize(
    ("sensor", "ok", "on_battery", "charge"),
    [
        (SimpleNamespace(percent=87.4, power_plugged=False), False, True, 87),
        (SimpleNamespace(percent=100, power_plugged=True), True, False, 100),
        (SimpleNamespace(percent=50, power_plugged=None), True, None, 50),
        (None, True, None, None),
    ],
)
def test_only_a_machine_on_battery_is_at_fault(
    monkeypatch: pytest.MonkeyPatch, sensor: Any, ok: bool, on_battery: bool | None, charge: int | None
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: sensor)
    (found,) = hardware.power()
    assert (found.ok, found.facts) == (ok, {"on_battery": on_battery, "charge_percent": charge})


def test_fix_for_slow_products_depends_on_library_and_processor() -> None:
    assert "fast-cpu" in checks.blas_fix("reference", "x86_64")
    assert "libopenblas" in checks.blas_fix("reference", "aarch64")
    assert "run `sdpo doctor` again" in checks.blas_fix("libmkl_rt.so.3", "x86_64")


# ---- disk and caches


def test_cache_size_follows_no_links_and_stops_in_time(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * 1000)
    (tmp_path / "again").symlink_to(tmp_path / "a" / "b" / "file")
    (tmp_path / "round").symlink_to(tmp_path)
    assert disk.folder_size(tmp_path) == (1000, True)
    assert disk.folder_size(tmp_path, seconds=-1.0)[1] is False
    assert disk.folder_size(tmp_path / "absent") == (0, True)
    assert disk.nearest(tmp_path / "a" / "not" / "there") == tmp_path / "a"


def test_place_that_cannot_be_written_stops_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (good,) = disk.runs()
    monkeypatch.setattr("os.access", lambda *_: False)
    (bad,) = disk.runs()
    assert good.facts["writable"]
    assert not bad.ok
    assert bad.required
    assert {each.ok for each in disk.caches()} == {False}


# ---- packages


def test_extra_reports_version_or_install_command_and_old_packages() -> None:
    here = packages.extra("made-up", [Requirement("numpy>=1; extra == 'made-up'")])
    assert (here.ok, here.found) == (True, f"numpy {packages.installed('numpy')}")
    gone = packages.extra("made-up", [Requirement("no-such-package-here; extra == 'made-up'")])
    assert (gone.ok, gone.facts["missing"]) == (True, ["no-such-package-here"])
    assert "pip install 'sdpo-mlx[made-up]'" in gone.found
    old = packages.extra("made-up", [Requirement("numpy>=999; extra == 'made-up'")])
    assert not old.ok
    assert "required is >=999" in old.found
    half = packages.extra("made-up", [Requirement(f"{each}; extra == 'made-up'") for each in ("numpy>=999", "no-such")])
    assert (half.ok, half.found) == (True, "1 of 2 packages installed: pip install 'sdpo-mlx[made-up]'")
    elsewhere = packages.extra("made-up", [Requirement("mkl; sys_platform == 'plan9' and extra == 'made-up'")])
    assert elsewhere.found == "not needed on this machine"


# ---- macOS, by what its commands print


def test_mac_chip_is_a_fault_for_intel_and_rosetta() -> None:
    assert hardware.mac_chip("Apple M2 Pro", "0") == ("Apple M2 Pro", "")
    assert "arm64" in hardware.mac_chip("Apple M2 Pro", "1")[1]
    assert "Apple silicon" in hardware.mac_chip("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "")[1]
    assert hardware.mac_chip("", "") == ("", "")


def test_metal_is_what_mlx_reports() -> None:
    assert hardware.metal(True, METAL).found == "yes: Apple M1, applegpu_g13g"
    assert hardware.metal(True, {}).found == "yes"
    assert hardware.metal(False, METAL).fix


def test_gpu_limits_name_what_mlx_keeps_to_and_a_strict_watchdog() -> None:
    limits = {"memory": 10 * GB, "cache": 2 * GB}
    found = hardware.gpu_limits(limits, 2.6e12, "1")
    assert (found.ok, found.facts["memory_bytes"], found.facts["evaluation_gflop"]) == (True, 10 * GB, 2_600)
    assert found.found == (
        "MLX stays under 10.0 GB, cache 2.0 GB, wired memory off, 2,600 GFLOP at once; watchdog relaxed"
    )
    strict = hardware.gpu_limits(limits, math.inf, "0")
    assert not strict.ok
    assert "no bound" in strict.found
    assert "AGX_RELAX" in strict.fix
    assert not hardware.gpu_limits({}, math.inf, "").checked


@pytest.mark.parametrize(
    ("setting", "memory", "ok", "words"),
    [
        ("0", 16 * GB, True, "the system default"),
        ("0", 64 * GB, True, "sudo sysctl iogpu.wired_limit_mb=57344"),
        ("14000", 16 * GB, False, "too little left"),
        ("4096", 16 * GB, False, "less than the default"),
        ("12000", 16 * GB, True, "is 12000"),
        ("", 16 * GB, True, "cannot be read"),
        ("sysctl: unknown oid", 16 * GB, True, "cannot be read"),
    ],
)
def test_wired_limit_is_a_fault_only_if_the_default_is_better(setting: str, memory: int, ok: bool, words: str) -> None:
    finding = hardware.wired_limit(setting, memory, int(0.7 * memory))
    assert finding.ok is ok
    assert words in finding.found
    assert bool(finding.fix) is not ok
    small_by_default = setting == "0" and memory < hardware.LARGE
    assert not small_by_default or "sysctl" not in finding.found


def test_missing_recommended_size_is_reported() -> None:
    assert "three quarters" in hardware.wired_limit("0", 16 * GB, 0).found
    assert hardware.wired_limit("0", 16 * GB, 11453251584).facts["recommended_bytes"] == 11453251584


def test_sysctl_that_is_missing_fails_or_hangs_is_blank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.sysctl("any") == ""
    for program, printed in (("echo word", "word"), ("exit 3", ""), ("exec /bin/sleep 30", "")):
        (tmp_path / "sysctl").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "sysctl").chmod(0o755)
        monkeypatch.setattr(hardware, "SECONDS", 0.5 if "sleep" in program else 30.0)
        assert hardware.sysctl("any") == printed


def test_checks_of_a_mac_combine_what_its_commands_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests the order of commands alone: that these texts are macOS's own was not checked on a Mac."""
    printed = {
        "machdep.cpu.brand_string": "Apple M1",
        "sysctl.proc_translated": "0",
        "iogpu.wired_limit_mb": "0",
    }
    device = pytest.importorskip("sdpo_mlx.backends.mlx.device")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(hardware, "sysctl", printed.__getitem__)
    monkeypatch.setattr(device, "device_facts", lambda: METAL)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: SimpleNamespace(percent=80, power_plugged=False))
    parts = (hardware.chip, checks._metal, checks._wired_limit, hardware.power)
    found = {each.name: each for check in parts for each in run_check("part", check)}
    assert found["chip"].found.startswith("Apple M1, ")
    assert not found["metal"].ok
    assert found["wired_limit"].facts["recommended_bytes"] == 11453251584
    assert "caffeinate -ims" in found["power"].found
    assert not found["power"].ok


@pytest.mark.parametrize(("present", "warned"), [({"mlx-cpu", "mlx-cuda-12"}, True), ({"mlx-cuda-13"}, False)])
def test_two_builds_of_mlx_are_named_because_they_share_a_file(
    monkeypatch: pytest.MonkeyPatch, present: set[str], warned: bool
) -> None:
    pytest.importorskip("sdpo_mlx.backends.mlx.device")
    monkeypatch.setattr(packages, "installed", lambda name: "0.32.4" if name in {"mlx", *present} else "")
    findings = list(checks._backend())
    assert [finding.ok for finding in findings] == ([True, False] if warned else [True])
    assert not warned or "mlx-cuda-12==0.32.4" in findings[-1].fix


@pytest.mark.parametrize(
    ("engine", "words"),
    [(True, "container: works, with --sandbox container"), (False, "container: neither podman nor docker here")],
)
def test_doctor_looks_at_containers_where_the_own_sandbox_fails(
    monkeypatch: pytest.MonkeyPatch, engine: bool, words: str
) -> None:
    def opens(cfg: SandboxConfig) -> object:
        if cfg.kind == "container" and engine:
            return object()
        said = "neither podman nor docker here" if cfg.kind == "container" else "broken"
        raise SandboxError(f"no sandbox for model-written programs: {said}", where="sandbox.kind", fix="install podman")

    monkeypatch.setattr("sdpo_mlx.sandbox.choice.open_sandbox", opens)
    (found,) = checks._sandbox()
    assert not found.ok
    assert words in found.found
