"""What is refused before a download: the configuration is fetched first, and shows it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from command import sdpo
from model_folders import COMMIT
from safetensors.numpy import save_file
from small_models import CONFIGS

from sdpo_mlx.backends import preflight as module
from sdpo_mlx.backends.architectures import is_known, mlx_lm_module
from sdpo_mlx.backends.mlx import device
from sdpo_mlx.backends.preflight import REFUSED, check_configuration, expected_learning, preflight
from sdpo_mlx.config import Config
from sdpo_mlx.core import storage
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.runs.folder import RunFolder

SMALL = CONFIGS["qwen3"]
LARGE = {**SMALL, "hidden_size": 16_384, "intermediate_size": 65_536, "num_hidden_layers": 200, "head_dim": 4_096}
MLX_4BIT = {"quantization": {"bits": 4, "group_size": 64}}
BITSANDBYTES = {"quantization_config": {"quant_method": "bitsandbytes"}}


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of which nothing is measured: that takes two seconds."""
    monkeypatch.setattr(device, "block_gigaflops", lambda: 100.0)
    monkeypatch.setattr(device, "gigabytes", lambda: 10.0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """The patterns of all downloads; `tmp_path/config.json` is what the hub has."""
    patterns: list[tuple[str, ...]] = []

    def download(repository: str, *, revision: str, allow_patterns: list[str], **_: object) -> str:
        patterns.append(tuple(allow_patterns))
        assert "*.safetensors" not in allow_patterns, "the weights are downloaded"
        made = tmp_path / "hub" / "snapshots" / COMMIT
        made.mkdir(parents=True, exist_ok=True)
        for file in tmp_path.glob("*.json"):
            (made / file.name).write_bytes(file.read_bytes())
        return str(made)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return patterns


def on_the_hub(folder: Path, config: dict[str, Any], **settings: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("config", "backend", "refused"),
    [
        ({**SMALL, "model_type": "brand_new"}, "auto", "mlx-lm does not know the architecture 'brand_new'"),
        ({**SMALL, "model_type": "brand_new"}, "torch", "transformers does not know the architecture 'brand_new'"),
        ({**SMALL, "model_type": "siglip"}, "torch", "no class that generates text for 'siglip'"),
        ({key: value for key, value in SMALL.items() if key != "model_type"}, "mlx", "names no model_type"),
        ({**SMALL, **MLX_4BIT}, "torch", "quantized by mlx"),
        ({**SMALL, "quantization_config": {"quant_method": "gptq"}}, "torch", "weights quantized by gptq"),
        ({**SMALL, **BITSANDBYTES}, "mlx", "mlx-lm does not read weights quantized by bitsandbytes"),
        (LARGE, "mlx", "but the limit is 8.0 GB"),
        (LARGE, "torch", "but the limit is 8.0 GB"),
        ({**SMALL, "auto_map": {"AutoModel": "x.Y"}}, "mlx", "the model's own code"),
    ],
)
def test_model_is_refused_before_its_weights_are_downloaded(
    config: dict[str, Any], backend: str, refused: str, tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    on_the_hub(tmp_path, config)
    sets = ["--set", "train.memory_gb=8", "--backend", backend, "--sandbox", "unconfined"]
    code, _, err = sdpo("train", "--model", "owner/model", "--task", "tiny", *sets, "--out", str(tmp_path / "run"))
    assert code == 2, err
    assert refused in err
    assert "Traceback" not in err
    assert asked
    assert not any("*.safetensors" in patterns for patterns in asked)


@pytest.mark.parametrize(
    ("backend", "repository"),
    [("mlx", "mlx-community/Qwen3-4B-Instruct-2507-4bit"), ("torch", "Qwen/Qwen3-4B-Instruct-2507")],
)
def test_alias_asks_the_hub_for_the_repository_of_the_backend(
    backend: str, repository: str, tmp_path: Path, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_hub(tmp_path, {**SMALL, "model_type": "brand_new"})
    downloaded, names = huggingface_hub.snapshot_download, list[str]()
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **more: (names.append(name), downloaded(name, **more))[1]
    )
    words = ("train", "--model", "qwen", "--task", "code", "--sandbox", "unconfined", "--backend", backend)
    code, _, err = sdpo(*words, "--out", str(tmp_path / "run"))
    assert code == 2
    assert "does not know the architecture 'brand_new'" in err
    assert set(names) == {repository}


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "owner/model"),
        ("chat", "owner/model", "--prompt", "x"),
        ("models", "fetch", "owner/model"),
        ("eval", "owner/model", "--task", "tiny"),
        ("solve", "--model", "owner/model", "--task", "tiny"),
        ("coach", "owner/model", "--task", "tiny", "--out", "OUT"),
        ("export", "RUN", "--to", "fused", "--out", "OUT"),
        ("export", "RUN", "--to", "peft", "--out", "OUT"),
        ("export", "RUN", "--to", "gguf", "--out", "OUT"),
        ("export", "PEFT", "--to", "mlx", "--model", "owner/model", "--out", "OUT"),
    ],
    ids=lambda words: "-".join(words[:4]).replace("/", "-"),
)
def test_every_command_refuses_before_the_download(
    words: tuple[str, ...], tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    on_the_hub(tmp_path, {**SMALL, "model_type": "brand_new"})
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    cfg = Config.model_validate({"model": {"name": "owner/model"}, "task": {"name": "tiny"}})
    weight = np.zeros((2, 4), np.float32)
    run.save_adapter({"model.layers.0.mlp.up_proj.lora_a": weight}, {"lora_parameters": {"rank": 2}})
    run.write_config(cfg)
    (run.path / "events.jsonl").touch()
    peft = tmp_path / "peft"
    peft.mkdir()
    save_file({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": weight}, peft / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"]}
    (peft / "adapter_config.json").write_text(json.dumps(settings))
    places = {"RUN": str(run.path), "PEFT": str(peft), "OUT": str(tmp_path / "out")}
    code, _, err = sdpo(*(places.get(word, word) for word in words))
    assert "mlx-lm does not know the architecture 'brand_new'" in err
    assert code == 2
    assert asked


def test_tokenizer_that_does_not_fit_is_refused_before_the_download(tmp_path: Path, asked: Any) -> None:
    decoder = {str(SMALL["vocab_size"]): {"content": "<|end|>", "special": True}}
    on_the_hub(tmp_path, SMALL, added_tokens_decoder=decoder, eos_token="<|end|>")
    with pytest.raises(ConfigError, match="embedding rows"):
        preflight(Config.model_validate({"model": {"name": "owner/model"}}))


def test_model_that_can_be_loaded_passes(tmp_path: Path, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e15))
    on_the_hub(tmp_path, SMALL)
    preflight(Config.model_validate({"model": {"name": "owner/model"}}))
    on_the_hub(tmp_path, LARGE)
    cfg = {"model": {"name": "owner/model"}, "train": {"memory_gb": 8.0}}
    preflight(Config.model_validate(cfg), learns=False)


def test_cached_model_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models--owner--model"
    made = folder / "snapshots" / COMMIT
    made.mkdir(parents=True)
    on_the_hub(made, SMALL)
    (made / "model.safetensors").write_bytes(b"w")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub is asked"))
    preflight(Config.model_validate({"model": {"name": "owner/model"}}))


def test_names_are_read_from_the_installed_libraries() -> None:
    assert is_known({"model_type": "qwen3_5"}, "mlx")
    assert is_known({"model_type": "mistral"}, "mlx")  # as llama
    assert mlx_lm_module({"model_type": "kimi_k2"}) == "deepseek_v3"
    assert mlx_lm_module({"model_type": "bailing_hybrid", "architectures": ["BailingMoeV3ForCausalLM"]}) == (
        "bailing_moe_v3"
    )
    assert is_known({"model_type": "cache"}, "mlx") is False  # a module, but no model
    assert is_known({}, "mlx") is False
    assert is_known({"model_type": "../utils"}, "mlx") is False


def test_known_names_are_those_of_the_libraries_themselves() -> None:
    from sdpo_mlx.backends.mlx import mlx_lm_api  # noqa: F401  loads mlx-lm without torch
    from mlx_lm.utils import MODEL_REMAPPING  # isort: skip

    assert {mlx_lm_module({"model_type": name}) for name in MODEL_REMAPPING} == set(MODEL_REMAPPING.values())


def test_the_other_backend_is_named_if_it_knows_the_architecture() -> None:
    with pytest.raises(ConfigError, match="Use --backend mlx"):
        check_configuration({"model_type": "lille-130m"}, "m", "torch")
    assert expected_learning({"model_type": "lille-130m"}, "torch")[0] == REFUSED
    assert expected_learning({"model_type": "qwen3"}, "torch")[0] != REFUSED
    assert expected_learning({"model_type": "mistral3"}, "torch")[0] != REFUSED


def test_what_the_checks_at_load_found_is_known_for_the_same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, Any] = {
        "versions": {"mlx-lm": version("mlx-lm")},
        "mlx": {"llama": {"learning": "by block, shared prompts"}, "gemma2": {"refused": "its parts differ"}},
    }
    monkeypatch.setattr(module, "_table", lambda: known)
    assert expected_learning({"model_type": "mistral"}, "mlx") == ("by block, shared prompts", "")
    assert expected_learning({"model_type": "gemma2"}, "mlx")[0] == REFUSED
    with pytest.raises(ConfigError, match="its parts differ"):
        check_configuration({"model_type": "gemma2"}, "m", "mlx")
    known["versions"] = {"mlx-lm": "0.0.1"}
    assert expected_learning({"model_type": "mistral"}, "mlx")[0] == "unknown"
    check_configuration({"model_type": "gemma2"}, "m", "mlx")


@pytest.mark.parametrize(
    ("method", "trains"),
    [("bitsandbytes", True), ("fp8", True), ("mxfp4", True), ("gptq", False), ("awq", False), ("torchao", False)],
)
def test_torch_trains_through_few_quantizations(method: str, trains: bool) -> None:
    config = {"model_type": "qwen3", "quantization_config": {"quant_method": method}}
    assert (expected_learning(config, "torch")[0] != REFUSED) is trains
    if not trains:
        with pytest.raises(ConfigError, match="the model that it was made from") as refusal:
            check_configuration(config, "m", "torch")
        assert method in refusal.value.what


def test_check_command_reads_a_configuration_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    code, out, err = sdpo("models", "check", str(tmp_path), "--memory", "8GB", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["architecture"], found["backend"], found["refused"]) == ("qwen3", "mlx", [])
    assert 0 < found["memory"] < found["limit"]
    assert found["seconds"] is None  # of this machine, not of the one with 8 GB
    assert "gguf" in found["exports"]
    assert "fits" in sdpo("models", "check", str(tmp_path))[1]


@pytest.mark.parametrize(
    ("config", "words", "said"),
    [
        ({**SMALL, "model_type": "brand_new"}, (), "does not know the architecture 'brand_new'"),
        ({**SMALL, **MLX_4BIT}, ("--backend", "torch"), "quantized by mlx"),
        (LARGE, ("--memory", "8GB"), "a step needs"),
        ({"model_type": "mamba"}, (), ""),
    ],
)
def test_check_command_says_what_is_refused_and_what_to_do(
    config: dict[str, Any], words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, out, err = sdpo("models", "check", str(tmp_path), *words)
    assert "Traceback" not in err
    assert code == (2 if said else 0)
    line = next((line for line in out.splitlines() if line.startswith("refused")), "")
    assert said in line
    assert bool(said) == ("; " in line)
    assert bool(said) == ("none, since the model is refused" in out)


def test_plan_counts_a_prompt_with_each_rollout_where_it_is_not_shared() -> None:
    from sdpo_mlx.backends.memory_plan import memory, work_of
    from sdpo_mlx.backends.preflight import shares_prompts
    from sdpo_mlx.models.dimensions import ModelDims

    assert shares_prompts({"model_type": "qwen3"})
    assert not shares_prompts({"model_type": "llama4"})
    cfg, dims = Config(), ModelDims.of(SMALL, "small")
    apart, together = (work_of(cfg, 512, 1_024, 4, shares=shares) for shares in (False, True))
    assert memory(dims, cfg, apart).peak("learn") > 1.5 * memory(dims, cfg, together).peak("learn")
