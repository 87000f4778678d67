"""Which models are taken, which are refused in one line, and whether what is saved travels to mlx-lm."""

from __future__ import annotations

import json
import shutil
from functools import partial
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

    loading.CHECKED.clear()  # other tests have found the intact parts to be right
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


def loaded(path: Path) -> Any:
    from sdpo_mlx.backends.mlx import loading

    loading.CHECKED.clear()
    return loading.load(path, ModelConfig())[0]


def test_same_files_are_checked_once_and_changed_ones_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.mlx import loading

    ways = [loaded(copied).trunk.way]
    monkeypatch.setattr(loading, "split", lambda *_: (partial(loading.GenericSplit, caches=False), False))
    for changed in (False, True):
        if changed:
            rewrite(copied, note="another file")
        ways.append(loading.load(copied, ModelConfig())[0].trunk.way)
    assert ways[:2] == [ways[0], ways[0]]
    assert ways[2] == "generic" != ways[0]


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
@pytest.mark.parametrize("part", ["embed", "head"])
def test_wrong_parts_are_noticed_and_the_model_learns_another_way(
    architecture: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdpo_mlx.backends.mlx import generic
    from sdpo_mlx.backends.mlx import model as trunk

    right = getattr(trunk.SplitModel, part)
    factor = {"embed": 1.5, "head": 1.1}[part]
    monkeypatch.setattr(trunk.SplitModel, part, lambda self, given: right(self, given) * factor)
    assert loaded(folder(architecture)).trunk.way == "generic"
    head = generic.GenericSplit.head
    monkeypatch.setattr(generic.GenericSplit, "head", lambda self, given: head(self, given) * 1.1)
    refused(folder(architecture), "differ from the whole")


def test_missed_window_is_noticed_and_the_model_learns_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.mlx import model as trunk

    monkeypatch.setattr(trunk, "_window", lambda *_: None)
    assert loaded(folder("gemma3")).trunk.way == "generic"


def test_rows_that_depend_on_their_neighbours_are_decoded_alone() -> None:
    from sdpo_mlx.backends.mlx import loading

    model = loaded(folder("qwen3"))
    assert loading.check_batching(model.whole, 61)

    class Leaky:
        """Adds the first row's logits to every row of a batch."""

        layers = model.whole.layers

        def __call__(self, ids: Any, cache: Any = None) -> Any:
            logits = model.whole(ids, cache=cache)
            return logits if ids.shape[0] == 1 else logits + logits[:1]

    assert not loading.check_batching(Leaky(), 61)


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


def test_model_that_cannot_share_prompts_by_block_shares_them_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.mlx import generic
    from sdpo_mlx.backends.mlx import model as trunk

    after = trunk.Block._after
    monkeypatch.setattr(trunk.Block, "_after", lambda self, before, rows: after(self, None, rows))
    model = loaded(folder("qwen3"))
    assert (model.trunk.way, model.shares) == ("generic", True)
    monkeypatch.setattr(generic, "_broadcast", lambda cache, rows: generic._functional(cache))
    model = loaded(folder("qwen3"))
    assert (model.trunk.way, model.shares) == ("by block", False)
