"""Each export of each architecture has the logits of the model with its adapter, or one line names one that works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import write_sample
from requirements import needs_torch
from small_models import _COMMON, CONFIGS, write_config
from small_runs import settings
from temp_folders import new_folder
from vision_models import write_vision_model

from sdpo_mlx.config import AdapterConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.gguf.reader import import_gguf
from sdpo_mlx.runs.export.formats import ExportOptions, export, exports_of
from sdpo_mlx.runs.folder import RunFolder

pytestmark = needs_torch

WIDE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
PLAIN: Mapping[str, dict[str, Any]] = {
    **{name: CONFIGS[name] for name in ("qwen3", "llama", "qwen3_moe")},
    "gemma3": {**CONFIGS["gemma3"], "query_pre_attn_scalar": 16},
    "mistral": {**_COMMON, "model_type": "mistral", "tie_word_embeddings": False},
    "phi3": {**_COMMON, "model_type": "phi3", "pad_token_id": 0},
    "olmo2": {**_COMMON, "model_type": "olmo2", "tie_word_embeddings": False},
    "smollm3": {
        **_COMMON,
        "model_type": "smollm3",
        "num_hidden_layers": 4,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
    "gemma2": {
        **_COMMON,
        "model_type": "gemma2",
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 512,
    },
}
ATTENTION = ["self_attn.q_proj", "self_attn.v_proj"]
# What works, by architecture; every other export is refused.
WORKS: Mapping[str, set[str]] = {
    **{name: {"peft", "fused", "gguf", "gguf-lora"} for name in PLAIN},
    "qwen3_moe": {"fused", "gguf"},
    "qwen3_moe attention": {"peft", "fused", "gguf", "gguf-lora"},
    "olmo2": {"peft", "fused"},
    "vision qwen3_5": {"peft", "fused"},
    "vision gemma3": {"peft", "fused"},
    "vision mistral3": {"peft", "fused"},
}
ALWAYS = ("qwen3_moe", "olmo2", "smollm3", "vision gemma3")  # the others in the slow suite
FORMATS = ("peft", "fused", "gguf", "gguf-lora")
IDS = np.arange(36).reshape(2, 18) * 13 % 200


@cache
def words() -> Path:
    """Tokenizer files of some 330 tokens with a chat template."""
    folder = new_folder("words")
    write_sample(folder / "first.gguf", "qwen2", "F32")
    return import_gguf(folder / "first.gguf", folder / "first")


@cache
def run_of(name: str) -> tuple[Path, Path]:
    """A base and a run folder with a random adapter on it."""
    from sdpo_mlx.backends.mlx.adapter import attach, to_numpy
    from sdpo_mlx.backends.mlx.mlx_lm_api import load_model

    place = new_folder(name.replace(" ", "-"))
    rows = json.loads((words() / "config.json").read_text())["vocab_size"]
    if name.startswith("vision"):
        base = write_vision_model(place / "base", name.split()[1], rows=rows)
    else:
        config = {**PLAIN[name.split(maxsplit=1)[0]], **WIDE, "vocab_size": rows}
        base = as_published(write_config(place / "base", config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(words() / file, base / file)
    adapter = AdapterConfig(rank=4, keys=ATTENTION if "attention" in name else None)
    rng = np.random.default_rng(0)
    arrays = to_numpy(attach(load_model(base)[0], adapter, 0))
    arrays = {key: (a + 0.03 * rng.standard_normal(a.shape)).astype(np.float32) for key, a in arrays.items()}
    cfg = settings(model={"name": str(base), "adapter": adapter.model_dump()})
    run = RunFolder(place / "run")
    run.path.mkdir()
    run.write_config(cfg)
    keys = sorted({re.sub(r"^.*?layers\.\d+\.", "", key).rpartition(".")[0] for key in arrays})
    parameters = {"rank": adapter.rank, "scale": adapter.scale, "dropout": 0.0, "keys": keys}
    run.save_adapter(arrays, {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters})
    return base, run.path


def as_published(folder: Path) -> Path:
    """Store each expert of a mixture by itself, as transformers does; mlx-lm stacks them."""
    import mlx.core as mx

    found: Any = mx.load(str(folder / "model.safetensors"))
    arrays: dict[str, Any] = {}
    for name, array in found.items():
        block, stacked, rest = name.partition(".switch_mlp.")
        experts = {f"{block}.experts.{i}.{rest}": array[i] for i in range(array.shape[0])} if stacked else {}
        arrays |= experts or {name: array}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "pt"})
    return folder


def by_mlx_lm(base: Path, adapter: Path | None = None) -> np.ndarray:
    import mlx.core as mx

    from sdpo_mlx.backends.mlx.mlx_lm_api import load_adapters, load_model

    model, _ = load_model(base)
    if adapter is not None:
        model = load_adapters(model, str(adapter))
        model.eval()
    return np.array(model(mx.array(IDS)).astype(mx.float32))


def by_transformers(base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = json.loads((base / "config.json").read_text())["model_type"]
    opens = AutoModelForImageTextToText if kind == "mistral3" else AutoModelForCausalLM
    return opens.from_pretrained(base, dtype=torch.float32).eval()


def logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        found: np.ndarray = model(input_ids=torch.from_numpy(IDS)).logits.float().numpy()
    return found


def peft_logits(base: Path, made: Path, run: Path) -> np.ndarray:
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(by_transformers(base), made).eval())


def gguf_logits(base: Path, made: Path, run: Path) -> np.ndarray:
    """Read by our own import if it knows the architecture; that others are readable is test_gguf_architectures.py's."""
    file = next(made.glob("*.gguf"))
    try:
        return by_mlx_lm(import_gguf(file, made / "read", dtype="float32"))
    except ConfigError:
        return by_mlx_lm(base, run)


READ: Mapping[str, Callable[[Path, Path, Path], np.ndarray]] = {
    "peft": peft_logits,
    "fused": lambda base, made, run: by_mlx_lm(made),
    "gguf": gguf_logits,
}


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in WORKS]
)
def test_export_works_or_names_one_that_does(name: str, to: str, tmp_path: Path) -> None:
    base, run = run_of(name)
    if to not in WORKS[name]:
        with pytest.raises(ConfigError) as caught:
            export(run, to, tmp_path / "out")
        line = caught.value.line()
        assert "\n" not in line
        named = re.search(r"se --to (\S+?)[.,; ]", f"{line} ")
        assert named is not None, line
        assert named[1] in WORKS[name]
        assert not (tmp_path / "out").exists()
        return
    made = export(run, to, tmp_path / "out")
    if to == "gguf-lora":
        assert made.figures["tensors"]
        return
    found, wanted = READ[to](base, tmp_path / "out", run), by_mlx_lm(base, run)
    assert np.abs(found - wanted).max() < (3e-2 if to == "gguf" else 2e-3) * np.abs(wanted).max()
    assert np.abs(wanted - by_mlx_lm(base)).max() > 0.03 * np.abs(wanted).max()
    if to == "fused":
        again = logits(by_transformers(tmp_path / "out"))
        assert np.abs(again - wanted).max() < 2e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["qwen3", "vision gemma3", "vision qwen3_5", "vision mistral3"])
def test_adapter_comes_back_from_peft_with_its_names(name: str, tmp_path: Path) -> None:
    base, run = run_of(name)
    export(run, "peft", tmp_path / "peft")
    export(tmp_path / "peft", "mlx", tmp_path / "mlx", ExportOptions(base=str(base)))
    (ours, _), (back, _) = (RunFolder(folder).load_adapter() for folder in (run, tmp_path / "mlx"))
    assert ours.keys() == back.keys()
    assert all(np.array_equal(ours[key], back[key]) for key in ours)
    if name.startswith("vision"):
        targets = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["target_modules"]
        assert not [target for target in targets if "vision" in target]


def test_fused_export_reads_the_names_of_older_runs_on_torch(tmp_path: Path) -> None:
    base, run = run_of("vision gemma3")
    old = shutil.copytree(run, tmp_path / "old")
    arrays, layout = RunFolder(run).load_adapter()
    renamed = {name.replace("language_model.model.", "model.language_model."): each for name, each in arrays.items()}
    RunFolder(old).save_adapter(renamed, layout)
    for folder, name in ((run, "new"), (old, "from-old")):
        export(folder, "fused", tmp_path / name)
    for file in (tmp_path / "new").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "from-old" / file.name).read_bytes()
    found = peft_logits(base, export(old, "peft", tmp_path / "peft").folder, old)
    assert np.abs(found - by_mlx_lm(base, run)).max() < 2e-3 * np.abs(found).max()


def test_command_for_peft_opens_a_base_that_only_an_image_class_knows(tmp_path: Path) -> None:
    base, run = run_of("vision mistral3")
    command = export(run, "peft", tmp_path / "peft").next_steps["PEFT"]
    code = shlex.split(command)[2].replace("P.from_pretrained", "model = P.from_pretrained")
    found: dict[str, Any] = {}
    exec(code, found)
    assert np.abs(logits(found["model"].eval()) - by_mlx_lm(base, run)).max() < 2e-3


def test_architecture_that_only_transformers_knows_has_no_fused_export(tmp_path: Path) -> None:
    config = {"model_type": "bloom", "n_layer": 1, "hidden_size": 8}
    assert exports_of(config) == ["peft"]
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "base" / "model.safetensors").write_bytes(b"")
    run.write_config(settings(model={"name": str(tmp_path / "base"), "backend": "torch"}))
    run.save_adapter({"a.lora_a": np.zeros((1, 1), np.float32)}, {"lora_parameters": {}})
    with pytest.raises(ConfigError, match=r"bloom.*--to peft"):
        export(run.path, "fused", tmp_path / "out")
