"""The state of a run for its views, from its events."""

import pytest
from sdpo_cli.terminal import live_view
from sdpo_cli.terminal.progress import Header, Progress

HEADER = Header("tiny", "tiny", "sdpo", "ema", "cpu float32", "runs/x", 10)


def test_time_left_follows_the_rate_of_this_process() -> None:
    seconds = iter([100.0, 110.0, 120.0])
    watched = Progress(HEADER, clock=lambda: next(seconds))
    watched.observe({"type": "resumed", "step": 4})
    assert watched.seconds_left() is None
    watched.observe({"type": "step", "step": 5})
    watched.observe({"type": "step", "step": 6})
    assert watched.seconds_left() == pytest.approx(40.0)


def test_time_left_of_a_resumed_run_excludes_the_pause() -> None:
    watched = Progress(HEADER)
    events = (("run_started", 0, 0.0), ("step", 1, 50.0), ("resumed", 1, 9000.0), ("step", 2, 9004.0))
    for kind, step, time in events:
        watched.observe({"type": kind, "step": step, "time": time})
    assert watched.seconds_left() == pytest.approx(32.0)


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
