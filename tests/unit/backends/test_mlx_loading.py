"""Which models are taken, which are refused in one line, and whether what is saved travels to mlx-lm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_policies import folder, make_policy, plain_logits

from sdpo_mlx.config import ModelConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.runs.folder import RunFolder

mx = pytest.importorskip("mlx.core")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the qwen3 folder that a test may damage."""
    return Path(shutil.copytree(folder("qwen3"), tmp_path / "model"))


def refused(path: Path, match: str) -> None:
    from sdpo_mlx.backends.mlx import loading

    with pytest.raises(ConfigError, match=match) as error:
        loading.load(path, ModelConfig())
    assert "\n" not in str(error.value)
    assert path.name in str(error.value) or "model.name" in str(error.value)


def rewrite(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def test_unknown_architecture_is_refused_in_one_line(copied: Path) -> None:
    rewrite(copied, model_type="no_such_model")
    refused(copied, "no_such_model")


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "missing", "config"])
def test_damaged_folder_is_refused_in_one_line(damage: str, copied: Path) -> None:
    file = copied / "model.safetensors"
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "config":
        (copied / "config.json").write_text("{")
    else:
        file.write_bytes({"cut": whole[:-2000], "header": b"\xff" * 40 + whole[40:], "empty": b""}[damage])
    refused(copied, "cannot be loaded")


def test_weights_that_do_not_fit_their_config_are_refused(copied: Path) -> None:
    rewrite(copied, hidden_size=64)
    refused(copied, "cannot be loaded")


def test_parts_with_other_names_are_refused(tmp_path: Path) -> None:
    from mlx.utils import tree_flatten
    from mlx_lm.models.gpt2 import Model, ModelArgs

    config = {
        "model_type": "gpt2", "n_ctx": 64, "n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 64,
        "layer_norm_epsilon": 1e-5, "vocab_size": 61,
    }  # fmt: skip
    model = Model(ModelArgs.from_dict(config))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, "'gpt2' cannot be trained yet")


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
@pytest.mark.parametrize("part", ["embed", "head"])
def test_wrong_parts_are_noticed(architecture: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.mlx import model as trunk

    right = getattr(trunk.SplitModel, part)
    factor = {"embed": 1.5, "head": 1.1}[part]
    monkeypatch.setattr(trunk.SplitModel, part, lambda self, given: right(self, given) * factor)
    refused(folder(architecture), "differ from the whole")


def test_missed_window_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.mlx import model as trunk

    monkeypatch.setattr(trunk, "_window", lambda *_: None)
    refused(folder("gemma3"), "window")


def test_rows_that_feel_their_neighbours_are_noticed() -> None:
    from sdpo_mlx.backends.mlx import loading

    model, _ = loading.load(folder("qwen3"), ModelConfig())
    assert loading.check_batching(model.whole, 61) < 1e-5

    class Leaky:
        """Every row of a batch hears the first one."""

        layers = model.whole.layers

        def __call__(self, ids: Any, cache: Any = None) -> Any:
            logits = model.whole(ids, cache=cache)
            return logits if ids.shape[0] == 1 else logits + logits[:1]

    with pytest.raises(ConfigError, match="neighbours"):
        loading.check_batching(Leaky(), 61)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
@pytest.mark.parametrize(
    "options", [{}, {"kind": "dora"}, {"kind": "full"}, {"layers": 2, "keys": ["self_attn.q_proj"]}]
)
def test_saved_adapter_says_the_same_in_mlx_lm(architecture: str, options: dict[str, Any], tmp_path: Path) -> None:
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    policy, ids = make_policy(architecture, **options), np.arange(20, dtype=np.int32)
    with RunFolder.open(tmp_path / "run") as run:
        run.save_adapter(policy.state()["student"], policy.adapter_config())
    base, _ = load_model(folder(architecture))
    before = np.array(base(mx.array(ids)[None])[0])
    model = load_adapters(base, str(tmp_path / "run"))
    model.eval()
    theirs = np.array(model(mx.array(ids)[None])[0])
    ours = np.array(plain_logits(policy, policy.student, ids, (1, 21)))
    np.testing.assert_allclose(theirs, ours, atol=1e-5, rtol=1e-5)
    assert np.abs(theirs - before).max() > 1e-2


def test_dora_on_a_mixture_of_experts_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"DoRA.*model.adapter.kind"):
        make_policy("qwen3_moe", kind="dora")


def test_model_that_cannot_share_prompts_is_run_unshared(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.mlx import loading
    from sdpo_mlx.backends.mlx import model as trunk

    after = trunk.Block._after
    monkeypatch.setattr(trunk.Block, "_after", lambda self, before, rows: after(self, None, rows))
    model, _ = loading.load(folder("qwen3"), ModelConfig())
    assert not model.shares
