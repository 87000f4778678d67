"""The language part of a vision-language model has the same names on both backends, so either continues the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from requirements import needs_torch
from small_policies import make_samples
from vision_models import TEXT, write_vision_model

from sdpo_mlx.backends.architectures import causal_class, image_class, model_type
from sdpo_mlx.backends.weight_names import by_mlx_names, by_transformers_names, mlx_name
from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError

pytestmark = needs_torch

# What transformers' class calls the language part, as older runs on torch did. Only AutoModelForImageTextToText knows
# mistral3; Qwen3.5 opens as a class without vision.
INNER: Mapping[str, str] = {
    "gemma3": "model.language_model.",
    "gemma4": "model.language_model.",
    "mistral3": "model.language_model.",
    "qwen3_5": "model.",
}
NAMES = [name if name in ("gemma3", "mistral3") else pytest.param(name, marks=pytest.mark.slow) for name in INNER]


def policy(folder: Path, backend: str, **adapter: Any) -> Any:
    """A policy of the backend on a folder, whose adapter differs from the other backend's."""
    from sdpo_mlx.backends.mlx.policy import MLXPolicy
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    made = MLXPolicy if backend == "mlx" else TorchPolicy
    model = ModelConfig(name="m", backend=backend, device="auto", adapter=AdapterConfig(**{"rank": 2, **adapter}))
    return made(folder, model, TeacherConfig(), TrainConfig(learning_rate=1e-2))


def loss_of(trained: Any) -> float:
    return float(trained.learn(make_samples(), ObjectiveConfig(), 1e-2).loss)


def same_arrays(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_continues_on_the_other_backend(name: str, tmp_path: Path) -> None:
    folder = write_vision_model(tmp_path / "m", name)
    backends = {backend: policy(folder, backend) for backend in ("mlx", "torch")}
    # On torch, Gemma 4's embedding factor is always that of bfloat16 (see DIFFERENT in published_models.py).
    bound = 1e-2 if name == "gemma4" else 1e-5
    for first, second in (("mlx", "torch"), ("torch", "mlx")):
        ours, theirs = backends[first], backends[second]
        start = loss_of(ours)
        state = ours.state()
        assert all(each.startswith("language_model.model.layers.") for each in state["student"])
        theirs.load_state(state)
        losses = [loss_of(ours), loss_of(theirs)]
        assert losses[1] == pytest.approx(losses[0], rel=bound)
        assert abs(losses[0] - start) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_transformers_names_resumes_on_torch(name: str, tmp_path: Path) -> None:
    trained = policy(write_vision_model(tmp_path / "m", name), "torch")
    loss_of(trained)
    state = trained.state()
    old = {
        part: {key.replace("language_model.model.", INNER[name], 1): array for key, array in arrays.items()}
        for part, arrays in state.items()
    }
    assert not old["student"].keys() & state["student"].keys()
    expected = loss_of(trained)
    trained.load_state(old)
    assert all(same_arrays(trained.state()[part], state[part]) for part in state)
    assert loss_of(trained) == expected
    trained.load_student(old["student"])
    assert same_arrays(trained.state()["student"], state["student"])
    with pytest.raises(ConfigError, match="does not fit"):
        trained.load_student({f"model.other.{key}": array for key, array in old["student"].items()})


def test_keys_outside_the_layers_have_the_same_names(tmp_path: Path) -> None:
    folder, keys = write_vision_model(tmp_path / "m", "mistral3"), ["self_attn.q_proj", "language_model.lm_head"]
    on_mlx, on_torch = (policy(folder, backend, keys=keys) for backend in ("mlx", "torch"))
    state = on_mlx.state()
    assert "language_model.lm_head.lora_a" in state["student"]
    on_torch.load_state(state)
    assert loss_of(on_torch) == pytest.approx(loss_of(on_mlx), rel=1e-5)
    by_their_names = policy(folder, "torch", keys=["self_attn.q_proj", "lm_head"])
    assert by_their_names.student.keys() == state["student"].keys()


def test_full_weights_are_those_of_the_language_part(tmp_path: Path) -> None:
    folder = write_vision_model(tmp_path / "m", "gemma3")
    on_mlx, on_torch = (policy(folder, backend, kind="full") for backend in ("mlx", "torch"))
    state = on_mlx.state()
    on_torch.load_state(state)
    assert loss_of(on_torch) == pytest.approx(loss_of(on_mlx), rel=1e-5)
    # Older runs stored the towers too.
    stored = {part: {**arrays} for part, arrays in on_torch.state().items()}
    tower = {n: p.detach().numpy() for n, p in on_torch.model.whole.named_parameters() if "vision" in n}
    assert tower
    for part, ends in (("student", [""]), ("teacher", [""]), ("optimizer", ["|m", "|v"])):
        stored[part] |= {n + end: np.full_like(array, 9.0) for n, array in tower.items() for end in ends}
    on_torch.load_state(stored)
    assert same_arrays(on_torch.state()["student"], {n: stored["student"][n] for n in state["student"]})
    assert same_arrays({n: p.detach().numpy() for n, p in on_torch.model.whole.named_parameters() if n in tower}, tower)


@pytest.mark.parametrize("name", NAMES)
def test_names_go_to_transformers_and_back(name: str) -> None:
    config = TEXT[name]
    ours = [f"language_model.model.{each}" for each in ("layers.0.self_attn.q_proj.lora_a", "embed_tokens.weight")]
    ours.append("language_model.lm_head.weight")
    theirs = by_transformers_names(dict.fromkeys(ours, 0), config)
    assert list(theirs) == [
        *(each.replace("language_model.model.", INNER[name]) for each in ours[:2]),
        "lm_head.weight",
    ]
    assert list(by_mlx_names(theirs, config)) == ours
    assert list(by_mlx_names(dict.fromkeys(ours, 0), config)) == ours


def test_names_of_other_models_stay() -> None:
    for config in ({"model_type": "qwen3"}, {"model_type": "gemma3n", "text_config": {}}):
        for name in (
            "model.layers.0.mlp.up_proj.lora_a",
            "model.language_model.layers.0.mlp.up_proj",
            "lm_head.weight",
        ):
            assert mlx_name(name, config) == name
            assert by_transformers_names({name: 1}, config) == {name: 1}


def test_classes_are_those_of_transformers_own_tables() -> None:
    from transformers.models.auto import modeling_auto

    for found, table in ((causal_class, "CAUSAL_LM"), (image_class, "IMAGE_TEXT_TO_TEXT")):
        names = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES")
        readable = {name: each for name, each in names.items() if model_type({"model_type": name})}
        assert {name: found({"model_type": name}) for name in readable} == readable
        assert len(readable) > 50
        assert found({"model_type": "siglip"}) == ""
