"""Models where people have them: made-up homes of the hub, LM Studio and Ollama, hostile ones among them."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from command import sdpo
from gguf_files import write_sample
from model_folders import COMMIT, GB, OLDER, listed, mlx_folder, on_hub

from sdpo_mlx.backends.fit import memory_fit
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.storage import cache_home
from sdpo_mlx.models import hub, inventory, lmstudio, ollama, resolve

MODEL, TERMS = "application/vnd.ollama.image.model", "application/vnd.ollama.image.license"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of nobody's, and nothing that points elsewhere."""
    made = tmp_path / "home"
    made.mkdir()
    for name in ("OLLAMA_MODELS", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(made))
    monkeypatch.setenv("SDPO_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(made)
    return made


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small GGUF that can be imported."""
    return write_sample(tmp_path_factory.mktemp("gguf") / "small-Q8_0.gguf", "llama", "Q8_0").path


def blob(root: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(content)
    return f"sha256:{digest}"


def manifest(root: Path, place: str, content: Any) -> None:
    """A manifest at `host/owner/name/tag`; bytes as they are, anything else as JSON."""
    path = root / "manifests" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def in_ollama(root: Path, place: str, gguf_file: bytes, terms: str = "") -> None:
    layers = [{"mediaType": MODEL, "digest": blob(root, gguf_file), "size": len(gguf_file)}]
    layers += [{"mediaType": TERMS, "digest": blob(root, terms.encode())}] if terms else []
    manifest(root, place, {"schemaVersion": 2, "layers": layers})


# ---- the hub


def test_hub_cache_is_listed_with_commit_size_license_and_memory(home: Path) -> None:
    on_hub(home, "owner/model")
    on_hub(home, "owner/model", OLDER, current=False)
    found = listed()
    item = found["owner/model"]
    assert (item.source, item.revision, item.size, item.quantization) == ("hub", COMMIT, 100, "4-bit")
    assert item.license == "apache-2.0"
    assert found[f"owner/model@{OLDER}"].revision == OLDER
    small, large = memory_fit(item, GB), memory_fit(item, 400 * GB)
    assert (small.verdict, large.verdict) == ("no", "yes")
    assert 1 * GB < (small.peak or 0) < (large.peak or 0) < 100 * GB  # memory to spare is used


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_hub_cache_is_where_the_environment_says(home: Path, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_hub(home, "owner/model")
    (home / ".cache" / "huggingface").rename(home / "elsewhere")
    assert list(hub.snapshots()) == []
    monkeypatch.setenv(variable, str(home / "elsewhere" / ("hub" if variable.endswith("CACHE") else "")))
    assert [each.repository for each in hub.snapshots()] == ["owner/model"]


def test_alias_is_here_once_its_repository_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: type("Info", (), {"sha": OLDER}))
    code, out, _ = sdpo("models", "show", "qwen:tiny", "--json")
    missing = json.loads(out)
    assert code == 0
    assert (missing["here"], missing["fetch"]) == (False, "sdpo models fetch qwen:tiny")
    assert missing["pinned"] == f"{resolve.ALIASES['qwen:tiny']}@{OLDER}"
    assert missing["trains_bytes"] > GB
    folder = on_hub(home, resolve.ALIASES["qwen:tiny"])
    code, out, _ = sdpo("models", "show", "qwen:tiny", "--json")
    here = json.loads(out)
    assert (here["here"], here["path"], here["revision"]) == (True, str(folder), COMMIT)
    assert here["pinned"] == f"{resolve.ALIASES['qwen:tiny']}@{COMMIT}"
    assert here["context"] == 40960
    assert "sdpo models fetch qwen:8b" in sdpo("models", "show", "qwen:8b")[1]


def test_hub_that_does_not_answer_leaves_the_commit_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", down)
    code, out, _ = sdpo("models", "show", "owner/model", "--json")
    assert code == 0
    assert json.loads(out)["revision"] == ""
    assert json.loads(out)["trains"] == "unknown"


def test_fetch_takes_aliases_and_says_the_commit(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache(lambda name: str(on_hub(home, name)))  # asked for the configuration, then for all files
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: folder(name))
    code, out, err = sdpo("models", "fetch", "qwen")
    assert code == 0, err
    assert f"{resolve.ALIASES['qwen']} at {COMMIT[:12]}" in out
    assert "from the hub" in err


def test_missing_shard_and_code_in_a_folder_are_told(home: Path) -> None:
    folder = on_hub(home, "owner/model")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert listed()["owner/model"].trouble == "1 of 2 files of weights are missing"
    (folder / "modeling_evil.py").touch()
    assert "holds code" in listed()["owner/model"].trouble
    assert memory_fit(listed()["owner/model"]).verdict == "no"


# ---- LM Studio, and folders


@pytest.mark.parametrize("place", [".lmstudio/models", ".cache/lm-studio/models", "moved/models"])
def test_lm_studio_is_listed_and_its_gguf_imported_on_use(home: Path, place: str, sample: Path) -> None:
    if place.startswith("moved"):
        (home / ".lmstudio-home-pointer").write_text(f"{home / 'moved'}\n")
    root = home / place
    mlx_folder(root / "mlx-people" / "Model-4bit")
    (root / "people" / "Small-GGUF").mkdir(parents=True)
    os.link(sample, root / "people" / "Small-GGUF" / sample.name)
    (root / "people" / "Small-GGUF" / "mmproj-x.gguf").touch()
    found = listed()
    assert found["lmstudio:mlx-people/Model-4bit"].quantization == "4-bit"
    item = found["lmstudio:people/Small-GGUF"]
    assert (item.quantization, item.trouble, item.size) == ("Q8_0", "", sample.stat().st_size)
    assert memory_fit(item, 64 * GB).verdict == "yes"
    assert not cache_home().exists()
    model = resolve.resolve("lmstudio:people/Small-GGUF")
    assert (model.source, model.revision) == ("lmstudio", hashlib.sha256(sample.read_bytes()).hexdigest())
    assert resolve.resolve(str(root / "people" / "Small-GGUF" / sample.name)).path == model.path
    assert resolve.resolve("lmstudio:mlx-people/Model-4bit").path == root / "mlx-people" / "Model-4bit"


def test_lm_studio_name_of_several_files_asks_which(home: Path) -> None:
    folder = home / ".lmstudio" / "models" / "people" / "Two"
    folder.mkdir(parents=True)
    for name in ("a-Q4_0.gguf", "b-Q8_0.gguf"):
        (folder / name).touch()
    with pytest.raises(ConfigError, match="Name one of: lmstudio:people/Two/a-Q4_0"):
        lmstudio.find("lmstudio:people/Two")
    assert lmstudio.find("lmstudio:people/Two/b-Q8_0.gguf").path == folder / "b-Q8_0.gguf"
    assert "damaged" in listed()["lmstudio:people/Two/a-Q4_0.gguf"].trouble
    with pytest.raises(ConfigError, match="no such model"):
        lmstudio.find("lmstudio:people/Three")


def test_folder_for_mlx_beside_is_listed(home: Path) -> None:
    folder = mlx_folder(home / "mlx_model", "no front matter", model_type="no_such_type")
    item = listed()[str(folder)]
    assert (item.source, item.license) == ("folder", "")
    assert memory_fit(item).verdict == "unknown"


# ---- Ollama


def test_ollama_is_listed_and_imported_on_use(home: Path, sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = home / ".ollama" / "models"
    in_ollama(root, "a.host/library/small/1b", sample.read_bytes(), "\n  Some Licence, version 2\nand more")
    in_ollama(root, "other.host/somebody/small/latest", sample.read_bytes())
    found = listed()
    item = found["ollama:small:1b"]
    assert (item.source, item.trouble, item.license) == ("ollama", "", "Some Licence, version 2")
    assert item.size == sample.stat().st_size
    assert "ollama:other.host/somebody/small:latest" in found
    model = resolve.resolve("ollama:small:1b")
    assert (model.revision, model.source) == (item.revision, "ollama")
    monkeypatch.setattr("sdpo_mlx.models.gguf.reader.import_gguf", lambda *_: pytest.fail("imported a second time"))
    assert resolve.resolve("ollama:somebody/small").path == model.path
    assert resolve.configuration("ollama:small:1b")["hidden_size"] == 256
    shown = json.loads(sdpo("models", "show", "ollama:small:1b", "--json")[1])
    assert (shown["model_type"], shown["context"], shown["trains"]) == ("llama", 512, "yes")
    with pytest.raises(ConfigError, match="ollama pull absent`"):
        resolve.resolve("ollama:absent")


def test_ollamas_folder_is_where_the_environment_says(
    home: Path, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_ollama(home / "moved", "h/library/m/latest", sample.read_bytes())
    assert list(ollama.local()) == []
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "moved"))
    assert [each.name for each in ollama.local()] == ["ollama:m:latest"]


HOSTILE: dict[str, Any] = {
    "not json": b"\xff{",
    "deep": b"[" * 100_000,
    "huge": b" " * (ollama.MAX_MANIFEST + 1),
    "a list": [],
    "no layers": {"layers": 7},
    "odd layers": {"layers": ["x"]},
    "cloud": {"layers": []},
    "adapter": {"layers": [{"mediaType": "application/vnd.ollama.image.adapter", "digest": "sha256:" + "0" * 64}]},
    "path": {"layers": [{"mediaType": MODEL, "digest": "sha256:../../../../secret"}]},
    "slashes": {"layers": [{"mediaType": MODEL, "digest": "../../secret.gguf"}]},
    "licence path": {
        "layers": [
            {"mediaType": MODEL, "digest": "sha256:" + "0" * 64},
            {"mediaType": TERMS, "digest": "sha256:" + "../" * 30 + "etc/passwd"},
        ]
    },
    "gone": {"layers": [{"mediaType": MODEL, "digest": "sha256:" + "0" * 64}]},
}


def test_hostile_manifests_are_listed_with_a_reason_and_refused_in_one_line(home: Path) -> None:
    root = home / ".ollama" / "models"
    (home / "secret.gguf").write_text("secret")
    for number, content in enumerate(HOSTILE.values()):
        manifest(root, f"h/library/m{number}/latest", content)
    manifest(root, "h/library/\x1b[2Jevil/latest", {})
    found = {name: each for name, each in listed().items() if each.source == "ollama"}
    assert len(found) == len(HOSTILE) + 1
    for name, each in found.items():
        assert each.trouble
        assert "secret" not in each.target + each.license
        with pytest.raises(ConfigError) as caught:
            resolve.resolve(name)
        assert len(caught.value.line().splitlines()) == 1
    code, out, _ = sdpo("models", "list")
    assert code == 0
    assert "\x1b" not in out


def test_blob_that_is_not_what_its_name_says_is_refused(home: Path, sample: Path) -> None:
    root = home / ".ollama" / "models"
    in_ollama(root, "h/library/m/latest", sample.read_bytes())
    (file,) = (root / "blobs").iterdir()
    content = bytearray(sample.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="does not match its hash"):
        resolve.resolve("ollama:m")


# ---- configurations


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 10**12}, {"num_attention_heads": 0}, {"hidden_size": "x"}, {"vocab_size": -1},
     {"quantization": {"bits": 4, "group_size": 0}}, {"text_config": 3}, {"quantization": [1]}],
)  # fmt: skip
def test_absurd_configuration_is_unknown_at_once(home: Path, changes: dict[str, Any]) -> None:
    folder = mlx_folder(home / "odd", **changes)
    assert memory_fit(listed()[str(folder)]).verdict == "unknown"
    assert sdpo("models", "list")[0] == 0


# ---- the command


def test_list_tells_a_person_what_a_program_is_told(home: Path) -> None:
    on_hub(home, "owner/model")
    rows = {row["name"]: row for row in json.loads(sdpo("models", "list", "--json")[1])["models"]}
    lines = sdpo("models", "list")[1].splitlines()
    assert {line.split()[0].rstrip(":") for line in lines if line} == {"name", *rows, "cache", "trains"}
    row, line = rows["owner/model"], next(line for line in lines if line.startswith("owner/model"))
    assert (row["here"], row["trains"] in line) == (True, True)
    assert "apache-2.0" in line
    assert "not downloaded: sdpo models fetch qwen" in next(line for line in lines if line.startswith("qwen "))


@pytest.mark.parametrize(("name", "backend"), [("smollm2", "auto"), ("qwen", "auto"), ("qwen", "torch")])
def test_list_and_plan_state_one_figure(name: str, backend: str) -> None:
    from sdpo_cli.commands.plan import planned

    from sdpo_mlx.config.resolve import resolve

    cfg = resolve(None, ["train.memory_gb=20"], {"model.name": name, "model.backend": backend}).config
    plan = planned(cfg, "1GB", 512)
    listed_peak = memory_fit(inventory.item(name, backend), round(20 * GB / 0.75), backend).peak
    assert listed_peak == plan["peak"]


def test_plan_that_does_not_fit_names_a_smaller_alias_and_no_time() -> None:
    from sdpo_cli.commands.plan import as_lines, planned

    from sdpo_mlx.config.resolve import resolve

    cfg = resolve(None, (), {"model.name": "qwen:8b"}).config
    found = planned(cfg, "8GB", 512)
    assert (found["fits"], found["seconds"], found["smaller"]["name"]) == (False, None, "qwen:tiny")
    assert found["smaller"]["peak"] <= found["limit"]
    assert not any(line.startswith("time") for line in as_lines(found))


def test_torch_is_planned_with_the_weights_that_it_loads() -> None:
    from sdpo_cli.commands.plan import planned

    from sdpo_mlx.config.resolve import resolve

    cfg = resolve(None, ["model.dtype=bfloat16"], {"model.name": "qwen:tiny", "model.backend": "torch"}).config
    found = planned(cfg, "64GB", 512)
    assert 1.0 * GB < found["always"]["weights"] < 1.5 * GB  # 0.6 billion parameters in 16 bits, not in 4


def test_download_is_announced_and_refused_without_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends import preflight
    from sdpo_mlx.backends.fit import download_notice
    from sdpo_mlx.config.resolve import resolve
    from sdpo_mlx.core import storage
    from sdpo_mlx.core.errors import StorageError
    from sdpo_mlx.models import resolve as models

    cfg = resolve(None, (), {"model.name": "qwen:tiny"}).config
    for said in ("about 0.3 GB", "licence apache-2.0", "GB memory"):
        assert said in download_notice(cfg)
    assert download_notice(resolve(None).config) == ""
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000})())
    with pytest.raises(StorageError, match="are free"):
        preflight._check_disk("qwen:tiny", "mlx", models.configuration("qwen:tiny"))


def test_hub_that_does_not_answer_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: Any, timeout: float) -> None:
        raise type("ReadTimeout", (Exception,), {})("no answer")

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=silent))
    with pytest.raises(hub.HubUnreachableError, match="cannot be reached"):
        hub.configuration_folder("owner/name", "owner/name")
