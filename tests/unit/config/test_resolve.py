"""Every setting says where it comes from, and no typo gets through (promise 10)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from paths import ROOT
from sdpo_cli.commands.config import app
from typer.testing import CliRunner

from sdpo_mlx.config import Config, keys, layers
from sdpo_mlx.config.resolve import config_hash, dump_yaml, resolve, value_at
from sdpo_mlx.core.errors import ConfigError

PRESETS = [
    "code",
    "math",
    "paper/livecodebench",
    "paper/science",
    "paper/tools",
    "qwen",
    "rubric",
    "science",
    "smollm2",
    "tiny",
    "tools",
]


def _file(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _refused(file: Path | None, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(file, sets)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_every_preset_is_shipped_and_parses() -> None:
    assert layers.preset_names() == PRESETS
    for name in PRESETS:
        stated = layers.preset(name)
        origins = resolve(Path(name)).origins
        assert {key for key, origin in origins.items() if origin == f"preset {name}"} == set(stated)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("paper/")])
def test_paper_preset_takes_nothing_from_laptop_presets(name: str) -> None:
    task = {} if "task.name" in layers.preset(name) else {"task.name": "other"}
    origins = resolve(Path(name), flags=task).origins
    assert set(origins.values()) - {"flag --task"} == {f"preset {name}", "default"}


DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # thousands of files: the quick one, where it was built


def _mutations(name: str) -> Iterator[str]:
    letters = "e_"
    yield from (name[:i] + name[i + 1 :] for i in range(len(name)))
    yield from (name[:i] + letter + name[i:] for i in range(len(name) + 1) for letter in letters)
    yield from (name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in range(len(name) - 1))


def _mutated_keys(tree: dict[str, object], every: int, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(section, name, mutated name) of every key, sections included; of each key one mutation in `every`."""
    for name, value in tree.items():
        wrongs = [wrong for wrong in dict.fromkeys(_mutations(name)) if wrong not in keys.children(prefix)]
        for wrong in wrongs[len(name) % every :: every]:
            yield prefix, name, wrong
        if isinstance(value, dict):
            yield from _mutated_keys(value, every, f"{prefix}.{name}" if prefix else name)


def _renamed(tree: dict[str, object], section: str, name: str, wrong: str) -> dict[str, object]:
    head, _, rest = section.partition(".")
    if section:
        return {key: _renamed(item, rest, name, wrong) if key == head else item for key, item in tree.items()}  # type: ignore[arg-type]
    return {wrong if key == name else key: item for key, item in tree.items()}


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PRESETS)
def test_mutated_key_of_a_preset_is_rejected_with_the_right_suggestion(name: str, every: int, tmp_path: Path) -> None:
    tree = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8"))
    right = total = 0
    for section, key, wrong in _mutated_keys(tree, every):
        text = yaml.dump(_renamed(tree, section, key, wrong), Dumper=DUMPER, sort_keys=False)
        path = _file(tmp_path, text)
        message = _refused(path)

        assert message.startswith(f"{path}:")
        total += 1
        right += f"did you mean {key}?" in message
    assert total > 200 / every
    assert right / total >= 0.95


@pytest.mark.parametrize("key", keys.LEAVES)
def test_mutated_key_of_a_set_option_is_rejected(key: str) -> None:
    wrongs = set(_mutations(key)) - set(keys.LEAVES)
    right = sum(f"did you mean {key}?" in _refused(None, f"{wrong}=1") for wrong in wrongs)
    assert right / len(wrongs) >= 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  lerning_rate: 1\n", ":2: train.lerning_rate: did you mean learning_rate?"),
        ("train:\n\n  learning_rate: 1e-5", ":3: train.learning_rate: '1e-5' is a string in YAML, write 1.0e-5."),
        ("train:\n  learning_rate: '3E7'", ":2: train.learning_rate: '3E7' is a string in YAML, write 3.0e+7."),
        ("train: {steps: '5'}", ":1: train.steps: '5' is a string in YAML, write 5 without quotes."),
        ("train: {steps: 2.5}", ":1: train.steps: 2.5 is not allowed, must be an integer of at least 0."),
        ("train: {steps: true}", ":1: train.steps: true is not allowed, must be an integer of at least 0."),
        ("train: {steps: }", ":1: train.steps: null is not allowed, must be an integer of at least 0."),
        ("train: {learning_rate: .nan}", ":1: train.learning_rate: nan is not allowed, must be a number of at least"),
        ("teacher:\n  kind: eam\n", ":2: teacher.kind: 'eam' is not allowed, must be one of ema"),
        ("task: {data: 2020-99-99, name: {a: 1}}", ":1: task.name: must be a non-empty string."),
        ("train: 5\n", ":1: train: is a section, write `train:` and, indented below it, `steps: ...`."),
        ("learning_rate: 1\n", ":1: learning_rate: did you mean train.learning_rate?"),
        ("iters: 1\n", ":1: iters: did you mean train.steps?"),
        ("train.steps: 1\n", ":1: train.steps: keys are nested in a file, write `steps:` indented below `train:`."),
        ("train:\n  steps: 1\n  steps: 2\n", ":3: train.steps: is already set in line 2, keep one."),
        ("train: {steps: 1}\nlog: {}\ntrain: {seed: 1}\n", ":3: train: is already set in line 1, keep one."),
        ("objective:\n  alpha: 0.5\n  support: sampled\n", "objective: support: sampled estimates"),
        ("train:\n\tsteps: 1\n", ":2: is not valid YAML"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML"),
        ("train: {steps: !!python/object/apply:os.getcwd []}", ":1: is not valid YAML: could not determine"),
        ("model: {adapter: {keys: &a [*a]}}", ":1: model.adapter.keys: must be a list of strings, or null."),
        ("- 1\n", ":1: the file must hold sections"),
        ("[" * 5000, "is not readable as YAML: nested too deep."),
        ("train: {steps: \x07}", "is not readable as YAML: control characters."),
        ('"\\e[31m": 1', ":1: '\\x1b[31m': unknown; known here: model"),
    ],
)
def test_fault_in_a_file_is_told_with_place_and_mending(text: str, message: str, tmp_path: Path) -> None:
    path = _file(tmp_path, text)
    said = _refused(path)
    assert said.startswith(str(path))
    assert message in said


def test_several_faults_are_told_at_once(tmp_path: Path) -> None:
    said = _refused(_file(tmp_path, "train:\n" + "".join(f"  a{n}: 1\n" for n in range(21))))
    assert all(f"train.a{n}: unknown" in said for n in range(20))
    assert said.endswith("; and 1 more.")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train.steps", "--set 'train.steps': is not an assignment, write --set train.steps=20."),
        ("=3", "is not an assignment"),
        ("train=3", "--set: train: is a section, set one of its keys: steps, "),
        ("train.lerning_rate=3", "--set: train.lerning_rate: did you mean train.learning_rate?"),
        ("learning_rate=3", "--set: learning_rate: did you mean train.learning_rate?"),
        ("train.steps=many", "--set: train.steps: 'many' is not allowed, must be an integer of at least 0."),
        ("train.steps=[", "--set: train.steps: '[' is not allowed"),
        ("objective.support=sampled", "--set: objective: support: sampled estimates"),
        ("teacher.template={who}", "--set: teacher.template: unknown slot"),
        ("teacher.template=fact", "--set: teacher.template: there is no such template, name one of paper, reference,"),
    ],
)
def test_faulty_set_option_is_told(option: str, message: str) -> None:
    assert message in _refused(None, option)


def test_unknown_file_is_told_with_a_near_preset(tmp_path: Path) -> None:
    assert "Did you mean tiny?" in _refused(Path("tny"))
    assert "no such file or preset" in _refused(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"task: {name: \xff}")
    assert "is not UTF-8 text" in _refused(tmp_path / "latin.yaml")


def test_each_layer_wins_over_those_below(tmp_path: Path) -> None:
    path = _file(
        tmp_path, "model: {name: 'qwen:8b'}\ntask: {name: code}\ntrain:\n  steps: 1\n  seed: 1\n  patience: 1\n"
    )
    found = resolve(path, ["train.steps=2", "train.seed=2"], {"train.steps": 3, "train.clip_norm": None})
    told = {key: (value_at(found.config, key), found.origins[key]) for key in keys.LEAVES}
    assert told["train.steps"] == (3, "flag --steps")
    assert told["train.seed"] == (2, "--set")
    assert told["train.patience"] == (1, f"{path}:6")
    assert told["train.clip_norm"] == (Config().train.clip_norm, "default")
    assert told["model.name"] == ("qwen:8b", f"{path}:1")
    # Both presets set max_tokens: the model's wins, and the task's fills what the model's leaves open.
    assert told["rollout.max_tokens"][1] == "preset qwen"
    assert told["rollout.group_size"][1] == "preset code"


def test_flag_of_a_kind_or_name_is_called_by_its_section() -> None:
    origins = resolve(None, flags={"model.name": "smollm2", "objective.kind": "hybrid"}).origins
    assert (origins["model.name"], origins["objective.kind"]) == ("flag --model", "flag --objective")


def test_preset_of_a_pair_stays_away_from_another_model() -> None:
    origins = resolve(None, flags={"model.name": "some/model", "task.name": "tiny"}).origins
    assert not [key for key, origin in origins.items() if origin.startswith("preset")]


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        ("train.learning_rate=1e-5", "train.learning_rate", 1e-5),
        ("train.steps=1e3", "train.steps", 1000),
        ("teacher.demonstration=off", "teacher.demonstration", "off"),
        ("teacher.feedback=off", "teacher.feedback", False),
        ("task.data=007", "task.data", "007"),
        ("task.data=null", "task.data", None),
        ("model.name=a=b", "model.name", "a=b"),
        ("model.adapter.keys=[a, b]", "model.adapter.keys", ["a", "b"]),
        ("model.adapter.keys=a b", "model.adapter.keys", ["a", "b"]),
        ("rollout.stop=Final answer", "rollout.stop", ["Final answer"]),
        (r'rollout.stop=["\n```\n", "Q:"]', "rollout.stop", ["\n```\n", "Q:"]),
    ],
)
def test_set_option_is_read_as_its_key_wants(option: str, key: str, value: object) -> None:
    assert value_at(resolve(None, [option]).config, key) == value


def test_word_off_in_a_file_is_the_choice_and_not_false(tmp_path: Path) -> None:
    config = resolve(_file(tmp_path, "teacher: {demonstration: off, feedback: off}")).config
    assert (config.teacher.demonstration, config.teacher.feedback) == ("off", False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8"), min_size=1), st.floats(0, 1), st.integers(0, 2**63))
@example("\x85", 0.0, 0)
@example("a\u2028b\n---\n\ufeff", 0.0, 0)
def test_dumped_configuration_is_read_back_equal(tmp_path: Path, name: str, alpha: float, seed: int) -> None:
    config = resolve(None, flags={"model.name": name, "objective.alpha": alpha, "train.seed": seed}).config
    again = resolve(_file(tmp_path, dump_yaml(config))).config
    assert again == config
    assert config_hash(again) == config_hash(config)


def test_hash_changes_with_any_value() -> None:
    assert len({config_hash(resolve(None, [option]).config) for option in ("train.seed=0", "train.seed=1")}) == 2


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=100), st.text("train:steps {}[]&*!<>|-'\"\n\t#?,1e", max_size=60).map(str.encode)))
def test_random_file_gives_a_configuration_or_a_config_error(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "noise.yaml"
    path.write_bytes(noise)
    try:
        said = dump_yaml(resolve(path).config)
    except ConfigError as error:
        said = str(error)
    assert str(path) in said or "model:" in said


def test_config_show_prints_yaml_with_origins_that_can_be_used_again(tmp_path: Path) -> None:
    arguments = ["show", "--model", "qwen", "--task", "code", "--set", "train.learning_rate=3e-5"]
    text = CliRunner().invoke(app, arguments).stdout
    assert "learning_rate: 3.0e-05" in text
    assert "# flag --model" in text
    expected = resolve(None, arguments[-1:], {"model.name": "qwen", "task.name": "code"})
    assert resolve(_file(tmp_path, text)).config == expected.config
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert document.pop("changed")
    assert document == {"config": expected.config.model_dump(mode="json"), "origins": expected.origins}
