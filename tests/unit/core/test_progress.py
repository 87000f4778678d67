"""What long work tells whoever waits: each piece by its name, counts that start at nothing and end at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_files import write_sample
from small_runs import settings

from sdpo_mlx.core.progress import MEGABYTE, track
from sdpo_mlx.models import fetch
from sdpo_mlx.models.gguf.reader import import_gguf
from sdpo_mlx.models.hub import progress_bar
from sdpo_mlx.models.safetensors_io import Stored, write_weights
from sdpo_mlx.rl.components import build_components
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.trainer import fit
from sdpo_mlx.training import final_scores
from sdpo_mlx.training.test_time import Budget, solve

Told = list[tuple[str, int, int]]


def listening() -> tuple[Told, Callable[[str], Callable[[int, int], None]]]:
    """What was told, each with its piece of work; a piece's beginning is told as (name, -1, -1)."""
    told: Told = []

    def doing(what: str) -> Callable[[int, int], None]:
        told.append((what, -1, -1))
        return lambda done, total: told.append((what, done, total))

    return told, doing


def names(told: Told) -> list[str]:
    return [what for what, done, _ in told if done == -1]


def test_counted_tells_before_the_first_and_after_each() -> None:
    told: list[tuple[int, int]] = []
    assert list(track("ab", lambda *how: told.append(how))) == ["a", "b"]
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert list(track(iter("a"), lambda *how: told.append(how))) == ["a"]
    assert told[3:] == [(0, 0), (1, 0)]


def test_a_run_says_what_it_does_and_a_search_counts_its_attempts(tmp_path: Path) -> None:
    short = {"problems": 2, "samples": 2, "max_tokens": 4}
    setup = build_components(settings(train={"steps": 1}, eval=short, log={"teacher_answers": 8}))
    told, doing = listening()
    with RunFolder.open(tmp_path / "run") as folder:
        fit(setup, folder, lambda *_: None, start_task=doing)
    said = list(dict.fromkeys(names(told)))
    assert said == [
        "evaluating",
        final_scores.GENERAL_PROMPTS,
        "sampling",
        "grading",
        "asking the self-teacher",
        "learning",
        "saving",
    ]
    size = setup.cfg.rollout.problems_per_step * setup.cfg.rollout.group_size
    assert [how for what, *how in told if what == "sampling" and how[0] >= 0] == [[n, size] for n in range(size + 1)]
    counts = [done for what, done, total in told if what == "evaluating" and total == 4]
    assert max(counts) == 4
    assert counts[:4] == sorted(counts[:4])

    attempts: list[tuple[int, int]] = []
    problem = setup.task.problems("held_out")[0]
    found = solve(setup, problem, "best-of-k", Budget(3), on_progress=lambda *how: attempts.append(how))
    assert attempts[0] == (0, 3)
    assert attempts[-1] == (found.attempts, 3)


def test_an_import_names_its_pieces_and_weights_are_told_in_megabytes(tmp_path: Path) -> None:
    told, doing = listening()
    import_gguf(write_sample(tmp_path / "m.gguf", "llama").path, tmp_path / "out", doing=doing)
    assert names(told) == ["reading m.gguf", "unpacking m.gguf, in MB", "checking m.gguf"]
    megabytes: list[tuple[int, int]] = []
    tensor = Stored("w", (MEGABYTE,), lambda: iter(np.zeros((4, MEGABYTE // 4), dtype=np.float32)))
    write_weights(tmp_path, [tensor], "float32", on_progress=lambda *how: megabytes.append(how))
    assert megabytes == [(n, 4) for n in range(5)]


def test_a_download_is_told_by_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "POLL_SECONDS", 0.001)
    told: list[tuple[int, int]] = []
    with fetch._reported_size(tmp_path, 2 * MEGABYTE, lambda *how: told.append(how)):
        (tmp_path / "half").write_bytes(bytes(MEGABYTE))
        while told[-1] != (1, 2):
            pass
        (tmp_path / "more").write_bytes(bytes(3 * MEGABYTE))
        while told[-1] != (2, 2):
            pass
    assert told[0] == (0, 2)


def test_a_hub_s_bar_that_is_switched_off_says_nothing() -> None:
    told: list[tuple[int, int]] = []
    bar = progress_bar(lambda *how: told.append(how))(total=4 * MEGABYTE, unit="B", disable=True)
    bar.update(MEGABYTE)
    bar.close()
    assert told == []


def test_the_hub_s_bars_tell_bytes_and_draw_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub.utils import enable_progress_bars

    enable_progress_bars()  # transformers, where another test has loaded it, may have switched them off
    told: list[tuple[int, int]] = []
    bar = progress_bar(lambda *how: told.append(how))
    files = bar(total=3, desc="Fetching 3 files", unit="it")
    files.update(1)
    with bar(desc="Downloading", total=0, initial=0, unit="B", unit_scale=True, name="huggingface_hub.x") as taken:
        taken.total += 4 * MEGABYTE
        taken.update(3 * MEGABYTE)
        taken.set_description("Download complete")
        taken.refresh()
    files.close()
    assert told[-1] == (3, 4)
    assert all(total == 4 for _, total in told)
    assert capsys.readouterr() == ("", "")
