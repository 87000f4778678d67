"""The run folder: its lock, its adapter, its rollouts, its card."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import StorageError
from sdpo_mlx.models.resolve import ResolvedModel, resolve
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.training.model_card import Base, CardFacts, Result, model_card, trained

ADAPTER = {"layers.0.q_proj.lora_a": np.arange(6, dtype=np.float32).reshape(2, 3).T}
SETTINGS: dict[str, Any] = {
    "fine_tune_type": "lora",
    "num_layers": 3,
    "lora_parameters": {"rank": 3, "scale": 2.0, "dropout": 0.0},
}
HOLDER = """
import sys
from sdpo_mlx.runs.folder import RunFolder
folder = RunFolder.open(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StorageError, match=f"pid {holder.pid}"):
            RunFolder.open(tmp_path)
        holder.kill()
    with RunFolder.open(tmp_path) as folder:  # the lock dies with its holder
        assert folder.checkpoints.is_dir()


def test_the_lock_is_free_after_close_and_bars_a_second_opening(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "runs" / "a"), pytest.raises(StorageError, match=str(os.getpid())):
        RunFolder.open(tmp_path / "runs" / "a")
    RunFolder.open(tmp_path / "runs" / "a").close()


def test_an_unusable_place_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError) as caught:
        RunFolder.open(tmp_path / "file" / "run")
    assert caught.value.exit_code == 5


def test_the_adapter_returns_as_saved_transposed_arrays_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_adapter(ADAPTER, SETTINGS)
    arrays, config = folder.load_adapter()
    assert config == SETTINGS
    assert np.array_equal(arrays["layers.0.q_proj.lora_a"], ADAPTER["layers.0.q_proj.lora_a"])
    assert {path.name for path in tmp_path.iterdir()} == {"adapters.safetensors", "adapter_config.json"}


def test_the_adapter_is_readable_by_mlx(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    RunFolder(tmp_path).save_adapter(ADAPTER, SETTINGS)
    found = mx.load(str(tmp_path / "adapters.safetensors"))
    assert {name: np.array(array).tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in ADAPTER.items()
    }


@pytest.mark.parametrize(("rank", "nth", "old_stays"), [(3, 1, True), (4, 1, False), (4, 2, False)])
def test_a_failed_write_never_pairs_old_weights_with_a_new_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, nth: int, old_stays: bool
) -> None:
    folder = RunFolder(tmp_path)
    folder.save_adapter(ADAPTER, SETTINGS)
    new = {**SETTINGS, "lora_parameters": {**SETTINGS["lora_parameters"], "rank": rank}}
    real, calls = os.write, []

    def write(descriptor: int, content: bytes) -> int:
        calls.append(len(content))
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(StorageError, match="No space left"):
            folder.save_adapter({name: array + 1 for name, array in ADAPTER.items()}, new)
    assert not list(tmp_path.glob(".*.part"))
    assert (tmp_path / "adapters.safetensors").exists() == old_stays
    if old_stays:
        arrays, config = folder.load_adapter()
        assert config == SETTINGS
        assert np.array_equal(arrays["layers.0.q_proj.lora_a"], ADAPTER["layers.0.q_proj.lora_a"])


def test_rollouts_return_and_equal_ones_give_equal_bytes(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path)
    records = [{"answer": "\x1b[31m\ud800\u202e\n{x}", "divergence": np.array([0.5, np.nan], dtype=np.float32)}]
    folder.write_rollouts(12, records)
    first = (folder.rollouts / "step-000012.jsonl.gz").read_bytes()
    folder.write_rollouts(12, records)
    assert folder.rollouts_of(12).read_bytes() == first
    assert folder.read_rollouts(12) == [{"answer": "\x1b[31m\ud800\u202e\n{x}", "divergence": [0.5, None]}]
    assert folder.read_rollouts(13) == []
    folder.close()


def test_rewinding_drops_later_rollouts_only(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path) as folder:
        for step in (1, 2, 3):
            folder.write_rollouts(step, [{"step": step}])
            folder.write_rollouts(step, [{"held out": step}], "eval")
        folder.rewind(2)
        assert folder.rollout_steps() == folder.rollout_steps("eval") == [1, 2]
        assert folder.read_rollouts(2, "eval") == [{"held out": 2}]


def test_damaged_rollouts_are_a_storage_error(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path) as folder:
        folder.write_rollouts(1, [{"a": 1}])
        content = folder.rollouts_of(1).read_bytes()
        folder.rollouts_of(1).write_bytes(content[:-9])
        with pytest.raises(StorageError, match="cannot be read"):
            folder.read_rollouts(1)


def test_config_and_manifest_return_as_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = Config.model_validate({"train": {"learning_rate": 1e-5, "seed": 7}})
    folder.write_config(config)
    assert Config.model_validate(yaml.safe_load((tmp_path / "config.yaml").read_text())).train == config.train
    assert folder.read_manifest() == {}
    folder.write_manifest({"versions": {"mlx": "0.32.4"}, "seed": np.int64(7)})
    assert folder.read_manifest() == {"versions": {"mlx": "0.32.4"}, "seed": 7}


def front_of(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("\n---\n", maxsplit=1)[0].removeprefix("---\n"))  # type: ignore[no-any-return]


def test_the_card_names_base_result_and_use_and_survives_hostile_names() -> None:
    name = 'evil"\n---\n`rm -rf $HOME`'
    result = Result(score=0.94, low=0.91, high=0.96, problems=64, samples=4)
    base = Base(name, "hub", "abc123", terms={"license": "apache-2.0"})
    config = Config.model_validate({"task": {"name": "/srv/mine/my_task.py", "data": "/srv/mine/rows.jsonl"}})
    text = model_card(CardFacts("demo", base, trained(config, 30, 1920), after=result), config)
    front = front_of(text)
    assert (front["base_model"], front["base_model_relation"], front["license"]) == (name, "adapter", "apache-2.0")
    assert "| this adapter | 94.0 % | 91.0 to 96.0 % | 64 x 4 |" in text
    assert "1920 rollouts" in text
    for command in ("mlx_lm.generate", "sdpo chat", "sdpo serve", "mlx_lm.fuse", "ollama create", "vllm"):
        assert command in text
    assert "$HOME" not in text.split("\n---\n", 1)[1]
    assert "`my_task.py` with the problems of `rows.jsonl`" in text
    assert "/srv" not in text


def test_the_card_of_a_base_that_is_no_repository_leaks_no_folder(tmp_path: Path) -> None:
    place = tmp_path / "secret" / "my model"
    place.mkdir(parents=True)
    (place / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n")
    folder = ResolvedModel(str(place), str(place), place, "folder", "", "ab" * 32)
    text = model_card(CardFacts("demo", Base.of(folder), "trained."), Config())
    assert "secret" not in text
    assert {"license": "other", "license_name": "mine"}.items() <= front_of(text).items()
    assert not {"base_model", "base_model_relation", "license_link"} & front_of(text).keys()
    assert 'BASE="my model"' in text
    assert 'mlx_lm.generate --model "$BASE"' in text


def test_card_says_what_cannot_be_done_with_the_adapter(tmp_path: Path) -> None:
    base = Base.of(ResolvedModel("tiny", "tiny", tmp_path, "embedded", "", "ab" * 32))  # no tokenizer for a GGUF
    text = model_card(CardFacts("demo", base, "trained.", unchanged=True), Config())
    assert "**This adapter changes nothing:**" in text
    assert "ollama" not in text
    assert "changes nothing" not in model_card(CardFacts("demo", base, "trained."), Config())


def test_card_of_a_fetched_base_names_its_hub_repository(tmp_path: Path) -> None:
    base = Base.of(ResolvedModel("smollm2", "here", tmp_path, "fetched", "", "ab" * 32))
    front = front_of(model_card(CardFacts("demo", base, "trained."), Config()))
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_use_lines_find_a_base_that_is_known_by_name() -> None:
    base = Base.of(resolve("tiny"))
    line = base.setup_lines()[1]
    assert str(resolve("tiny").path) not in line
    program = line.removeprefix('BASE="$(python -c "').removesuffix('")"')
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()) == resolve("tiny").path


@pytest.mark.parametrize("said", ["[mit, gpl]", "see below", '"x: y"'])
def test_a_licence_that_a_hub_would_refuse_is_left_out(said: str) -> None:
    text = model_card(CardFacts("demo", Base("me/x", terms={"license": said}), "trained."), Config())
    assert "license" not in front_of(text)
