"""The plan: right beside what MLX's counters measure, and whatever it chooses changes no answer and no gradient."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import sdpo
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import CHECK, KINDS, PHASES, compared
from paths import ROOT
from sdpo_cli.commands import plan
from small_models import CONFIGS
from small_policies import folder, make_policy

from sdpo_mlx.backends.command_size import EvaluationSizes
from sdpo_mlx.backends.memory_plan import bounded, choose, fitting, limit_of, memory, remedies, settled, work_of
from sdpo_mlx.backends.step_time import Machine, quantized_rows, times
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.hardware import bytes_of
from sdpo_mlx.models.dimensions import ModelDims

pytest.importorskip("mlx.core")
QWEN = ModelDims.of(json.loads((ROOT / "sdpo_mlx/assets/shapes.json").read_text())[
    "mlx-community/Qwen3-4B-Instruct-2507-4bit"
], "qwen")  # fmt: skip

# Where the plan is known to be off (docs/performance.md): why was not found out.
OUTSIDE = {("latent, keys, 8 heads", "generate"): (0.9, 1.65), ("convolution, one rollout", "teacher"): (0.82, 1.25)}


def config(**sections: Any) -> Config:
    return Config.model_validate(sections)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n != "49,152 words" else []) for n in CHECK]
)
@pytest.mark.parametrize("keep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_planned_peaks_are_those_measured(name: str, keep: bool) -> None:
    found = compared(*CHECK[name], keep=keep)
    for phase in PHASES:
        ratio = found["planned"][phase] / found["measured"][phase]
        # One graph is planned less well: PROMISES.md's bound holds for the way that a small machine takes.
        assert 0.9 <= ratio <= (1.25 if keep and phase == "learn" else 1.15), (phase, ratio)


@pytest.mark.long
@pytest.mark.parametrize("keep", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "gated delta, short" else pytest.mark.slow) for name in KINDS]
)
def test_planned_peaks_of_other_layers_are_those_measured(name: str, keep: bool) -> None:
    found = compared(*KINDS[name], keep=keep)
    for phase in PHASES:
        low, high = OUTSIDE.get((name, phase), (0.9, 1.25))
        assert low <= found["planned"][phase] / found["measured"][phase] <= high, phase


@pytest.mark.parametrize("architecture", [*CONFIGS, "qwen3-4bit"])
@pytest.mark.parametrize("options", [{}, {"kind": "dora"}, {"kind": "full"}, {"layers": 1}, {"keys": ["mlp.up_proj"]}])
def test_parameters_are_counted_from_the_configuration_alone(architecture: str, options: dict[str, Any]) -> None:
    if (architecture, options.get("kind")) in {("qwen3_moe", "dora"), ("qwen3-4bit", "full")}:
        pytest.skip("refused: mlx-lm has no DoRA of experts, and a quantized base is not trained in full")
    if architecture == "qwen3_moe" and options.get("keys"):
        pytest.skip("its experts' layers have other names")
    policy = make_policy(architecture, seed=None, **options)
    shape = ModelDims.of(json.loads((folder(architecture) / "config.json").read_text()), architecture)
    small = 0.2 if "full" in options.values() or architecture == "qwen3_5" else 0.001  # norms and convolutions
    assert shape.adapter_parameters(policy.adapter) == pytest.approx(policy.info.trainable, rel=small)
    if architecture != "qwen3-4bit" and "full" not in options.values():
        assert shape.parameters == pytest.approx(policy.info.parameters - policy.info.trainable, rel=0.05)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(16, 3_000),
    st.integers(16, 2_000),
    st.integers(1, 16),
    st.sampled_from([4.0, 8.0, 16.0, 64.0, 512.0]),
    st.booleans(),
)
def test_choice_fits_wherever_anything_does(prompt: int, answer: int, group: int, gigabytes: float, full: bool) -> None:
    cfg = config(
        rollout={"max_tokens": answer, "group_size": group}, objective={"support": "full" if full else "top_k"}
    )
    work, limit = work_of(cfg, prompt, prompt + answer, 2), gigabytes * 2**30
    chosen = choose(QWEN, cfg, work, limit)
    least = work_of(
        config(
            rollout={"max_tokens": answer, "group_size": group, "concurrency": 8},
            objective={"support": "full" if full else "top_k"},
            train={"micro_batch_tokens": 256, "grad_checkpoint": True},
        ),
        prompt,
        prompt + answer,
        2,
    )
    assert (memory(QWEN, cfg, chosen).highest <= limit) or memory(QWEN, cfg, least).highest > limit
    larger = choose(QWEN, cfg, work, 2 * limit)
    assert larger.micro_batch >= chosen.micro_batch or larger.keep
    assert larger.concurrency >= chosen.concurrency


def test_what_the_settings_say_stays() -> None:
    cfg = config(rollout={"concurrency": 24}, train={"micro_batch_tokens": 999, "grad_checkpoint": False})
    work = choose(QWEN, cfg, work_of(cfg, 100, 700, 2), 1e9)
    assert (work.concurrency, work.micro_batch, work.keep) == (24, 999, True)
    assert settled(cfg, work).train == cfg.train


def test_memory_grows_with_everything_that_it_should() -> None:
    cfg = config()
    base = work_of(cfg, 200, 800, 2)
    for change in ({"prompt": 400}, {"answer": 1_024}, {"context": 1_600}, {"group": 16}):
        more = type(base)(**{**vars(base), **change})
        grown, before = memory(QWEN, cfg, more), memory(QWEN, cfg, base)
        assert sum(map(grown.peak, grown.phases)) > sum(map(before.peak, before.phases))
    assert memory(QWEN, config(model={"adapter": {"rank": 64}}), base).base > memory(QWEN, cfg, base).base


def test_ranks_that_split_the_base_hold_their_part_and_a_block_twice() -> None:
    cfg = config(model={"backend": "torch"})
    weights = [memory(QWEN, cfg, work_of(cfg, 200, 800, 2, ranks=ranks)).always["weights"] for ranks in (1, 4, 10**9)]
    blocks = weights[0] * QWEN.trunk_parameters / QWEN.parameters
    rest = weights[0] - blocks + 2 * blocks / QWEN.layers
    assert weights[1] == pytest.approx(rest + blocks / 4)
    assert weights[2] == pytest.approx(rest, rel=1e-3)
    with pytest.raises(ConfigError, match=r"every rank holds the whole base \(--ranks\)"):
        plan.planned(config(), None, 100, ranks=2)


def test_prompts_that_are_not_shared_cost_memory_and_time() -> None:
    cfg = config()
    shared = work_of(cfg, 1_000, 2_000, 2)
    separate = type(shared)(**{**vars(shared), "shares": False})
    for phase in ("teacher", "learn"):
        assert memory(QWEN, cfg, separate).peak(phase) > memory(QWEN, cfg, shared).peak(phase)
    slow, fast = (times(QWEN, each, Machine(1e12, 1e11)) for each in (separate, shared))
    assert slow.learn > fast.learn
    assert slow.decode == fast.decode


def test_what_does_not_fit_is_refused_with_what_would_help() -> None:
    cfg = config(rollout={"max_tokens": 4_096})
    work = work_of(cfg, 500, 5_000, 2)
    with pytest.raises(ConfigError, match=r"needs .* but the limit is .*--max-tokens 2048") as error:
        fitting(QWEN, cfg, work, 4 * 2**30)
    assert "\n" not in str(error.value)
    peaks = [peak for _, peak in remedies(QWEN, cfg, work, 4 * 2**30)]
    assert peaks == sorted(peaks)
    assert peaks[0] < memory(QWEN, cfg, choose(QWEN, cfg, work, 4 * 2**30)).highest


def test_times_follow_the_work() -> None:
    cfg = config()
    work, machine = work_of(cfg, 200, 800, 2), Machine(1e12, 1e11)
    base = times(QWEN, work, machine)
    assert times(QWEN, work, Machine(2e12, 2e11)).total == pytest.approx(base.total / 2)
    kept = times(QWEN, type(work)(**{**vars(work), "keep": True}), machine)
    assert kept.learn < base.learn
    assert base.dominant == max(vars(base), key=lambda name: getattr(base, name))


@pytest.mark.parametrize(("text", "size"), [("16GB", 16 * 2**30), ("512 mb", 2**29), ("24", 24 * 2**30)])
def test_memory_is_read_as_people_write_it(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "16XB", "-1GB", "0GB", "lots"])
def test_nonsense_for_memory_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        bytes_of(text)


def test_plan_says_what_fits_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.mlx import device

    rate = device._rate
    monkeypatch.setattr(device, "_rate", lambda work, seconds: rate(work, seconds=0.0))  # one round of each
    code, out, _ = sdpo("plan", "--model", "qwen", "--prompt-tokens", "300", "--memory", "64GB", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["fits"]
    assert found["peak"] == max(phase["peak"] for phase in found["phases"].values())
    code, out, _ = sdpo(
        "plan", "--model", "qwen:8b", "--prompt-tokens", "300", "--memory", "6GB", "--max-tokens", "2048"
    )
    assert code == 1
    assert "to reduce memory:" in out


def test_time_of_a_run_includes_its_evaluations() -> None:
    found = {
        "evaluation": 60.0,
        "evaluations": 3,
        "forgetting": 2.0,
        "total": 30.0,
        **dict.fromkeys(("prefill", "decode", "teacher", "learn"), 7.5),
    }
    shown = plan._time_lines({"seconds": found, "steps": 4, "speed": {"source": "estimated"}})
    assert "4 steps at that length take about 5:02 with 3 evaluations of 1:00 each" in shown[1]
    without = plan._time_lines({"seconds": {**found, "evaluation": None}, "steps": 4, "speed": {"source": "estimated"}})
    assert without[1].endswith("take about 2:02")


def test_plan_of_an_unknown_architecture_is_marked(tmp_path: Path) -> None:
    known = json.loads((ROOT / "sdpo_mlx/assets/shapes.json").read_text())["smollm2"]
    (tmp_path / "config.json").write_text(json.dumps({**known, "model_type": "brand_new"}))
    _, out, _ = sdpo("plan", "--model", str(tmp_path), "--prompt-tokens", "300", "--memory", "64GB")
    assert "the layers of brand_new are estimated" in out


def test_run_that_would_not_fit_stops_before_it_loads(tmp_path: Path) -> None:
    code, _, err = sdpo("train", "--model", "tiny", "--out", str(tmp_path / "run"), "--set", "train.memory_gb=0.001")
    assert code == ConfigError.exit_code
    assert err.strip().splitlines()[-1].startswith("sdpo: ")
    assert "but the limit is" in err
    assert not (tmp_path / "run").exists()


def test_quantized_base_decodes_at_least_32_rows_at_once_where_memory_allows() -> None:
    four_bits = QWEN.quantized(4, 64)
    roomy = choose(four_bits, config(), work_of(config(), 200, 800, 2), 64 * 2**30)
    assert roomy.rows >= 32
    tight = choose(four_bits, config(), work_of(config(), 200, 800, 2), 0.0)
    assert tight.rows < 32


def test_decode_of_quantized_weights_on_metal_depends_on_the_rows() -> None:
    four_bits, work = QWEN.quantized(4, 64), work_of(config(), 200, 800, 2)
    few, many = (replace(work, problems=4, group=8, concurrency=rows) for rows in (8, 32))
    metal, other = Machine(1e15, 1e11, metal=True), Machine(1e15, 1e11)
    seconds = {
        name: [times(four_bits, each, m).decode for each in (few, many)]
        for name, m in {"metal": metal, "other": other}.items()
    }
    assert seconds["metal"][0] > 3 * seconds["other"][0]
    assert seconds["metal"][0] > 3 * seconds["metal"][1]  # 32 rows take about as long as 8
    plain = replace(QWEN, bits=0)
    assert times(plain, few, metal) == times(plain, few, other)
    assert [round(quantized_rows(rows), 1) for rows in (1, 8, 16, 32)] == [1.0, 5.3, 5.3, 5.3]


def test_plan_keeps_to_what_one_evaluation_may_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_cli.commands.plan import as_lines, planned

    from sdpo_mlx.backends.mlx import device

    monkeypatch.setattr(device, "block_gigaflops", lambda: 100.0)
    monkeypatch.setattr(device, "gigabytes", lambda: 10.0)
    model, bound = {"name": "qwen:8b"}, {"evaluation_gflop": 1000.0}
    found = planned(config(model=model, memory=bound), "64GB", 300)
    most = found["device"]["micro_batch_at_most"]
    assert found["work"]["micro_batch"] == most < 2_048
    assert not found["work"]["keep"]
    assert found["device"]["memory_limit"] is None  # a CPU
    assert "1,000 GFLOP at once" in "\n".join(as_lines(found))
    free = planned(config(model=model), "64GB", 300)
    assert free["device"]["evaluation_gflop"] is None
    assert free["work"]["micro_batch"] > most
    given = config(model=model, memory=bound, train={"micro_batch_tokens": 4_096})
    assert planned(given, "64GB", 300)["work"]["micro_batch"] == most


def test_bound_changes_no_setting_that_was_given() -> None:
    work = bounded(work_of(config(), 200, 800, 2), EvaluationSizes(1e12, 1e8, 4e9))
    assert work.micro_batch == 1_666
    assert settled(config(), work).train.micro_batch_tokens == 1_666
    given = config(train={"micro_batch_tokens": 4_096, "grad_checkpoint": False}, rollout={"concurrency": 24})
    kept = settled(given, work)
    assert (kept.train.micro_batch_tokens, kept.train.grad_checkpoint, kept.rollout.concurrency) == (4_096, False, 24)


def test_plan_on_a_mac_stays_under_the_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = limit_of(config(), 16 << 30, mac=False)
    assert limit_of(config(), 16 << 30, mac=True) == pytest.approx(0.85 * whole)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert limit_of(config(), 16 << 30) == limit_of(config(), 16 << 30, mac=True)
    assert limit_of(config(), 16 << 30, mac=False) == whole
    assert limit_of(config(memory={"limit": "6GB"}), 16 << 30) == 6 << 30
    assert limit_of(config(train={"memory_gb": 14.0}), 16 << 30) == 14 << 30


def test_prompt_that_the_model_cannot_take_stops_no_run() -> None:
    from sdpo_mlx.models.chat_template import load_chat
    from sdpo_mlx.models.resolve import tokenizer_folder
    from sdpo_mlx.rl.components import lengths
    from sdpo_mlx.tasks.registry import open_task

    cfg = config()
    chat, task = load_chat(tokenizer_folder("tiny")), open_task(cfg).task
    longest, _ = lengths(chat, task, cfg, 10_000)
    shorter, _ = lengths(chat, task, cfg, longest)
    assert 1 <= shorter < longest
    assert lengths(chat, task, cfg, 1)[0] == 1
