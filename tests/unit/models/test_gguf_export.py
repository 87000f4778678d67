"""GGUF files that we write: read back by our own reader and by transformers, weights, settings and words alike."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf_files import ARCHITECTURES, write_sample
from temp_folders import new_folder

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.gguf.reader import import_gguf, read_gguf
from sdpo_mlx.models.gguf.writer import write_gguf, write_gguf_lora

TEXTS = ["the cat sat on 12345 mats", "don't  stop\n\nnow", "<|im_start|>user\nhi<|im_end|>"]
STEPS = {"F16": 2.0**-11, "BF16": 2.0**-8, "Q8_0": 2.0**-7}  # relative rounding; Q8_0's is to its block's largest


def weights(folder: Path) -> dict[str, Any]:
    from sdpo_mlx.backends.mlx.fuse import float_weights

    return dict(float_weights(folder))


@cache
def model_folder(arch: str, **options: Any) -> Path:
    folder = new_folder(arch)
    write_sample(folder / "first.gguf", arch, "F32", **options)
    made = import_gguf(folder / "first.gguf", folder / "first")
    (folder / "first.gguf").unlink()
    return made


def there_and_back(tmp_path: Path, arch: str, kind: Any, **options: Any) -> tuple[Path, Path]:
    """A model folder, and what came back of it through a GGUF that we wrote."""
    first = model_folder(arch, **options)
    write_gguf(first, weights(first).items(), tmp_path / "ours.gguf", kind)
    return first, import_gguf(tmp_path / "ours.gguf", tmp_path / "second", dtype="float32")


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_model_comes_back_but_for_the_rounding_of_its_type(tmp_path: Path, arch: str, kind: str, tied: bool) -> None:
    first, second = there_and_back(tmp_path, arch, kind, tied=tied)
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        largest = np.abs(array).max()
        gap = np.abs(theirs[name] - array).max()
        assert gap <= (2e-7 * max(1.0, largest) if array.ndim == 1 else STEPS[kind] * largest)
        assert array.ndim == 1 or gap > 0
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (first, second))
    assert {**before, "torch_dtype": 0} == {**after, "torch_dtype": 0}


def test_file_has_the_title_that_it_is_given(tmp_path: Path) -> None:
    write_gguf(model_folder("llama"), weights(model_folder("llama")).items(), tmp_path / "a.gguf", "F16", "my run")
    assert GGUFReader(tmp_path / "a.gguf").fields["general.name"].contents() == "my run"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_words_control_tokens_and_template_come_back(tmp_path: Path, arch: str) -> None:
    from tokenizers import Tokenizer

    folders = there_and_back(tmp_path, arch, "F16")
    first, second = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in folders)
    for text in TEXTS:
        assert first.encode(text).ids == second.encode(text).ids
    settings = [json.loads((folder / "tokenizer_config.json").read_text()) for folder in folders]
    assert settings[0] == settings[1]
    ends = [json.loads((folder / "generation_config.json").read_text()) for folder in folders]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("begins", [True, False])
def test_file_says_whether_the_tokenizer_begins_a_text_with_bos(tmp_path: Path, begins: bool) -> None:
    from gguf import GGUFReader
    from tokenizers import Tokenizer, processors

    folder = shutil.copytree(model_folder("llama"), tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = "<s>"
    tokenizer.add_special_tokens([bos])
    if begins:
        ids = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=ids)
    tokenizer.save(str(folder / "tokenizer.json"))
    file = folder / "tokenizer_config.json"
    settings = {name: v for name, v in json.loads(file.read_text()).items() if name != "add_bos_token"}
    file.write_text(json.dumps({**settings, "bos_token": bos}))
    write_gguf(folder, weights(folder).items(), tmp_path / "ours.gguf", "F16")
    said = GGUFReader(tmp_path / "ours.gguf").get_field("tokenizer.ggml.add_bos_token")
    assert bool(said.parts[said.data[0]][0]) is begins


@pytest.mark.parametrize("linear", [0, 4.0])
def test_long_context_scaling_comes_back(tmp_path: Path, linear: float) -> None:
    first, second = there_and_back(tmp_path, "llama", "F16", tied=False, linear=linear)
    before, after = (json.loads((folder / "config.json").read_text())["rope_scaling"] for folder in (first, second))
    assert before == pytest.approx(after)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.long
def test_transformers_reads_the_file_with_the_same_logits(tmp_path: Path, arch: str) -> None:
    torch = pytest.importorskip("torch", reason="transformers reads GGUF weights with torch only")
    from transformers import AutoModelForCausalLM

    first, _ = there_and_back(tmp_path, arch, "F16")
    ids = torch.arange(24).reshape(2, 12) * 13 % 200
    with torch.no_grad():
        read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="ours.gguf", dtype=torch.float32)
        whole = AutoModelForCausalLM.from_pretrained(first, dtype=torch.float32)
        found, wanted = (model.eval()(input_ids=ids).logits for model in (read, whole))
    assert float((found - wanted).abs().max()) < 2e-2 * float(wanted.abs().max())
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_llama_cpp_reads_the_file_with_the_same_logits_and_words(tmp_path: Path, arch: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    import sdpo_mlx.backends.mlx.mlx_lm_api  # noqa: F401  loads the BLAS first, and mlx-lm without torch
    import mlx.core as mx  # isort: skip
    from mlx_lm.utils import load_model  # isort: skip
    from tokenizers import Tokenizer

    first, _ = there_and_back(tmp_path, arch, "F16")
    read = llama_cpp.Llama(str(tmp_path / "ours.gguf"), n_ctx=64, logits_all=True, verbose=False, seed=0)
    ids = [int(i) for i in np.arange(24) * 13 % 200]
    read.eval(ids)
    model, _ = load_model(first)
    model.set_dtype(mx.float32)
    wanted = np.array(model(mx.array([ids]))[0])
    found = np.array(read.scores[: len(ids)])
    assert np.abs(found - wanted).max() < 2e-2 * np.abs(wanted).max()
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))
    words = Tokenizer.from_file(str(first / "tokenizer.json"))
    for text in TEXTS:
        assert (
            read.tokenize(text.encode(), add_bos=False, special=True)
            == words.encode(text, add_special_tokens=False).ids
        )


def test_adapter_holds_the_factors_in_the_order_of_its_base(tmp_path: Path) -> None:
    write_sample(tmp_path / "base.gguf", "llama", "F32")
    base = import_gguf(tmp_path / "base.gguf", tmp_path / "base")
    rng, whole = np.random.default_rng(0), weights(base)
    name = "model.layers.1.self_attn.q_proj"
    out_rows, in_rows = whole[f"{name}.weight"].shape
    a, b = rng.standard_normal((in_rows, 4)).astype(np.float32), rng.standard_normal((4, out_rows)).astype(np.float32)
    adapter = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 2.0}}
    write_gguf_lora(base, {f"{name}.lora_a": a, f"{name}.lora_b": b}, adapter, tmp_path / "lora.gguf")
    metadata, tensors = read_gguf(tmp_path / "lora.gguf")
    assert (metadata["general.type"], metadata["adapter.type"], metadata["adapter.lora.alpha"]) == (
        "adapter",
        "lora",
        8.0,
    )
    down, up = (tensors[f"blk.1.attn_q.weight.lora_{which}"].data for which in "ab")
    fused = {**whole, f"{name}.weight": whole[f"{name}.weight"] + 2.0 * (a @ b).T}
    write_gguf(base, fused.items(), tmp_path / "fused.gguf", "F16")
    write_gguf(base, whole.items(), tmp_path / "plain.gguf", "F16")
    both = [read_gguf(tmp_path / f"{n}.gguf")[1]["blk.1.attn_q.weight"].data for n in ("fused", "plain")]
    change = both[0].astype(np.float32) - both[1].astype(np.float32)
    np.testing.assert_allclose(change, 8.0 / 4 * up @ down, atol=0.05)


def test_dora_has_no_form_as_gguf_adapter(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plain LoRA"):
        write_gguf_lora(tmp_path, {}, {"fine_tune_type": "dora"}, tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "olmo2"}, "olmo2"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ],
)
def test_model_without_a_form_in_gguf_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write_sample(tmp_path / "first.gguf", "qwen3", "F32")
    first = import_gguf(tmp_path / "first.gguf", tmp_path / "first")
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ConfigError, match=said):
        write_gguf(first, [], tmp_path / "ours.gguf", "F16")


def test_tokenizer_without_a_name_in_gguf_is_refused(tmp_path: Path) -> None:
    write_sample(tmp_path / "first.gguf", "qwen3", "F32")
    first = import_gguf(tmp_path / "first.gguf", tmp_path / "first")
    content = (first / "tokenizer.json").read_text(encoding="utf-8")
    (first / "tokenizer.json").write_text(content.replace("\\\\p{N}", "\\\\d"), encoding="utf-8")
    with pytest.raises(ConfigError, match="no name in GGUF"):
        write_gguf(first, [], tmp_path / "ours.gguf", "F16")
