"""The report: what it shows is what the run did, in one file that does nothing on its own, in a real browser too."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, browser, chromium
from hypothesis import given
from hypothesis import strategies as st
from report_runs import answered, shown, story
from sdpo_cli.main import main as run
from small_runs import settings, trained

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.evaluation.cache import CachedRollout
from sdpo_mlx.evaluation.evaluate import Evaluation, ProblemScore, kept_rollouts
from sdpo_mlx.models.chat_template import load_chat
from sdpo_mlx.models.resolve import resolve
from sdpo_mlx.rl.diagnostics import ROLLOUTS_PER_LOOK, candidates, due, pieces
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.report.collect import read_run, read_runs
from sdpo_mlx.runs.report.html import page
from sdpo_mlx.types import Problem

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">\x1b[31m\u202egpj<b>&lt;{{x}}" + "y" * 300
ROOM = {"problems_per_step": 2, "group_size": 4, "max_tokens": 24}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps with candidates for the first."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    cfg = settings(rollout=ROOM, train={"steps": 3, "eval_every": 3}, log={"samples": 2, "candidates": 2})
    trained(folder, cfg)
    RunFolder(folder).write_config(cfg)
    return folder


@pytest.fixture(scope="module")
def hostile(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with markup in every text that a model, a row or a grader could have written."""
    folder = tmp_path_factory.mktemp("runs") / "hostile"
    run_folder = RunFolder(folder)
    run_folder.rollouts.mkdir(parents=True)
    for name in ("events.jsonl", "config.yaml"):
        (folder / name).write_bytes((made / name).read_bytes())
    with (folder / "events.jsonl").open("a") as stream:
        stream.write(json.dumps({"type": "warning", "time": 0, "step": 3, "message": HOSTILE}) + "\n")
    rows = RunFolder(made).read_rollouts(1)
    for row in rows:
        row |= {
            "problem": HOSTILE,
            "feedback": HOSTILE,
            "kind": HOSTILE,
            "teacher": [{"role": HOSTILE, "content": HOSTILE}],
        }
        row["pieces"] = [HOSTILE, *row["pieces"][1:]]
        for role in row.get("candidates", {}).values():
            role[0][0][0] = HOSTILE
    run_folder.write_rollouts(1, rows)
    return folder


def test_every_token_stands_with_its_divergence_and_both_candidates(made: Path) -> None:
    kept = {(1, r["problem"], r["index"]): r for r in RunFolder(made).read_rollouts(1)}
    rows = [row for row in shown(page([read_run(made)])) if row["step"] == 1]
    assert rows
    for row in rows:
        record = kept[1, row["problem"], row["index"]]
        assert row["d"] == record["divergence"]
        assert "".join(record["pieces"]).startswith(record["answer"])
        assert row["feedback"] == record["feedback"]
    seen = [row for row in rows if row["top"]]
    assert len(seen) == 2
    for row in seen:
        for student, teacher in row["top"]:
            for side in (student, teacher):
                shares = [share for _, share in side]
                assert shares == sorted(shares, reverse=True)
                assert 0 < sum(shares) <= 1.001


def test_candidates_agree_with_the_divergence_that_was_learned_from(made: Path) -> None:
    """Where the drawn token is among both roles' candidates, log q - log p must be the stored figure."""
    checked = 0
    for row in RunFolder(made).read_rollouts(1):
        for t, piece in enumerate(row["pieces"]) if "candidates" in row else ():
            p, q = (dict(map(tuple, row["candidates"][role][t])).get(piece) for role in ("student", "teacher"))
            if p and q and min(p, q) > 0.01:
                assert np.log(q / p) == pytest.approx(row["divergence"][t], abs=0.03)
                checked += 1
    assert checked > 10


def test_looking_changes_nothing_in_training(made: Path, tmp_path: Path) -> None:
    cfg = settings(rollout=ROOM, train={"steps": 3, "eval_every": 3}, log={"samples": 2, "candidates": 0})
    trained(tmp_path / "blind", cfg)
    assert (tmp_path / "blind" / "adapters.safetensors").read_bytes() == (made / "adapters.safetensors").read_bytes()


@given(count=st.integers(1, 9), rollouts=st.integers(1, 500))
def test_looks_are_rare_where_steps_are_small_and_the_first_step_has_one(count: int, rollouts: int) -> None:
    looked = sum(due(step, count, rollouts) for step in range(640)) * count
    assert due(0, count, rollouts)
    assert looked <= 640 * rollouts / ROLLOUTS_PER_LOOK + count
    assert not due(0, 0, rollouts)


def test_the_report_shows_the_steps_that_have_candidates(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.rollouts.mkdir(parents=True)
    run.events.write_text("")
    for step in range(1, 60):
        seen = {"candidates": {"student": [], "teacher": []}} if step % 8 == 1 else {}
        run.write_rollouts(step, [{"problem": f"p{step}", "index": 1, "answer": "", **seen}])
    found = read_run(run.path).rollouts
    assert sum("candidates" in row for row in found) == 8


def test_pieces_make_up_the_text_whatever_the_tokens() -> None:
    chat = load_chat(resolve("tiny").path)
    for text in ("x = sort.order(x)\ny", "naïve 日本語 🙂 end", "\u202e<b>"):
        ids = np.array(chat.encode_plain(text), dtype=np.int32)
        assert "".join(pieces(chat, ids)) == text
    assert candidates(None, chat, [], 3) == {}  # type: ignore[arg-type]


def test_curves_come_first_and_held_out_problems_have_a_row_each(made: Path) -> None:
    text = page(read_runs([made]))
    assert text.index('id="curves"') < text.index('id="tokens-0"') < text.index('id="tables-0"')
    assert "Held-out problems over time" in text


def test_held_out_problems_are_followed_from_evaluation_to_evaluation(made: Path) -> None:
    run = RunFolder(made)
    assert run.rollout_steps("eval") == [0, 3]
    kept = {(step, row["problem"]): row for step in (0, 3) for row in run.read_rollouts(step, "eval")}
    rows = {(row["step"], row["problem"]): row for row in shown(page([read_run(made)])) if row["held"]}
    assert len(rows) == len(kept) == 4
    for (step, problem), row in kept.items():
        found = rows[step, f"{problem} (held out)"]
        assert (found["pieces"], found["d"], found["teacher"]) == ([row["answer"]], None, [])
        assert (found["success"], found["feedback"]) == (row["success"], row["feedback"])
        assert found["asked"] == [f"[{each['role']}]\n{each['content']}" for each in row["prompt"]]


def test_few_rollouts_of_an_evaluation_are_kept_and_the_turns_of_an_episode() -> None:
    problems = [Problem(str(n), ({"role": "user", "content": f"ask {n}"},)) for n in range(9)]
    one = CachedRollout(0, ("first", "last"), 1.0, True, "pass", "", "stop", 7)
    scores = [ProblemScore(each.id, "", (1.0,), (True,), (one,) if each.id != "0" else ()) for each in problems]
    rows = kept_rollouts(Evaluation("held_out", 1, tuple(scores), 0), problems)
    assert [row["problem"] for row in rows] == ["1", "3", "5", "7"]  # the prompt of 0 did not fit
    assert (rows[0]["answer"], rows[0]["earlier"], rows[0]["index"]) == ("last", [{"answer": "first"}], 0)
    assert kept_rollouts(Evaluation("held_out", 1, (), 0), problems) == []


def test_training_curve_has_the_interval_of_the_events() -> None:
    steps = [
        {"step": 1, "success/rate": 0.5, "success/low": 0.2, "success/high": 0.8},
        {"step": 2, "success/rate": 0.4},
    ]
    text = page([replace(story([]), steps=steps)])
    assert "after 1 steps: 0.5 (0.2 to 0.8)" in text
    assert "after 2 steps: 0.4<" in text  # of an older version: none is made up


def test_summary_shows_truncated_rollouts_and_the_setting_to_change() -> None:
    run = replace(story([], rollout={"max_tokens": 64}), steps=[{"step": 1, "length/truncated": 0.5}])
    assert "Truncated: 50.0 % of the rollouts of the last steps; raise rollout.max_tokens (64)" in page([run])


def test_the_whole_prompt_is_shown_with_its_system_message() -> None:
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go."}]
    assert shown(page([story([answered(1, 3, "x", prompt=prompt)])]))[0]["asked"] == [
        "[system]\nBe brief.",
        "[user]\nGo.",
    ]


def test_mean_rewards_are_not_called_success() -> None:
    run = replace(story([]), evals=[{"step": 0, "score": 0.5, "pass@1": 0.25}])
    assert run.score_name == "mean reward"
    assert replace(run, evals=[{"step": 0, "score": 0.5, "pass@1": 0.5}]).score_name == "success"


def test_equal_runs_give_equal_bytes(made: Path) -> None:
    assert page([read_run(made)]) == page([read_run(made)])


def test_several_runs_are_laid_over_each_other(made: Path, hostile: Path) -> None:
    text = page([read_run(made), read_run(hostile)])
    assert text.count("first held out") == text.count("hostile held out") > 0
    assert text.count('class="tokens"') == 2


def test_nothing_may_be_fetched_and_only_its_own_script_runs(made: Path) -> None:
    text = page([read_run(made)])
    assert "default-src 'none'" in text
    assert "unsafe" not in text
    assert not re.findall(r"<(?:link|iframe|object|embed|base|form|img)\b", text)
    still = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"\s(?:on\w+|style|src|href)=(?!\"#)", still)


def test_hostile_text_opens_no_tag_and_loses_its_control_characters(hostile: Path) -> None:
    text = page([read_run(hostile)])
    assert "<img" not in text
    assert not set(text) & set("\x1b\u202e")
    assert text.count("<script") == text.count("</script>") == 2


def test_a_damaged_folder_is_reported_with_what_there_is(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    RunFolder(folder).rollouts.mkdir(parents=True)
    (folder / "events.jsonl").write_bytes((made / "events.jsonl").read_bytes()[:-40])
    RunFolder(folder).rollouts_of(1).write_bytes(b"no gzip")
    RunFolder(folder).rollouts_of(2).write_bytes(gzip.compress(b'{"step": 2}\n[]\n'))
    story = read_run(folder)
    assert {fault.split()[0] for fault in story.problems} >= {"config.yaml", "the"}
    assert "cannot be read" in page([story])
    with pytest.raises(ConfigError, match="no run here"):
        read_run(tmp_path / "nothing")


def test_the_command_writes_one_small_file(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(made), "--out", str(tmp_path / "r.html"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == (tmp_path / "r.html").stat().st_size < 1_000_000
    assert run(["report", str(tmp_path / "nothing")]) == 2


def test_runs_of_one_name_are_told_apart(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / made.name
    other.mkdir(parents=True)
    (other / "events.jsonl").write_text("")
    names = [each.name for each in read_runs([made, other])]
    assert names == [f"{made.parent.name}/first", "other/first"]
    assert [each.name for each in read_runs([made, made])] == ["first (1)", "first (2)"]


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("no Chromium here: the report is not opened in a browser")
    with browser() as opened:
        yield opened


def opened(tab: Browser, folder: Path, place: Path) -> None:
    place.write_text(page([read_run(folder)]), encoding="utf-8")
    tab.session, tab.said = "", []
    tab.open(place, width=1000, height=900)


def test_a_browser_shows_the_numbers_on_hovering_and_on_keys(tab: Browser, made: Path, tmp_path: Path) -> None:
    opened(tab, made, tmp_path / "report.html")
    row = next(r for r in RunFolder(made).read_rollouts(1) if r["index"] == 0 and "candidates" in r)
    tab.value(
        f"(p => {{p.value = {json.dumps(row['problem'])}; p.dispatchEvent(new Event('change'));}})"
        "(document.querySelector('.problem'))"
    )
    answer = next(
        n for n, r in enumerate(shown((tmp_path / "report.html").read_text())) if r["problem"] == row["problem"]
    )
    tab.value(
        f"(a => {{a.value = '{answer}'; a.dispatchEvent(new Event('change'));}})(document.querySelector('.answer'))"
    )
    tab.hover('[data-token="1"]')
    tip = tab.value("document.querySelector('.tip').textContent")
    assert f"{abs(row['divergence'][1]):.2f}" in tip
    assert f"{100 * row['candidates']['student'][1][0][1]:.1f} %" in tip
    tab.value("document.querySelector('[data-token=\"0\"]').focus()")
    tab.press("ArrowRight")
    tab.press("ArrowRight")
    assert tab.value("document.activeElement.dataset.token") == "2"
    assert f"{abs(row['divergence'][2]):.2f}" in tab.value("document.querySelector('.tip').textContent")
    tab.press("End")
    assert tab.value("document.activeElement.dataset.token") == str(len(row["pieces"]) - 1)
    tab.press("Home")
    assert tab.value("document.activeElement.dataset.token") == "0"
    tab.value("document.querySelectorAll('input[name=axis]')[1].click()")
    assert tab.value("document.querySelector('.charts:not([hidden])').textContent").count("rollouts") > 0
    assert tab.said == []


def test_a_browser_shows_a_held_out_problem_over_time(tab: Browser, made: Path, tmp_path: Path) -> None:
    opened(tab, made, tmp_path / "report.html")
    held = "[...document.querySelectorAll('optgroup')].find(each => each.label.startsWith('held out'))"
    tab.value(
        "((p, name) => {p.value = name; p.dispatchEvent(new Event('change'));})"
        f"(document.querySelector('.problem'), {held}.querySelector('option').value)"
    )
    assert tab.value("document.querySelectorAll('.time .map').length") == 2
    assert tab.value("document.querySelector('.time button').textContent") == "step 0"
    assert "never trained on" in tab.value("document.querySelector('.teacher').textContent")
    assert "Held out" in tab.value("document.querySelector('.tip').textContent")
    assert tab.said == []


def test_a_chart_shows_its_values_at_the_pointer_and_on_arrow_keys(tab: Browser, made: Path, tmp_path: Path) -> None:
    opened(tab, made, tmp_path / "report.html")
    read = "document.querySelector('figcaption').textContent"
    at = "document.querySelectorAll('figure .at')"
    assert tab.value(read).startswith("after 3 steps: training ")
    tab.value(f"{at}[0].dispatchEvent(new PointerEvent('pointerover', {{bubbles: true}}))")
    assert tab.value(read).startswith("after 0 steps: held out ")
    tab.value("document.querySelector('figure').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    assert tab.value(read).startswith("after 1 steps: training ")


def test_arrows_go_from_line_to_line(tab: Browser, made: Path, tmp_path: Path) -> None:
    lines = story([{**answered(1, 1, "a"), "pieces": ["ab", "cd\n", "ef", "gh"], "divergence": [0, 0, -2, 0.1]}])
    (tmp_path / "report.html").write_text(page([lines]), encoding="utf-8")
    tab.session, tab.said = "", []
    tab.open(tmp_path / "report.html", width=1000, height=900)
    tab.value("document.querySelector('[data-token=\"1\"]').focus()")
    seen = []
    for key in ("ArrowDown", "ArrowUp", "ArrowUp"):
        tab.press(key)
        seen.append(tab.value("document.activeElement.dataset.token"))
    assert seen == ["3", "1", "1"]
    # the sign of a figure is told without its colour
    underlined = "getComputedStyle(document.querySelector('[data-token=\"{}\"]')).textDecorationLine"
    assert [tab.value(underlined.format(n)) for n in (2, 3)] == ["underline", "none"]
    assert tab.said == []


def test_a_telephone_shows_everything_without_scrolling_aside(tab: Browser, made: Path, tmp_path: Path) -> None:
    text = page(read_runs([made, made]))
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    tab.session, tab.said = "", []
    tab.open(tmp_path / "report.html", width=390, height=800)
    assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")
    drawn = "[...document.querySelectorAll('.charts:not([hidden]) svg')]"
    smallest = f"Math.min(...{drawn}.map(svg => svg.clientWidth / svg.viewBox.baseVal.width))"
    assert 12 * tab.value(smallest) >= 7
    unlabelled = "[...document.querySelectorAll('select, input')].filter(each => !each.labels.length).length"
    assert tab.value(unlabelled) == 0
    assert tab.said == []


def test_hostile_text_does_nothing_in_a_browser(tab: Browser, hostile: Path, tmp_path: Path) -> None:
    opened(tab, hostile, tmp_path / "report.html")
    tab.hover('[data-token="0"]')
    assert tab.value("document.title").startswith("sdpo report")
    assert tab.value("document.images.length") == 0
    assert "<img␣src=x" in tab.value("document.querySelector('.tip').textContent")
    assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert tab.said == []
