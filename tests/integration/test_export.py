"""Adapters travel: to PEFT and back without losing a bit, fused into their base with a measured loss."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import socket
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_runs import KINDS, LEARNS, SHORT, logits_by_mlx_lm, make_runs, stir
from command import sdpo
from gguf import GGUFReader
from small_runs import settings, trained

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.adapter_folder import CONFIG
from sdpo_mlx.models.peft_layout import from_peft, read_peft, to_peft
from sdpo_mlx.models.resolve import ResolvedModel, original, resolve
from sdpo_mlx.runs.export.formats import export_fused, export_gguf_lora, export_mlx, export_peft
from sdpo_mlx.runs.export.next_steps import for_peft
from sdpo_mlx.runs.folder import RunFolder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_comes_back_from_peft_bit_for_bit(runs: dict[str, Path], kind: str, tmp_path: Path) -> None:
    export_peft(runs[kind], tmp_path / "peft")
    export_mlx(tmp_path / "peft", "tiny", tmp_path / "back")
    (ours, config), (back, other) = (RunFolder(path).load_adapter() for path in (runs[kind], tmp_path / "back"))
    assert ours.keys() == back.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, back[name])
    assert config["fine_tune_type"] == other["fine_tune_type"]
    assert other["num_layers"] == config["num_layers"]
    for key in ("rank", "scale", "dropout"):
        assert other["lora_parameters"][key] == config["lora_parameters"][key]


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_loads_the_run_and_what_came_back_alike(runs: dict[str, Path], kind: str, tmp_path: Path) -> None:
    export_peft(runs[kind], tmp_path / "peft")
    export_mlx(tmp_path / "peft", "tiny", tmp_path / "back")
    np.testing.assert_array_equal(logits_by_mlx_lm(runs[kind]), logits_by_mlx_lm(tmp_path / "back"))


@pytest.mark.parametrize("kind", KINDS)
def test_fused_model_says_the_same_and_what_it_lost(runs: dict[str, Path], kind: str, tmp_path: Path) -> None:
    made = export_fused(runs[kind], tmp_path / "fused")
    assert made.figures["kind"] == "plain"
    assert made.figures["adapter"] > 10 * made.figures["lost"] >= 0
    assert made.warnings == ()
    fused, wanted = logits_by_mlx_lm(None, tmp_path / "fused"), logits_by_mlx_lm(runs[kind])
    assert np.abs(fused - wanted).max() < 0.05  # the embedded weights are stored in 16 bits
    assert (fused.argmax(-1) == wanted.argmax(-1)).mean() > 0.97


def test_scale_multiplies_a_lora_in_every_format(runs: dict[str, Path], tmp_path: Path) -> None:
    by_hand = tmp_path / "by hand"
    shutil.copytree(runs["lora"], by_hand)
    config = json.loads((by_hand / CONFIG).read_text())
    config["lora_parameters"]["scale"] *= 0.5
    (by_hand / CONFIG).write_text(json.dumps(config))
    made = export_fused(runs["lora"], tmp_path / "fused", 0.5)
    fused, wanted = logits_by_mlx_lm(None, tmp_path / "fused"), logits_by_mlx_lm(by_hand)
    assert np.abs(fused - wanted).max() < 0.05  # as above
    assert np.abs(fused - logits_by_mlx_lm(runs["lora"])).max() > 0.5
    assert made.figures["adapter"] > 10 * made.figures["lost"] >= 0
    export_peft(runs["lora"], tmp_path / "peft", 0.5)
    export_mlx(tmp_path / "peft", "tiny", tmp_path / "back")
    assert RunFolder(tmp_path / "back").load_adapter()[1]["lora_parameters"]["scale"] == 1.0
    export_gguf_lora(runs["lora"], tmp_path / "gguf", 0.5)
    file = next((tmp_path / "gguf").glob("*.gguf"))
    assert float(GGUFReader(file).fields["adapter.lora.alpha"].contents()) == config["lora_parameters"]["rank"]
    base = RunFolder(runs["lora"]).load_adapter()
    assert base[1]["lora_parameters"]["scale"] == 2.0  # the run is as it was


def test_fused_model_can_be_evaluated_like_any_other(runs: dict[str, Path], tmp_path: Path) -> None:
    export_fused(runs["lora"], tmp_path / "fused")
    words = (
        "eval",
        str(tmp_path / "fused"),
        "--task",
        "tiny",
        "--problems",
        "2",
        "--group-size",
        "1",
        "--json",
        "--no-cache",
    )
    code, out, _ = sdpo(*words)
    assert code == 0
    assert 0 <= json.loads(out)["score"] <= 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
    ],
)
def test_adapter_that_mlx_lm_has_no_form_of_is_refused(
    runs: dict[str, Path], change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    export_peft(runs["lora"], tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / CONFIG).read_text())
    (tmp_path / "peft" / CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(ConfigError, match=said):
        export_mlx(tmp_path / "peft", "tiny", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_adapter_of_the_first_blocks_alone_is_refused(runs: dict[str, Path]) -> None:
    tensors, config = to_peft(*RunFolder(runs["last block"]).load_adapter(), "base")
    moved = {name.replace(".layers.2.", ".layers.0."): array for name, array in tensors.items()}
    with pytest.raises(ConfigError, match="last blocks"):
        from_peft(moved, config, 3)


def test_mistakes_end_in_one_line_and_leave_nothing(runs: dict[str, Path], tmp_path: Path) -> None:
    run = str(runs["lora"])
    (tmp_path / "there").mkdir()
    for words, code, said in (
        (("export", run, "--to", "peft", "--out", str(tmp_path / "there")), 2, "exists already"),
        (("export", str(tmp_path / "absent"), "--to", "peft"), 5, "no adapter"),
        (("export", str(tmp_path / "absent"), "--to", "mlx", "--model", "tiny"), 5, "no PEFT adapter"),
        (("export", run, "--to", "mlx"), 2, "--model"),
        (("export", run, "--to", "gold"), 2, "gold"),
        (("export", run, "--to", "gguf"), 2, "no name in GGUF"),  # the embedded model's own tokenizer
        (("export", run, "--to", "fused", "--quantized"), 2, "not quantized"),
        (("export", str(runs["dora"]), "--to", "gguf-lora"), 2, "plain LoRA"),
        (("export", str(runs["dora"]), "--to", "peft", "--scale", "0.5"), 2, "kind dora cannot be scaled"),
        (("export", run, "--to", "mlx", "--scale", "0.5"), 2, "adapter_config.json"),
        (("export", run, "--to", "peft", "--scale", "-1"), 2, "--scale"),
        (("export", run, "--to", "peft", "--scale", "nan"), 2, "--scale"),
        (("export", run, "--to", "peft", "--scale", "inf"), 2, "--scale"),
    ):
        found, _, err = sdpo(*words)
        assert (found, len(err.strip().splitlines())) == (code, 1), err
        assert said in err
    assert not [*runs["lora"].parent.glob("*-gguf*"), *runs["lora"].parent.glob("*-fused")]


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(ConfigError, match="safe_serialization"):
        read_peft(tmp_path)


def test_full_weights_are_no_adapter() -> None:
    with pytest.raises(ConfigError, match="--to fused"):
        to_peft({}, {"fine_tune_type": "full"}, "base")


def mlx_lm(*words: str, said: str = "") -> str:
    """Run a command of mlx-lm with this text on its stdin, in this process; return its stdout."""
    import sdpo_mlx.backends.mlx.mlx_lm_api  # noqa: F401  loads the BLAS first
    from mlx_lm.cli import main  # isort: skip

    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr("sys.argv", ["mlx_lm", *words])
        patch.setattr("sys.stdin", io.StringIO(said))
        main()
    return out.getvalue()


def test_mlx_lms_own_commands_take_the_run_folder_as_it_is(runs: dict[str, Path], tmp_path: Path) -> None:
    base = str(resolve("tiny").path)
    common = ("--model", base, "--adapter-path", str(runs["lora"]))
    said = mlx_lm("generate", *common, "--prompt", "Write f(x): square, behead", "--max-tokens", "8", "--temp", "0")
    assert "==========" in said
    mlx_lm("fuse", *common, "--save-path", str(tmp_path / "fused"))
    export_fused(runs["lora"], tmp_path / "ours")
    np.testing.assert_array_equal(logits_by_mlx_lm(None, tmp_path / "fused"), logits_by_mlx_lm(None, tmp_path / "ours"))


def test_mlx_lms_chat_speaks_with_the_adapter(runs: dict[str, Path]) -> None:
    common = ("--model", str(resolve("tiny").path), "--adapter-path", str(runs["lora"]))
    question = "Write f(x): square, behead"
    wanted = mlx_lm("generate", *common, "--prompt", question, "--max-tokens", "8", "--temp", "0").split("==========")[
        1
    ]
    chatted = mlx_lm("chat", *common, "--max-tokens", "8", "--temp", "0", said=f"{question}\nq\n")
    assert wanted.strip() in chatted


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base of eight bits a weight, and a short run on it."""
    folder = tmp_path_factory.mktemp("quantized")
    base, run = quantized_tiny(folder / "base"), folder / "run"
    cfg = settings(model={"name": str(base), "adapter": KINDS["lora"]}, rollout=SHORT, train=LEARNS)
    trained(run, cfg)
    RunFolder(run).write_config(cfg)
    stir(run)
    return base, run


@pytest.mark.parametrize("again", [False, True])
def test_quantized_base_is_fused_either_way_and_the_loss_is_said(
    again: bool, quantized: tuple[Path, Path], tmp_path: Path
) -> None:
    base, run = quantized
    made = export_fused(run, tmp_path / "fused", quantized=again)
    assert made.figures["kind"] == ("re-quantized" if again else "dequantized")
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    assert ("quantization" in config) is again
    fused = logits_by_mlx_lm(None, tmp_path / "fused")
    wanted = logits_by_mlx_lm(run, base)
    share = 0.9 if again else 0.97  # eight bits a weight against sixteen
    assert (fused.argmax(-1) == wanted.argmax(-1)).mean() > share
    assert made.figures["lost"] < made.figures["adapter"]


def quantized_tiny(out: Path) -> Path:
    """The embedded model in eight bits a weight."""
    import sdpo_mlx.backends.mlx.mlx_lm_api  # noqa: F401  loads the BLAS first, and mlx-lm without torch
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model  # isort: skip

    base = resolve("tiny").path
    model, config = load_model(base)
    model, config = quantize_model(model, config, group_size=32, bits=8)
    out.mkdir()
    save_model(out, model)
    save_config(config, out / "config.json")
    for file in base.iterdir():
        if file.suffix in (".json", ".jinja") and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
    return out


# ---- what to type next


def test_next_steps_name_what_is_there_and_mlx_lm_takes_them(runs: dict[str, Path], tmp_path: Path) -> None:
    from mlx_lm.fuse import parse_arguments
    from mlx_lm.generate import setup_arg_parser

    run, odd = runs["lora"], tmp_path / "with space"
    made = {
        "peft": export_peft(run, odd / "peft"),
        "mlx": export_mlx(odd / "peft", "tiny", odd / "mlx"),
        "fused": export_fused(run, odd / "fused"),
    }
    for each in made.values():
        words = shlex.split(each.next_steps.get("mlx-lm", "mlx_lm.generate --model x --prompt y"))
        assert words[0] == "mlx_lm.generate"
        known = setup_arg_parser().parse_args(words[1:])
        assert known.model == "x" or Path(known.model).is_dir()
        assert known.adapter_path is None or (Path(known.adapter_path) / "adapters.safetensors").is_file()
    fuse = shlex.split(made["mlx"].next_steps["LM Studio"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", fuse)
        assert Path(parse_arguments().adapter_path) == odd / "mlx"
    served = shlex.split(made["peft"].next_steps["vllm"])
    options = dict(zip(served[4::2], served[5::2], strict=True))
    assert served[:2] == ["vllm", "serve"] and served[3] == "--enable-lora"  # noqa: PT018
    assert Path(served[2]).is_dir()
    assert options == {"--max-lora-rank": "8", "--lora-modules": f"lora={odd / 'peft'}"}
    assert "--to fused" in export_peft(runs["dora"], odd / "dora").next_steps["vllm"]
    program = shlex.split(made["peft"].next_steps["PEFT"])[2]
    compile(program, "next", "exec")
    assert repr(str(odd / "peft")) in program


def test_our_own_next_steps_are_commands_of_ours(runs: dict[str, Path], tmp_path: Path) -> None:
    made = [export_peft(runs["lora"], tmp_path / "peft"), export_fused(runs["lora"], tmp_path / "fused")]
    ours = [line for each in made for line in each.next_steps.values() if line.startswith("sdpo ")]
    assert len(ours) == 3
    assert not any("gguf" in line for line in ours)  # the embedded model's tokenizer has no name there
    for line in ours:
        code, out, _ = sdpo(*shlex.split(line)[1:], "--help")
        assert code == 0
        assert all(word in out for word in shlex.split(line) if word.startswith("--"))


def test_adapter_that_changes_nothing_is_named_by_export_chat_serve_and_push(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, warning = tmp_path / "still", "warning: this adapter changes nothing"
    shutil.copytree(runs["lora"], run)
    arrays, config = RunFolder(run).load_adapter()
    RunFolder(run).save_adapter({name: np.zeros_like(array) for name, array in arrays.items()}, config)
    code, out, err = sdpo("export", str(run), "--to", "peft")
    assert code == 0
    assert warning in err
    assert out.splitlines()[0] == f"wrote {run}-peft: an adapter in PEFT's layout, {len(arrays)} tensors"
    assert export_peft(runs["lora"], tmp_path / "learned").warnings == ()
    assert warning in sdpo("chat", str(run), "--prompt", "x", "--max-tokens", "1")[2]
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert warning in sdpo("push", str(run), "me/still")[2].splitlines()[0]
    with socket.create_server(("127.0.0.1", 0)) as taken:  # serving ends here, with its warnings printed
        assert warning in sdpo("serve", str(run), "--port", str(taken.getsockname()[1]))[2]


def test_adapter_on_a_copy_names_the_hub_repository_and_opens_the_copy(tmp_path: Path) -> None:
    copy = ResolvedModel("smollm2", "here", Path("/copy"), "fetched", "", "")
    adapter = {"r": 8, "base_model_name_or_path": original(copy)}
    steps = for_peft(Path("run"), tmp_path, adapter, model=copy, auto_class="AutoModelForCausalLM", formats=["peft"])
    assert "A.from_pretrained('/copy')" in shlex.split(steps["PEFT"])[2]
    assert "vllm serve HuggingFaceTB/SmolLM2-135M-Instruct" in steps["vllm"]
    assert steps["back here"].endswith("--model /copy")
    assert set(steps) == {"PEFT", "vllm", "back here"}


def test_quantized_base_is_named_as_what_other_tools_cannot_read(quantized: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = quantized
    code, out, err = sdpo("export", str(run), "--to", "peft", "--out", str(tmp_path / "peft"), "--json")
    assert code == 0
    assert "MLX's layout" in json.loads(out)["warnings"][0]
    assert "vllm serve" in json.loads(out)["next"]["vllm"]
    assert "warning:" in err


def test_a_run_that_is_named_by_a_dot_keeps_its_name(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "mine"
    shutil.copytree(runs["lora"], run)
    monkeypatch.chdir(run)
    code, out, _ = sdpo("export", ".", "--to", "peft", "--json")
    assert code == 0
    assert (tmp_path / "mine-peft" / "adapter_config.json").is_file()
    assert "--lora-modules mine=" in json.loads(out)["next"]["vllm"]
    made = export_gguf_lora(Path(), tmp_path / "gguf")
    assert (tmp_path / "gguf" / "mine-lora.gguf").is_file()
    assert "ollama create mine " in made.next_steps["Ollama"]
