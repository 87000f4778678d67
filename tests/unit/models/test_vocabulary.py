"""A tokenizer must not have an id in reach of a prompt that the embedding has no row for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sdpo_mlx.config import ModelConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.resolve import resolve
from sdpo_mlx.models.vocabulary import check_token_ids, embedding_rows

EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight", "language_model.model.embed_tokens.weight")


def folder(path: Path, vocabulary: Any, added: dict[str, tuple[int, bool]] | None = None, **files: Any) -> Path:
    path.mkdir(exist_ok=True)
    tokens = [{"id": i, "content": text, "special": special} for text, (i, special) in (added or {}).items()]
    content = {"model": {"vocab": vocabulary}, "added_tokens": tokens}
    (path / "tokenizer.json").write_text(json.dumps(content))
    (path / "config.json").write_text(json.dumps(files.get("config", {"vocab_size": 4})))
    (path / "tokenizer_config.json").write_text(json.dumps(files.get("settings", {})))
    return path


@pytest.mark.parametrize("vocabulary", [{"a": 0, "b": 4}, [["a", -1.0]] * 5])
def test_more_ids_than_rows_are_refused(vocabulary: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ids up to 4 .* only 4 embedding rows"):
        check_token_ids(folder(tmp_path / "m", vocabulary))


def test_fewer_ids_than_rows_pass(tmp_path: Path) -> None:
    check_token_ids(folder(tmp_path / "m", {"a": 0, "b": 3}))
    check_token_ids(folder(tmp_path / "n", {"a": 0, "b": 9}, config={}))  # nothing names the rows


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({}, False),
        ({"chat_template": "{{ '<|turn|>' }}"}, True),
        ({"eos_token": "<|turn|>"}, True),
        ({"pad_token": {"content": "<|turn|>"}}, True),
    ],
)
def test_special_token_beyond_the_rows_is_refused_if_a_prompt_can_hold_it(
    settings: dict[str, Any], refused: bool, tmp_path: Path
) -> None:
    made = folder(tmp_path / "m", {"a": 0}, {"<|turn|>": (4, True)}, settings=settings)
    if not refused:
        check_token_ids(made)
        return
    with pytest.raises(ConfigError, match="turn"):
        check_token_ids(made)


def test_added_token_that_is_not_special_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="word"):
        check_token_ids(folder(tmp_path / "m", {"a": 0}, {"word": (4, False)}))


def test_added_tokens_are_known_before_the_tokenizer_is_downloaded(tmp_path: Path) -> None:
    decoder = {"4": {"content": "<|turn|>", "special": True}}
    made = folder(tmp_path / "m", {}, settings={"added_tokens_decoder": decoder, "eos_token": "<|turn|>"})
    (made / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="embedding rows"):
        check_token_ids(made)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_rows_come_from_the_weights_header(name: str, tmp_path: Path) -> None:
    made = folder(tmp_path / "m", {"a": 6}, config={"text_config": {"vocab_size": 2}})
    assert embedding_rows(made) == 2
    arrays = {name: np.zeros((7, 2), np.float16), "vision_tower.patch_embedding.weight": np.zeros((90, 2), np.float16)}
    save_file(arrays, made / "model.safetensors")
    assert embedding_rows(made) == 7
    check_token_ids(made)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_both_backends_refuse_at_load(backend: Any, tmp_path: Path) -> None:
    from sdpo_mlx.backends.registry import open_policy

    base = resolve("tiny").path
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["one more"] = 100_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="100000"):
        open_policy(tmp_path, ModelConfig(backend=backend), TeacherConfig(), TrainConfig())
