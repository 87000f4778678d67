"""The device of torch: never a silent CPU beside a card, an index for CUDA, the type of the weights; on a CPU."""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from command import sdpo
from requirements import needs_torch
from temp_folders import new_folder
from torch_architectures import write_architecture

from sdpo_mlx.config import ModelConfig
from sdpo_mlx.core import gpu
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.gpu import Card

pytestmark = needs_torch
NVIDIA = Card("NVIDIA", "535.104.05")


@cache
def folder() -> Path:
    return write_architecture(new_folder("torch-device") / "qwen3", "qwen3")


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an NVIDIA card that torch cannot use."""
    from sdpo_mlx.backends.torch import device

    monkeypatch.setattr(gpu, "card", lambda: NVIDIA)
    monkeypatch.setattr(device, "has_cuda", lambda: False)


@pytest.fixture
def second_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose current CUDA device is the second one."""
    import torch

    from sdpo_mlx.backends.torch import device

    monkeypatch.setattr(device, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_card_that_torch_cannot_use_is_refused(name: str) -> None:
    from sdpo_mlx.backends.torch.device import device_of

    with pytest.raises(ConfigError, match=r"driver 535\.104\.05") as refusal:
        device_of(name)
    assert "--set model.device=cpu" in refusal.value.line()
    assert device_of("cpu").type == "cpu"


@pytest.mark.usefixtures("without_cuda")
def test_training_beside_an_unusable_card_ends_with_one_line(tmp_path: Path) -> None:
    words = ("train", "--model", "tiny", "--task", "tiny", "--backend", "torch", "--out", str(tmp_path / "run"))
    code, _, err = sdpo(*words, "--set", "train.memory_gb=8")
    assert code == 2
    assert sum("driver 535.104.05" in line for line in err.splitlines()) == 1
    assert "Traceback" not in err


@pytest.mark.usefixtures("without_cuda")
def test_doctor_fails_the_line_of_an_unusable_card() -> None:
    from sdpo_cli.diagnostics.checks import _torch

    (finding,) = _torch()
    assert not finding.ok
    assert "driver 535.104.05" in finding.found
    assert "model.device=cpu" in finding.fix


def test_graphics_of_amd_that_torch_cannot_use_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import device, loading

    monkeypatch.setattr(gpu, "card", lambda: Card("AMD"))
    monkeypatch.setattr(device, "has_cuda", lambda: False)
    loaded = loading.load(folder(), ModelConfig(backend="torch", dtype="float32"))
    assert loaded.model.device.type == "cpu"
    assert "an AMD card is here" in loaded.notes[0]


@pytest.mark.usefixtures("second_card")
def test_weights_are_loaded_on_the_card_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import loading

    given: dict[str, Any] = {}

    def stopped(_: Path, **options: Any) -> None:
        given.update(options)
        raise ValueError("far enough")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", stopped)
    monkeypatch.setattr(loading, "free_bytes", lambda _: None)
    with pytest.raises(ConfigError, match="far enough"):
        loading.load(folder(), ModelConfig(backend="torch", device="cuda"))
    assert given["device_map"] == {"": "cuda:1"}
    assert given["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("setting", "has_bfloat16", "dtype"),
    [
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("float16", True, "float16"),
        ("float32", True, "float32"),
    ],
)
def test_type_of_the_weights_on_a_card(
    setting: Any, has_bfloat16: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from sdpo_mlx.backends.torch.device import device_notes, dtype_on_card

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16)
    assert dtype_on_card(ModelConfig(backend="torch", dtype=setting)) == dtype
    notes = device_notes(torch.device("cuda", 0), getattr(torch, dtype), ModelConfig(dtype=setting))
    assert bool(notes) == (dtype == "float16")
    if notes:
        assert notes[0].endswith("model.dtype=bfloat16")


def test_other_devices_that_have_a_better_way_say_so() -> None:
    import torch

    from sdpo_mlx.backends.torch.device import FULL, ON_APPLE, device_notes

    full = ModelConfig.model_validate({"adapter": {"kind": "full"}})
    assert device_notes(torch.device("mps"), torch.bfloat16, ModelConfig()) == (ON_APPLE,)
    assert device_notes(torch.device("cuda", 0), torch.float32, full) == (FULL,)


@pytest.mark.parametrize(("environ", "card"), [({}, 0), ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 1)])
def test_rank_takes_its_own_card(environ: dict[str, str], card: int) -> None:
    from sdpo_mlx.backends.torch.collectives import own_card

    assert own_card(environ, 2) == card


@pytest.mark.parametrize("rank", ["0", "3"])
def test_more_ranks_than_cards_are_refused_on_every_rank(rank: str) -> None:
    from sdpo_mlx.backends.torch.collectives import own_card

    with pytest.raises(ConfigError, match="4 ranks on this host, but torch sees 2") as refusal:
        own_card({"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "4"}, 2)
    assert "--nproc-per-node 2" in refusal.value.fix


def test_memory_of_a_process_is_unknown_where_no_system_call_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sdpo_mlx.backends.torch.device import memory_figures

    assert memory_figures(torch.device("cpu"))["peak"] > 0
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert memory_figures(torch.device("cpu"))["peak"] == 0


@pytest.mark.parametrize("given", [{}, {"PYTORCH_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "x"}])
def test_allocator_grows_segments_unless_the_user_chose(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import sdpo_mlx.backends.torch as package

    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that what the package sets is removed at the end
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(gpu, "allocator_setting", lambda: "PYTORCH_ALLOC_CONF")
    importlib.reload(package)
    expected = given or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert {name: value for name, value in os.environ.items() if name.endswith("_ALLOC_CONF")} == expected


@pytest.mark.parametrize(("method", "undone"), [("fp8", True), ("mxfp4", True), ("bitsandbytes", False)])
def test_stored_quantization_without_a_gradient_is_undone(method: str, undone: bool) -> None:
    from sdpo_mlx.backends.torch.loading import _quantization

    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[bitsandbytes]'")
    config = {"quantization_config": {"quant_method": method}}
    found = _quantization(ModelConfig(backend="torch"), config, "bfloat16")
    assert [each.dequantize for each in found.values()] == ([True] if undone else [])
    with pytest.raises(ConfigError, match=f"quantized by {method} already"):
        _quantization(ModelConfig(backend="torch", bits=4), config, "bfloat16")
