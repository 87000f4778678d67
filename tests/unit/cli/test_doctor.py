"""`sdpo doctor`: every part of a machine, its faults and their fixes; macOS by what its commands would print."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
from command import sdpo
from packaging.requirements import Requirement
from paths import ROOT
from sdpo_cli.diagnostics import checks, cpu, disk, macos, packages
from sdpo_cli.diagnostics.finding import Finding, looked

from sdpo_mlx.core.errors import SandboxError

GB = 2**30
KEYS = {"name", "ok", "found", "fix", "required", "checked", "facts"}
# As macOS prints them, by its manuals; written here, not recorded.
PMSET = """System-wide power settings:
Currently in use:
 standby              1
 disksleep            10
 sleep                1 (sleep prevented by powerd)
 displaysleep         {display}
 lowpowermode         {low}
"""
ON_BATTERY = """Now drawing from 'Battery Power'
 -InternalBattery-0 (id=4653155)\t87%; discharging; 5:12 remaining present: true"""
ON_MAINS = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=4653155)\t100%; charged; 0:00 remaining present: true"""
METAL = {
    "resource_limit": 499000,
    "max_buffer_length": 9534832640,
    "architecture": "applegpu_g13g",
    "memory_size": 16 * GB,
    "max_recommended_working_set_size": 11453251584,
    "device_name": "Apple M1",
}


def pmset(display: str = "10", low: int = 0) -> str:
    return PMSET.replace("{display}", display).replace("{low}", str(low))


# ---- the whole


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The document by name, in an empty folder, with caches of nobody's, and without a word to macOS."""
    folder = tmp_path_factory.mktemp("doctor")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SDPO_HOME", str(folder / "cache"))
        patch.setenv("HF_HOME", str(folder / "hub"))
        patch.setattr(macos, "said", lambda *_: pytest.fail("a command of macOS's was called"))
        code, out, _ = sdpo("doctor", "--json")
    document = json.loads(out)
    assert (code, document["ok"]) == (0, True)
    assert all(set(each) == KEYS for each in document["findings"])
    assert all(bool(each["fix"]) is not each["ok"] for each in document["findings"])
    return {each["name"]: each for each in document["findings"]}


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux says")
def test_doctor_tells_facts_of_every_part_and_asks_macos_nothing(
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
    unseen = {name for name, each in found.items() if not each["checked"]}
    assert unseen == {"wired_limit", "display", "power"}
    assert all(found[name]["found"].startswith("not checked") for name in unseen)
    assert {f"extra {name}" for name in metadata("sdpo-mlx").get_all("Provides-Extra") or []} <= set(found)


def test_documented_names_and_facts_are_those_of_the_document(found: dict[str, dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition("## What `sdpo doctor --json` says")[2].partition("\n## ")[0]
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


def test_person_reads_a_line_a_finding_and_fixes_below(monkeypatch: pytest.MonkeyPatch) -> None:
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
    mending = lines[lines.index("to mend:") + 1 :]
    assert [line.split(":")[0].strip() for line in mending] == ["backend", "cache of ours"]
    assert "training cannot run" in mending[0]


@pytest.mark.parametrize("raised", [RuntimeError("odd"), SandboxError("no such thing"), KeyError("x")])
def test_look_that_breaks_is_a_finding_with_a_fix(raised: Exception) -> None:
    def look() -> list[Finding]:
        raise raised

    (broken,) = looked("part", look, required=True)
    assert (broken.name, broken.ok, broken.required) == ("part", False, True)
    assert broken.fix


def test_missing_mlx_stops_training_and_the_rest_is_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sdpo_mlx.backends.mlx.device", None)
    code, out, _ = sdpo("doctor", "--json")
    faults = {each["name"]: each for each in json.loads(out)["findings"] if not each["ok"]}
    assert code == 2
    assert {"backend", "blas"} <= set(faults)
    assert faults["backend"]["required"]
    assert not faults["blas"]["required"]


# ---- chip, memory, BLAS


def test_processor_is_named_by_what_the_kernel_gives() -> None:
    assert cpu.processor("processor\t: 0\nmodel name\t: AMD  EPYC 7B13\nmodel\t: 1\n") == "AMD EPYC 7B13"
    arm = "processor\t: 0\nBogoMIPS\t: 243.75\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
    assert cpu.processor(arm) == "ARM Neoverse N1"
    board = arm.replace("0xd0c", "0xd0b") + "\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
    assert cpu.processor(board) == "ARM Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)"
    assert cpu.processor("CPU implementer\t: 0x61\nCPU part\t: 0x022\n") == "Apple part 0x022"
    assert cpu.processor("CPU implementer\t: 0xee\nCPU part\t: zzz\n") == "maker 0xee part zzz"
    assert cpu.processor("") == ""


def test_available_memory_is_read_in_bytes() -> None:
    assert cpu.available("MemTotal:  100 kB\nMemAvailable:     64 kB\n") == 64 * 1024
    assert cpu.available("MemTotal:  100 kB\n") is None


def test_little_memory_is_a_fault_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 500000 kB\n")
    monkeypatch.setattr(cpu, "MEMINFO", tmp_path / "meminfo")
    (little,) = cpu.memory()
    assert not little.ok
    assert "close other programs" in little.fix


def test_fix_for_slow_products_goes_by_library_and_processor() -> None:
    assert "fast-cpu" in checks.blas_fix("reference", "x86_64")
    assert "libopenblas" in checks.blas_fix("reference", "aarch64")
    assert "run `sdpo doctor` again" in checks.blas_fix("libmkl_rt.so.3", "x86_64")


# ---- disk and caches


def test_cache_is_measured_without_following_links_and_not_without_end(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * 1000)
    (tmp_path / "again").symlink_to(tmp_path / "a" / "b" / "file")
    (tmp_path / "round").symlink_to(tmp_path)
    assert disk.held(tmp_path) == (1000, True)
    assert disk.held(tmp_path, seconds=-1.0)[1] is False
    assert disk.held(tmp_path / "absent") == (0, True)
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


def test_extra_says_version_or_line_and_finds_what_is_too_old() -> None:
    here = packages.extra("made-up", [Requirement("numpy>=1; extra == 'made-up'")])
    assert (here.ok, here.found) == (True, f"numpy {packages.installed('numpy')}")
    gone = packages.extra("made-up", [Requirement("no-such-package-here; extra == 'made-up'")])
    assert (gone.ok, gone.facts["missing"]) == (True, ["no-such-package-here"])
    assert "pip install 'sdpo-mlx[made-up]'" in gone.found
    old = packages.extra("made-up", [Requirement("numpy>=999; extra == 'made-up'")])
    assert not old.ok
    assert "wanted is >=999" in old.found
    elsewhere = packages.extra("made-up", [Requirement("mkl; sys_platform == 'plan9' and extra == 'made-up'")])
    assert elsewhere.found == "nothing to install on this machine"


# ---- macOS, by what its commands print


def test_mac_chip_is_named_and_rosetta_is_a_fault() -> None:
    assert macos.chip("Apple M2 Pro", "0") == Finding("chip", True, "Apple M2 Pro", facts={"chip": "Apple M2 Pro"})
    assert "arm64" in macos.chip("Apple M2 Pro", "1").fix
    assert not macos.chip("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "").ok
    assert macos.chip("", "").found == "unknown"


def test_metal_is_told_by_mlx_s_word() -> None:
    assert macos.metal(True, METAL).found == "yes: Apple M1, applegpu_g13g"
    assert macos.metal(True, {}).found == "yes"
    assert macos.metal(False, METAL).fix


@pytest.mark.parametrize(
    ("setting", "memory", "ok", "words"),
    [
        ("0", 16 * GB, True, "the system's default"),
        ("0", 64 * GB, True, "sudo sysctl iogpu.wired_limit_mb=57344"),
        ("14000", 16 * GB, False, "too little"),
        ("4096", 16 * GB, False, "less than the default"),
        ("12000", 16 * GB, True, "is set to 12000"),
        ("", 16 * GB, True, "cannot be read"),
        ("sysctl: unknown oid", 16 * GB, True, "cannot be read"),
    ],
)
def test_wired_limit_is_a_fault_only_where_setting_it_back_helps(
    setting: str, memory: int, ok: bool, words: str
) -> None:
    finding = macos.wired(setting, memory, int(0.7 * memory))
    assert finding.ok is ok
    assert words in finding.found
    assert bool(finding.fix) is not ok
    small_by_default = setting == "0" and memory < macos.LARGE
    assert not small_by_default or "sysctl" not in finding.found


def test_recommended_size_that_mlx_does_not_give_is_said() -> None:
    assert "three quarters" in macos.wired("0", 16 * GB, 0).found
    assert macos.wired("0", 16 * GB, 11453251584).facts["recommended_bytes"] == 11453251584


def test_display_that_stays_on_is_a_fault_and_sleep_comes_with_caffeinate() -> None:
    sleeps = macos.display(pmset("10"))
    assert (sleeps.ok, sleeps.facts["display_sleep_minutes"]) == (True, 10)
    assert "caffeinate -ims" in sleeps.found
    for kept_on in (pmset("0"), pmset("10 (display sleep prevented by Player)")):
        assert not macos.display(kept_on).ok
        assert "caffeinate" in macos.display(kept_on).fix
    assert macos.display("").facts["display_sleep_minutes"] is None


def test_battery_and_low_power_are_faults_and_a_desktop_is_fine() -> None:
    on_battery = macos.battery(ON_BATTERY, pmset())
    assert (on_battery.ok, on_battery.facts["charge_percent"]) == (False, 87)
    assert macos.battery(ON_MAINS, pmset()).ok
    assert not macos.battery(ON_MAINS, pmset(low=1)).ok
    assert macos.battery("Now drawing from 'AC Power'", "").facts["on_battery"] is False
    assert macos.battery("", "").facts["on_battery"] is None


def test_command_that_is_missing_fails_or_hangs_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert macos.said("no-such-command-anywhere") == ""
    assert macos.said(sys.executable, "-c", "raise SystemExit(3)") == ""
    assert macos.said(sys.executable, "-c", "print('word')") == "word"
    monkeypatch.setattr(macos, "SECONDS", 0.2)
    assert macos.said(sys.executable, "-c", "import time; time.sleep(30)") == ""


def test_macs_looks_come_together_from_what_commands_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of commands alone: that these words are macOS's own was not checked on a Mac."""
    told = {
        ("sysctl", "-n", "machdep.cpu.brand_string"): "Apple M1",
        ("sysctl", "-n", "sysctl.proc_translated"): "0",
        ("sysctl", "-n", "iogpu.wired_limit_mb"): "0",
        ("pmset", "-g"): pmset("0"),
        ("pmset", "-g", "batt"): ON_BATTERY,
    }
    speed = pytest.importorskip("sdpo_mlx.backends.mlx.device")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(macos, "said", lambda *words: told[words])
    monkeypatch.setattr(speed, "device_facts", lambda: METAL)
    looks = (cpu.look, checks._metal, checks._wired, checks._display, checks._power)
    found = {each.name: each for look in looks for each in looked("part", look)}
    assert found["chip"].found.startswith("Apple M1, ")
    assert not found["metal"].ok
    assert found["wired_limit"].facts["recommended_bytes"] == 11453251584
    assert "never sleeps" in found["display"].found
    assert not found["power"].ok
