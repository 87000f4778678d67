"""Adapters in every type and layout: bfloat16 is read, and what cannot be loaded is named with the way out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from command import sdpo
from gguf_files import write_sample

from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.models.peft_layout import from_peft, to_peft
from sdpo_mlx.models.safetensors_io import read_arrays
from sdpo_mlx.runs.export.formats import export_mlx
from sdpo_mlx.runs.export.next_steps import for_gguf, for_gguf_lora, ollama_name
from sdpo_mlx.runs.folder import RunFolder

POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"
)
LAYER = "model.layers.{}.self_attn.q_proj"
PEFT_CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def safetensors(tensors: Mapping[str, tuple[str, npt.NDArray[Any]]]) -> bytes:
    """A file of these bits, each under the name of its type in the format."""
    header, data = {}, b""
    for name, (code, bits) in tensors.items():
        end = len(data) + bits.nbytes
        header[name] = {"dtype": code, "shape": list(bits.shape), "data_offsets": [len(data), end]}
        data += bits.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def half(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper half of each number's bits: bfloat16, cut."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def factors(rank: int = 4) -> dict[str, npt.NDArray[np.float32]]:
    """LoRA factors in PEFT's layout for the three blocks of the embedded model."""
    width = json.loads((Path(__file__).parents[3] / "sdpo_mlx/assets/tiny/config.json").read_text())["hidden_size"]
    rng, made = np.random.default_rng(0), {}
    for block in range(3):
        for side, shape in (("A", (rank, width)), ("B", (width, rank))):
            name = f"base_model.model.{LAYER.format(block)}.lora_{side}.weight"
            made[name] = rng.standard_normal(shape).astype(np.float32)
    return made


def peft_folder(path: Path, code: str = "BF16", **settings: Any) -> Path:
    path.mkdir()
    bits = {"BF16": half, "F16": lambda a: a.astype(np.float16), "F8_E4M3": lambda a: half(a).view(np.uint8)[..., ::2]}
    tensors = {name: (code, np.ascontiguousarray(bits.get(code, np.asarray)(a))) for name, a in factors().items()}
    (path / "adapter_model.safetensors").write_bytes(safetensors(tensors))
    (path / "adapter_config.json").write_text(json.dumps({**PEFT_CONFIG, **settings}))
    return path


def refused(*words: str, code: int = 2) -> str:
    """The one line with which a command ends."""
    found, _, err = sdpo(*words)
    errors = [line for line in err.splitlines() if not line.startswith("loading ")]
    assert (found, len(errors)) == (code, 1), err
    return errors[0]


def test_bfloat16_is_read_bit_for_bit_and_other_types_as_they_are() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    others = {code: np.arange(6).astype(kind).reshape(2, 3) for code, kind in (("F16", "f2"), ("I64", "i8"))}
    read = read_arrays(safetensors({"x": ("BF16", bits), **{code: (code, a) for code, a in others.items()}}))
    np.testing.assert_array_equal(read["x"].view(np.uint32), bits.astype(np.uint32) << 16)
    for code, array in others.items():
        np.testing.assert_array_equal(read[code], array)
        assert read[code].dtype == array.dtype
    assert read_arrays(safetensors({"one": ("BF16", half(np.array(1.5, np.float32)))}))["one"] == 1.5


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2"])
def test_float8_and_damage_are_named(code: str) -> None:
    content = safetensors({"x": (code, np.zeros(4, np.uint8))})
    with pytest.raises(ValueError, match=f"x is stored as {code}; convert"):
        read_arrays(content)
    for damaged in (b"", b"no header", content[:-1]):
        with pytest.raises(ValueError, match=r"."):
            read_arrays(damaged)


@pytest.mark.parametrize("code", ["BF16", "F16", "F32"])
def test_peft_adapter_of_any_type_is_converted(code: str, tmp_path: Path) -> None:
    peft = peft_folder(tmp_path / "peft", code)
    assert sdpo("export", str(peft), "--to", "mlx", "--model", "tiny", "--out", str(tmp_path / "mlx"))[0] == 0
    arrays, _ = RunFolder(tmp_path / "mlx").load_adapter()
    wanted = factors()["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"].T
    np.testing.assert_allclose(arrays["model.layers.1.self_attn.q_proj.lora_a"], wanted, rtol=2**-7, atol=1e-6)


def test_mlx_lms_adapter_in_bfloat16_is_loaded(tmp_path: Path) -> None:
    tensors = {f"{LAYER.format(0)}.lora_a": ("BF16", half(np.full((8, 2), 0.5, np.float32)))}
    (tmp_path / "adapters.safetensors").write_bytes(safetensors(tensors))
    (tmp_path / "adapter_config.json").write_text('{"lora_parameters": {"rank": 2}}')
    arrays, _ = RunFolder(tmp_path).load_adapter()
    assert arrays[f"{LAYER.format(0)}.lora_a"].dtype == np.float32
    assert (arrays[f"{LAYER.format(0)}.lora_a"] == 0.5).all()


def test_adapter_that_needs_no_conversion_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "adapters.safetensors").write_bytes(safetensors({"x": ("F32", np.zeros(2, np.float32))}))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "in mlx-lm's layout already" in refused("export", str(tmp_path), "--to", "mlx", "--model", "tiny")


def test_float8_adapter_ends_in_one_line(tmp_path: Path) -> None:
    peft = peft_folder(tmp_path / "peft", "F8_E4M3")
    with pytest.raises(StorageError, match="stored as F8_E4M3; convert the file to float32, float16 or bfloat16"):
        export_mlx(peft, "tiny", tmp_path / "out")


@pytest.mark.parametrize("rank", [4, 7, 16])
def test_scale_of_rslora_is_alpha_over_the_root_of_the_rank(rank: int) -> None:
    settings = {**PEFT_CONFIG, "r": rank, "lora_alpha": 10}
    (_, plain), (arrays, stabilised) = (
        from_peft(factors(rank), {**settings, "use_rslora": flag}, 3) for flag in (False, True)
    )
    assert plain["lora_parameters"]["scale"] == 10 / rank
    assert stabilised["lora_parameters"]["scale"] == pytest.approx(10 / math.sqrt(rank))
    _, back = to_peft(arrays, stabilised, "base")
    divisor = math.sqrt(rank) if back["use_rslora"] else rank
    assert back["lora_alpha"] / divisor == pytest.approx(10 / math.sqrt(rank))  # PEFT computes the same product


@pytest.mark.parametrize(
    "words", [("chat", "tiny", "--adapter"), ("eval", "tiny", "--adapter"), ("serve", "tiny", "--adapter")]
)
def test_peft_folder_as_an_adapter_is_named_with_the_command_that_converts_it(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    peft = peft_folder(tmp_path / "my peft")
    err = refused(*words, str(peft))
    assert "in PEFT's layout" in err
    found = re.search(r"`sdpo (export '.*my peft' --to mlx --model tiny --out '(.*)')`", err)
    assert found
    assert sdpo("export", str(peft), "--to", "mlx", "--model", "tiny", "--out", found[2])[0] == 0
    assert RunFolder(found[2]).load_adapter()[0]


@pytest.mark.parametrize(
    "words",
    [
        ("rollout", "--run", "DIR"),
        ("export", "DIR", "--to", "gguf"),
        ("export", "DIR", "--to", "peft"),
        ("push", "DIR", "me/it"),
    ],
)
def test_peft_folder_in_place_of_a_run_is_named(words: tuple[str, ...], tmp_path: Path) -> None:
    peft = peft_folder(tmp_path / "p", base_model_name_or_path="owner/base")
    err = refused(*(str(peft) if word == "DIR" else word for word in words))
    assert "--to mlx --model owner/base" in err


def test_adapter_in_place_of_a_model_is_named(tmp_path: Path) -> None:
    for command in (("chat", str(peft_folder(tmp_path / "p"))), ("plan", "--model", str(tmp_path / "p"))):
        err = refused(*command)
        assert "this is an adapter, not a model" in err


def test_pickled_peft_adapter_is_told_how_to_save_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT_CONFIG))
    for words in (
        ("chat", "tiny", "--adapter", str(tmp_path)),
        ("export", str(tmp_path), "--to", "mlx", "--model", "tiny"),
    ):
        err = refused(*words)
        assert "safe_serialization=True" in err


def test_damaged_settings_of_peft_end_in_one_line(tmp_path: Path) -> None:
    for number, text in enumerate(
        ("[]", "{", '{"peft_type": "LORA"}', '{"peft_type": "LORA", "r": "x", "lora_alpha": 1}')
    ):
        peft = peft_folder(tmp_path / str(number))
        (peft / "adapter_config.json").write_text(text)
        assert "adapter" in refused("export", str(peft), "--to", "mlx", "--model", "tiny", code=5)


def lora_gguf(path: Path, *, typed: bool = True) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if typed:
        writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize(
    "words", [("models", "import", "FILE"), ("plan", "--model", "FILE"), ("chat", "FILE"), ("models", "show", "FILE")]
)
def test_lora_in_a_gguf_is_named_as_an_adapter(typed: bool, words: tuple[str, ...], tmp_path: Path) -> None:
    file = lora_gguf(tmp_path / "lora.gguf", typed=typed)
    code, out, err = sdpo(*(str(file) if word == "FILE" else word for word in words))
    assert "LoRA adapter, not a model" in out + err
    assert code == (0 if words[:2] == ("models", "show") else 2)


def test_lora_in_a_gguf_as_an_adapter_is_named(tmp_path: Path) -> None:
    err = refused("chat", "tiny", "--adapter", str(lora_gguf(tmp_path / "lora.gguf")))
    assert "llama.cpp" in err


POINTED = {
    "model.safetensors": ("chat", "MODEL"),
    "tokenizer.json": ("plan", "--model", "MODEL"),
    "config.json": ("chat", "MODEL"),
    "tokenizer.model": ("chat", "MODEL"),
}


@pytest.mark.parametrize("name", POINTED)
def test_pointer_of_git_lfs_in_a_model_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / name).write_text(POINTER)
    err = refused(*(str(tmp_path) if word == "MODEL" else word for word in POINTED[name]))
    assert f"{name} is a pointer of git-LFS" in err
    assert "git lfs pull" in err


def test_picture_that_is_a_pointer_hinders_nothing(tmp_path: Path) -> None:
    (tmp_path / "curve.png").write_text(POINTER)
    (tmp_path / "model.gguf").write_bytes(write_sample(tmp_path / "s.gguf", "llama").path.read_bytes())
    (tmp_path / "adapters.safetensors").write_bytes(safetensors({"x": ("F32", np.zeros(2, np.float32))}))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert RunFolder(tmp_path).load_adapter()[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapters.safetensors", ("chat", "tiny", "--adapter", "DIR")),
        ("adapter_config.json", ("eval", "tiny", "--adapter", "DIR")),
        ("adapter_model.safetensors", ("export", "DIR", "--to", "mlx", "--model", "tiny")),
        ("model.gguf", ("models", "import", "DIR/model.gguf")),
        ("model.gguf", ("chat", "DIR/model.gguf")),
        ("rows.jsonl", ("data", "check", "DIR/rows.jsonl")),
        ("rows.jsonl.gz", ("data", "check", "DIR/rows.jsonl.gz")),
        ("rows.csv", ("data", "check", "DIR/rows.csv")),
        ("rows.json", ("data", "check", "DIR/rows.json")),
        ("rows.parquet", ("data", "check", "DIR/rows.parquet")),
    ],
)
def test_pointer_of_git_lfs_is_named_wherever_a_file_is_read(name: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / name).write_text(POINTER)
    err = refused(*(word.replace("DIR", str(tmp_path)) for word in words), code=3 if words[0] == "data" else 2)
    assert name in err
    assert "is a pointer of git-LFS" in err
    assert "git lfs pull" in err


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("first run", "first-run"),
        ("First_Run.v2", "first_run.v2"),
        ("naïve café", "naive-cafe"),
        ("日本", "sdpo"),
        ("--x--", "x"),
        ("a/b:c@d", "a-b-c-d"),
        ("x" * 200, "x" * 80),
        ("..", "sdpo"),
    ],
)
def test_names_for_ollama_have_its_letters_alone(name: str, wanted: str) -> None:
    assert ollama_name(name) == wanted
    assert re.fullmatch(r"[a-z0-9_][a-z0-9._-]{0,79}", ollama_name(name))


def test_suggested_command_of_ollama_holds_a_valid_name_twice(tmp_path: Path) -> None:
    run = tmp_path / "My First Run"
    for steps in (for_gguf(run, run / "m.gguf"), for_gguf_lora(run, run / "m.gguf")):
        assert steps["Ollama"].startswith("ollama create my-first-run -f '")
        assert steps["Ollama"].endswith(" && ollama run my-first-run")


def test_configuration_errors_are_the_documented_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="PEFT's layout"):
        RunFolder(peft_folder(tmp_path / "p")).load_adapter()
