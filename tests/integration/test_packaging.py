"""What an installation puts on a machine: our names only, and everything that runs need."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

from sdpo_mlx import __version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build folder is left in the repository."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("sdpo_mlx", "cli", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)]
    if _setuptools_is_new():  # else pip fetches one into an environment of its own
        command.insert(3, "--no-isolation")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def _setuptools_is_new() -> bool:
    try:
        import setuptools
    except ImportError:
        return False
    return int(setuptools.__version__.partition(".")[0]) >= 77


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    """The files that the wheel installs."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_wheel_installs_no_name_that_other_projects_use(names: list[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"sdpo_mlx", "sdpo_cli", "sdpo_configs", f"sdpo_mlx-{__version__}.dist-info"}


def test_wheel_holds_every_module(names: list[str]) -> None:
    folders = {"sdpo_mlx": "sdpo_mlx", "cli": "sdpo_cli", "configs": "sdpo_configs"}
    for folder, package in folders.items():
        here = {f"{package}/{path.relative_to(ROOT / folder).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
        assert {name for name in here if "__pycache__" not in name} <= set(names)


def test_wheel_holds_presets_model_and_problems(names: list[str]) -> None:
    presets = {
        f"sdpo_configs/{path.relative_to(ROOT / 'configs').as_posix()}" for path in ROOT.glob("configs/**/*.yaml")
    }
    assets = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("sdpo_mlx/assets/**/*") if path.is_file()}
    assert presets
    assert "sdpo_mlx/assets/tiny/model.safetensors" in assets
    assert "sdpo_mlx/assets/code/problems.jsonl" in assets
    assert presets | assets | {"sdpo_mlx/py.typed"} <= set(names)


def test_wheel_leaves_tests_and_examples_behind(names: list[str]) -> None:
    assert [name for name in names if re.search(r"(^|/)(tests?|examples|benchmarks)/", name)] == []


def test_description_has_absolute_links_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    targets = re.findall(r"\]\(([^)\s]+)\)", metadata)
    assert any(target.endswith("/raw/main/docs/live-view.png") for target in targets)
    assert [target for target in targets if not target.startswith(("http", "#"))] == []


def test_wheel_declares_the_command_and_its_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = f"sdpo_mlx-{__version__}.dist-info"
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
        metadata = archive.read(f"{folder}/METADATA").decode()
    assert "sdpo = sdpo_cli.main:main" in entry_points
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.11" in metadata
