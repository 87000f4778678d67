"""`sdpo models list` and `show` for a newcomer: what a model would take, what pins it, what to type next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import sdpo
from model_folders import COMMIT, GB, listed, on_hub

from sdpo_mlx.backends.fit import memory_fit
from sdpo_mlx.models import hub, resolve
from sdpo_mlx.models.aliases import TABLE


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of nobody's without a model in it, and no word to the hub."""
    for name in ("OLLAMA_MODELS", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SDPO_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "latest_commit", lambda _: "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_size_of_a_model_that_is_not_here_is_told_by_its_shape() -> None:
    rows = {row["name"]: row for row in json.loads(sdpo("models", "list", "--json")[1])["models"]}
    assert 2 * GB < rows["qwen"]["size_estimate"] < 3 * GB
    assert rows["qwen"]["size"] == 0
    assert 0.4 * GB < rows["smollm2"]["size_estimate"] < 0.6 * GB
    assert 2 * GB < rows["qwen3.5"]["size_estimate"] < 4 * GB
    assert rows["tiny"]["size_estimate"] is None
    lines = {line.split()[0]: line for line in sdpo("models", "list")[1].splitlines() if line}
    assert "~2.1 GB" in lines["qwen"]
    assert "yes, about" in lines["qwen3.5"] or "no, needs" in lines["qwen3.5"]
    assert "roughly" in lines["granite4"]


def test_smollm2_is_known_before_it_is_fetched_and_ours_have_their_license() -> None:
    found = listed()
    assert (found["smollm2"].license, found["smollm2"].path) == ("apache-2.0", None)
    assert memory_fit(found["smollm2"], 8 * GB).verdict == "yes"
    assert found["tiny"].license == "mit"


def test_commit_that_the_hub_does_not_tell_is_said_beside_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "latest_commit", lambda _: "")
    out = sdpo("models", "show", "qwen")[1]
    assert f"pinned: {resolve.ALIASES['qwen']}, commit unknown" in out
    assert "sdpo models fetch qwen" in out
    monkeypatch.setattr(hub, "latest_commit", lambda _: COMMIT)
    assert f"pinned: {resolve.ALIASES['qwen']}@{COMMIT}" in sdpo("models", "show", "qwen")[1]


def test_alias_on_torch_is_the_original_with_its_size_and_its_commands() -> None:
    found = json.loads(sdpo("models", "show", "qwen", "--backend", "torch", "--json")[1])
    assert found["target"] == TABLE["qwen"].torch
    assert 7 * GB < found["size_estimate"] < 8 * GB
    assert (found["quantization"], found["fetch"]) == ("", "sdpo models fetch qwen --backend torch")
    listed_rows = json.loads(sdpo("models", "list", "--backend", "torch", "--json")[1])["models"]
    assert {**found, **next(row for row in listed_rows if row["name"] == "qwen")} == found
    assert sdpo("models", "show", "tiny", "--backend", "torch")[1].endswith("--model tiny --backend torch\n")


def test_weights_quantized_by_mlx_are_no_model_of_torch(home: Path) -> None:
    on_hub(home, "owner/model")
    assert json.loads(sdpo("models", "show", "owner/model", "--json")[1])["trains"] == "yes"
    assert json.loads(sdpo("models", "show", "owner/model", "--backend", "torch", "--json")[1])["trains"] == "no"


def test_model_that_is_here_comes_with_what_to_type_next(home: Path) -> None:
    on_hub(home, "owner/model")
    lines = sdpo("models", "show", "owner/model")[1].splitlines()
    assert lines[-1] == "next: sdpo plan --model owner/model"
