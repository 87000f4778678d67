"""The state of a run for its views, from its events."""

from dataclasses import replace

import pytest
from sdpo_cli.terminal import live_view, render
from sdpo_cli.terminal.progress import Header, Progress

HEADER = Header("tiny", "tiny", "sdpo", "ema", "cpu float32", "runs/x", 10)


def times(*events: tuple[str, int, float], **fields: object) -> list[dict[str, object]]:
    """Events by type, step and time."""
    return [{"type": kind, "step": step, "time": time, **fields} for kind, step, time in events]


def shown(events: list[dict[str, object]], now: float, eval_every: int = 0) -> Progress:
    progress = Progress(replace(HEADER, eval_every=eval_every), clock=lambda: now)
    for event in events:
        progress.observe(event)
    return progress


def test_time_left_and_elapsed_of_a_resumed_run_exclude_the_pause() -> None:
    run = times(("run_started", 0, 0.0), ("step", 1, 50.0), ("resumed", 1, 9000.0), ("step", 2, 9004.0))
    progress = shown(run, now=9004.0)
    assert progress.elapsed() == pytest.approx(54.0)
    assert progress.seconds_left() == pytest.approx(8 * 27.0)


def test_time_left_follows_recent_steps_and_runs_down() -> None:
    run = times(("run_started", 0, 0.0), *(("step", n, 100.0 * n) for n in (1, 2, 3, 4)))
    slow, fast = shown(run, now=400.0), shown(times(("run_started", 0, 0.0), ("step", 1, 100.0)), now=100.0)
    assert slow.seconds_left() == pytest.approx(600.0)
    for n in range(2, 10):
        fast.observe({"type": "step", "step": n, "time": 100.0 + n})
    assert fast.seconds_left() == pytest.approx(1.0, abs=0.3)
    slow.clock = lambda: 430.0
    assert slow.seconds_left() == pytest.approx(570.0)
    slow.clock = lambda: 4000.0  # a step that takes long says nothing about the others
    assert slow.seconds_left() == pytest.approx(500.0)


def test_time_left_includes_evaluations_and_forgetting() -> None:
    before = times(("eval", 0, 40.0), final=True, adapter="none")
    run = [*times(("run_started", 0, 0.0)), *before, *times(("forgetting", 0, 45.0), ("eval", 0, 45.0))]
    run += times(("step", 1, 55.0))
    # 9 steps; evaluations after steps 3, 6, 9 and 10; the final score; forgetting
    assert shown(run, now=55.0, eval_every=3).seconds_left() == pytest.approx(9 * 10 + 5 * 40 + 5)


def test_a_run_that_has_ended_has_no_time_left() -> None:
    progress = shown(times(("run_started", 0, 0.0), ("step", 1, 5.0)), now=99.0)
    progress.ended = "stopped"
    assert (progress.seconds_left(), progress.elapsed()) == (None, 5.0)


def test_final_scores_stay_out_of_the_curve() -> None:
    watched = Progress(HEADER)
    watched.observe({"type": "eval", "step": 0, "score": 0.1, "final": True, "adapter": "none"})
    watched.observe({"type": "eval", "step": 0, "score": 0.2})
    watched.observe({"type": "eval", "step": 3, "score": 0.2})
    assert [event["score"] for event in watched.evals] == [0.2, 0.2]
    assert watched.best == watched.evals[0]
    assert watched.before is not None


def test_skips_are_named_with_their_numbers() -> None:
    watched = Progress(HEADER)
    event = {"type": "step", "step": 1, "skip/no_signal": 3, "skip/too_long": 0, "teacher/with_feedback": 0.25}
    watched.observe({**event, "teacher/with_demonstration": 0.0})
    assert live_view.context_summary(watched) == "25.0 % (no_signal 3)"
    watched.observe({**event, "teacher/with_demonstration": 0.0, "share/demonstration": 0.083, "share/feedback": 0.0})
    expected = "25.0 % (no_signal 3), SDPO's share: demonstrations 8 %, feedback 0 %"
    assert live_view.context_summary(watched) == expected


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        ({"score": 0.5, "pass@1": 0.5, "low": 0.4, "high": 0.6}, "success 50.0 % (40.0 to 60.0)"),
        ({"score": 0.5, "pass@1": 0.25, "low": 0.4, "high": 0.6}, "mean reward 0.500 (0.400 to 0.600), success 25.0 %"),
        ({"score": None, "pass@1": "x"}, "success -"),
    ],
)
def test_a_score_is_named_by_what_it_is(event: dict[str, object], shown: str) -> None:
    assert render.score(event) == shown


def test_plain_lines_show_truncation_and_one_of_two_equal_losses() -> None:
    watched = Progress(HEADER)
    step = {"type": "step", "step": 1, "length/truncated": 0.4, "loss": 0.5, "divergence/mean": 0.5}
    watched.observe(step)
    line = live_view.event_lines(step, watched)[0]
    assert "truncated 40.0 %  loss 0.5  context" in line
    assert live_view.losses({"loss": 0.5, "divergence/mean": 0.25}) == "loss 0.5  divergence 0.25"


def test_a_stream_that_is_read_again_counts_no_step_twice() -> None:
    watched = Progress(HEADER)
    for _ in range(2):
        for event in times(("run_started", 0, 0.0), ("step", 1, 1.0), ("step", 2, 2.0)):
            watched.observe({**event, "success/rate": 0.5})
    assert watched.curve("success/rate") == [0.5, 0.5]
