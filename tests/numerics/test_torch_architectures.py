"""Small random models of transformers' decoder architectures on the torch backend, against the whole model.

Loss and gradient of a step are those of the float64 oracle and of plain autograd, whether prompts are shared or not;
answers are those of transformers' own greedy decoding. The default suite tests one architecture of each kind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backend_pairs import on_device, torch_gradient
from requirements import needs_torch
from small_policies import make_samples, stir
from temp_folders import new_folder
from torch_architectures import OPTIONS, write_architecture
from torch_oracle import expected, whole_logits

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.config import ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError

pytestmark = needs_torch

# Recurrence with attention, sinks with windows, convolution, state space with experts, latent attention, chunks, a
# cache of its own.
COMMON = ("qwen3_5_text", "gpt_oss", "lfm2", "granitemoehybrid", "deepseek_v3", "llama4_text", "minimax")
UNSHARED = {"falcon_mamba", "jamba", "mamba", "minimax", "recurrent_gemma", "rwkv", "zamba"}
ALONE = {"minimax", "recurrent_gemma", "rwkv"}
REFUSED = {
    "paligemma": "differ from the whole",  # its body attends in both directions unless the whole calls it
    "xlstm": "cannot generate",  # transformers 5.24 itself cannot with states of these sizes
}
TRAINED = [
    name if name in COMMON else pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS if name not in REFUSED
]
POLICIES: dict[str, Any] = {}
LONG = np.arange(20, dtype=np.int32) * 7 % 50 + 4


def policy_of(name: str) -> Any:
    """A policy whose student and teacher have moved from the base."""
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    if name not in POLICIES:
        path = write_architecture(new_folder("architecture") / name, name)
        model = ModelConfig(name=name, backend="torch", adapter={"scale": 2.0, "rank": 4}, **on_device())
        POLICIES[name] = TorchPolicy(path, model, TeacherConfig(), TrainConfig())
        stir(POLICIES[name], scale=0.02)
    return POLICIES[name]


@pytest.mark.parametrize("name", TRAINED)
def test_step_equals_oracle_and_autograd_of_the_whole_model(name: str) -> None:
    policy, objective = policy_of(name), ObjectiveConfig(kind="hybrid", support="full", alpha=0.5)
    samples = make_samples(5, "hybrid")
    loss, grads = expected(policy, samples, objective)
    ours, found = torch_gradient(policy, samples, objective)
    assert ours == pytest.approx(loss, rel=1e-5, abs=1e-5)
    right, mine = (np.concatenate([g[n].ravel() for n in grads]).astype(np.float64) for g in (grads, found))
    assert np.linalg.norm(mine - right) <= 1e-3 * np.linalg.norm(right) > 0
    assert (mine * right).sum() / (np.linalg.norm(mine) * np.linalg.norm(right)) >= 0.9999
    assert policy.model.shares == (name not in UNSHARED)


@pytest.mark.parametrize("name", TRAINED)
def test_greedy_answers_are_those_of_transformers(name: str) -> None:
    import torch

    policy, prompts = policy_of(name), [LONG, LONG[:3], LONG[5:6]]
    sampling = SamplingParams(6, 0.0, 1.0, frozenset())
    found = {(at, n): g for at, n, g in policy.generate(prompts, sampling, [[1, 2], [3], [4]])}
    for at, prompt in enumerate(prompts):
        ids = torch.from_numpy(prompt.astype(np.int64))[None].to(policy.model.device)
        right = policy.model.whole.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, prompt.size :]
        np.testing.assert_array_equal(found[at, 0].ids_T, right.cpu().numpy())
    np.testing.assert_array_equal(found[0, 0].ids_T, found[0, 1].ids_T)
    assert policy.model.batched == (name not in ALONE)
    assert ("one by one" in " ".join(policy.warnings())) == (name in ALONE)


@pytest.mark.parametrize("name", TRAINED)
def test_sampled_answers_do_not_depend_on_their_neighbours(name: str) -> None:
    policy, sampling = policy_of(name), SamplingParams(6, 1.0, 1.0, frozenset(range(0, 61, 3)))
    together = {(at, n): g for at, n, g in policy.generate([LONG, LONG[:3]], sampling, [[1, 2], [3]])}
    alone = next(g for _, _, g in policy.generate([LONG], sampling, [[2]]))
    np.testing.assert_array_equal(together[0, 1].ids_T, alone.ids_T)
    np.testing.assert_allclose(together[0, 1].logps_T, alone.logps_T, atol=2e-4)
    assert list(policy.stream(LONG, sampling, 2)) == alone.ids_T.tolist()


@pytest.mark.parametrize("name", TRAINED)
def test_chosen_attention_gives_the_logits_of_eager_attention(name: str) -> None:
    import torch

    whole = policy_of(name).model.whole
    with torch.no_grad():
        chosen, kind = whole_logits(policy_of(name), LONG, (1, 20)), whole.config._attn_implementation
        try:
            whole.set_attn_implementation("eager")
            eager = whole_logits(policy_of(name), LONG, (1, 20))
        finally:
            whole.set_attn_implementation(kind)
    torch.testing.assert_close(chosen, eager, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_refused_architecture_is_named_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[name]) as refusal:
        policy_of(name)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)
