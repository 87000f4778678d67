"""A run keeps its chat template: resume, load and export need neither the file nor a template of the base."""

import json
import shutil

import pytest
from coaching_sessions import typed

import sdpo_mlx as sdpo
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.chat_template import load_chat
from sdpo_mlx.models.resolve import resolve
from sdpo_mlx.rl.components import FREE_ON_RESUME
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.targets import run_config

TEMPLATE = (
    "{% for m in messages %}{{ '[' ~ m.role ~ '] ' ~ m.content ~ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
SETTINGS = {
    "model.adapter.rank": 2,
    "rollout.problems_per_step": 2,
    "rollout.group_size": 2,
    "rollout.max_tokens": 4,
    "eval.problems": 1,
    "eval.samples": 1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The embedded model without its chat template, as a base model has none."""
    made = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(resolve("tiny").path, made)
    (made / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (made / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


def trained(base, out, steps, template):
    settings = {**SETTINGS, "model.chat_template": template}
    return sdpo.train(str(base), "tiny", out=out, steps=steps, settings=settings, progress=False)


def test_run_with_a_template_file_needs_it_never_again(tmp_path, base):
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATE, encoding="utf-8")
    trained(base, tmp_path / "run", 1, str(file)).close()
    file.write_text(TEMPLATE + " ", encoding="utf-8")
    with pytest.raises(ConfigError, match="tokenizer was"):
        trained(base, tmp_path / "run", 2, str(file))
    file.unlink()
    trained(base, tmp_path / "run", 2, str(file)).close()
    events = list(read_events(tmp_path / "run" / "events.jsonl"))
    assert {"resumed", "run_finished"} <= {event["type"] for event in events}
    assert not [event for event in events if event["type"] == "warning" and "template" in event["message"]]

    assert run_config(tmp_path / "run").model.chat_template == TEMPLATE
    exported = sdpo.load_run(tmp_path / "run").export("fused", tmp_path / "fused")
    assert load_chat(exported.folder).source.texts == (TEMPLATE, TEMPLATE)
    assert (tmp_path / "fused" / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE
    peft = sdpo.load_run(tmp_path / "run").export("peft", tmp_path / "peft")
    assert (peft.folder / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE


def test_returned_run_opens_its_model_again_without_the_file(tmp_path, base):
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATE, encoding="utf-8")
    run = trained(base, tmp_path / "run", 1, str(file))
    before = run.generate("sort", max_tokens=4)
    run.close()
    file.unlink()
    assert run.generate("sort", max_tokens=4) == before
    assert len(run.compare().pairs) == 1
    run.close()


def test_coaching_resumes_without_the_template_file(tmp_path, base, monkeypatch):
    file, place = tmp_path / "own.jinja", tmp_path / "coached"
    file.write_text(TEMPLATE, encoding="utf-8")
    words = ["coach", str(base), "--task", "tiny", "--plain", "--max-tokens", "4", "--out", str(place), "--json"]
    words += ["--set", f"model.chat_template={file}", "--set", "model.adapter.rank=2", "--problems", "1"]
    totals = []
    for _ in range(2):
        code, out, err = typed(monkeypatch, "wrong\n", *words)
        assert code == 0, err
        totals.append(json.loads(out)["total"])
        file.unlink(missing_ok=True)
    assert totals == [1, 2]
    assert run_config(place).model.chat_template == TEMPLATE
    # A new session has no template to take the place of the file.
    code, _, err = typed(monkeypatch, "wrong\n", *words[:-6], "--out", str(tmp_path / "new"), *words[-6:])
    assert code == 2
    assert "own.jinja" in err.splitlines()[-1]


def test_base_model_trains_with_one_warning_and_records_the_plain_layout(tmp_path, base):
    run = trained(base, tmp_path / "run", 1, "auto")
    run.close()
    warnings = [event["message"] for event in run.events if event["type"] == "warning"]
    assert len([text for text in warnings if "no chat template" in text]) == 1
    assert run_config(tmp_path / "run").model.chat_template == "plain"


def test_runs_of_versions_without_the_setting_resume():
    # The setting's effect is in the tokenizer's hash, which is what earlier versions recorded for the embedded model.
    assert "chat_template" in FREE_ON_RESUME["model"]
    assert load_chat(resolve("tiny").path).tokenizer_hash.startswith("f994b9f8146267c0")
