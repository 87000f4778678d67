"""The card of a machine, found without any library, and what follows from it: the backend, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.core import gpu
from sdpo_mlx.core.gpu import Card, TorchBuild, why_unused
from sdpo_mlx.runs.targets import run_config

OLD, NEW = Card("NVIDIA", "535.104.05"), Card("NVIDIA", "580.65.06")
CUDA13, PLAIN = TorchBuild("2.14.1+cu130", "13.0", ""), TorchBuild("2.14.1+cpu", "", "")
MODULE = "NVRM version: NVIDIA UNIX {}  {}  Sat Aug 19 01:15:15 UTC 2023\nGCC version: gcc 12.2.0\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without cards; `version` and `nvidia0` in this folder are those of a driver and of a card."""
    monkeypatch.setattr(gpu, "MODULE", tmp_path / "version")
    monkeypatch.setattr(gpu, "NVIDIA_DEVICES", (tmp_path, "nvidia[0-9]*"))
    monkeypatch.setattr(gpu, "AMD_DEVICE", tmp_path / "kfd")
    monkeypatch.setattr(gpu, "_smi_version", lambda: None)
    for name in ("CUDA_VISIBLE_DEVICES", "MLX_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("module", ["x86_64 Kernel Module", "Open Kernel Module for x86_64"])
def test_card_is_found_by_its_driver_and_hidden_by_the_user(
    module: str, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.card() is None
    (machine / "version").write_text(MODULE.format(module, "535.104.05"))
    assert gpu.card() == Card("NVIDIA", "535.104.05", device=False)
    (machine / "nvidia0").touch()
    assert gpu.card() == OLD
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.card() is None


@pytest.mark.parametrize(
    ("answer", "found"), [("551.23", Card("NVIDIA", "551.23")), ("", Card("NVIDIA", "", device=False))]
)
def test_card_of_wsl_is_found_by_nvidia_smi(
    answer: str, found: Card, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_smi_version", lambda: answer)
    assert gpu.card() == found


@pytest.mark.usefixtures("machine")
def test_card_of_amd_is_found_by_its_compute_driver(machine: Path) -> None:
    (machine / "kfd").touch()
    assert gpu.card() == Card("AMD")


def test_nvidia_smi_that_fails_or_hangs_is_no_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setattr(gpu, "SECONDS", 0.2)
    monkeypatch.setattr(gpu.shutil, "which", lambda _: str(program))
    for body, version in (("echo 535.104.05", "535.104.05"), ("echo failed; exit 9", ""), ("exec sleep 5", "")):
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        gpu._smi_version.cache_clear()
        assert gpu._smi_version() == version
    gpu._smi_version.cache_clear()


def test_build_of_torch_is_read_from_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "from typing import Optional\n__version__ = '2.9.0+cu128'\ncuda: Optional[str] = '12.8'\nhip: str = None\n"
    (tmp_path / "version.py").write_text(text)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(gpu, "find_spec", lambda _: spec)
    assert gpu.torch_build() == TorchBuild("2.9.0+cu128", "12.8", "")
    monkeypatch.setattr(gpu, "find_spec", lambda _: None)
    assert gpu.torch_build() is None


@pytest.mark.parametrize(
    ("card", "build", "what", "fix"),
    [
        (
            OLD,
            CUDA13,
            "(driver 535.104.05) is here, but torch 2.14.1+cu130 is built for CUDA 13.0",
            "update the driver",
        ),
        (NEW, CUDA13, "finds no device", "--gpus all"),
        (NEW, PLAIN, "built without CUDA", "install torch for CUDA"),
        (Card("AMD"), CUDA13, "an AMD card is here, but torch 2.14.1+cu130 is built without ROCm", "for ROCm"),
    ],
)
def test_reason_why_torch_cannot_use_a_card_names_the_fix(card: Card, build: TorchBuild, what: str, fix: str) -> None:
    found = why_unused(card, build)
    assert what in found[0]
    assert fix in found[1]
    assert "--set model.device=cpu" in found[1]


@pytest.mark.parametrize(
    ("card", "build", "mlx_cuda", "chosen"),
    [
        (NEW, CUDA13, False, True),
        (NEW, CUDA13, True, False),  # MLX's CUDA build uses the card too
        (OLD, CUDA13, False, False),
        (NEW, PLAIN, False, False),
        (NEW, None, False, False),
        (Card("NVIDIA", "580.65.06", device=False), CUDA13, False, False),
        (Card("AMD"), CUDA13, False, False),
        (None, CUDA13, False, False),
    ],
)
def test_backend_auto_is_torch_where_only_torch_can_use_the_card(
    card: Card | None,
    build: TorchBuild | None,
    mlx_cuda: bool,
    chosen: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("MLX_RANK", raising=False)
    monkeypatch.setattr(gpu, "card", lambda: card)
    monkeypatch.setattr(gpu, "torch_build", lambda: build)
    monkeypatch.setattr(gpu, "mlx_has_cuda", lambda: mlx_cuda)
    monkeypatch.setattr(gpu, "find_spec", lambda _: "installed")
    monkeypatch.setattr("sys.platform", "linux")
    assert gpu.prefers_torch() is chosen
    found = resolve(None)
    assert found.config.model.backend == ("torch" if chosen else "auto")
    assert found.origins["model.backend"] == ("auto: an NVIDIA card" if chosen else "default")
    assert resolve(None, ["model.backend=mlx"]).config.model.backend == "mlx"
    (tmp_path / "config.yaml").write_text("model: {name: qwen, backend: auto}")
    assert run_config(tmp_path).model.backend == "auto"  # of the run's own base
    assert run_config(tmp_path, (), {"model.backend": "torch"}).model.backend == "torch"
    assert bool(gpu.backend_notice("torch")) is chosen
    notice = gpu.backend_notice("mlx")
    assert bool(notice) is bool(card and card.vendor == "NVIDIA" and not mlx_cuda)
    monkeypatch.setenv("MLX_RANK", "0")
    assert resolve(None).config.model.backend == "auto"


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({}, "PYTORCH_ALLOC_CONF"),
        ({"torch_build": lambda: TorchBuild("2.9.1+cu128", "12.8", "")}, "PYTORCH_CUDA_ALLOC_CONF"),
        ({"platform.release": lambda: "5.15.153.1-microsoft-standard-WSL2"}, ""),
        ({"card": lambda: Card("AMD")}, ""),
        ({"card": lambda: None}, ""),
    ],
)
def test_allocator_is_set_on_nvidia_cards_but_not_on_wsl(
    changes: dict[str, Any], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"card": lambda: NEW, "torch_build": lambda: CUDA13, "platform.release": lambda: "6.1.0", **changes}
    for name, value in known.items():
        monkeypatch.setattr(f"sdpo_mlx.core.gpu.{name}", value)
    monkeypatch.setattr("sys.platform", "linux")
    assert gpu.allocator_setting() == setting
