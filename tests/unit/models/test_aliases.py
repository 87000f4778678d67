"""Short names of models: what each stands for on each backend, and what is said if the hub does not have it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from paths import ROOT

from sdpo_mlx.backends.preflight import check_configuration
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.aliases import TABLE, repository
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.models.resolve import ALIASES, locate, meaning, resolve, shipped_configuration, shipped_dimensions

# fmt: off
NAMES = [
    "qwen", "qwen:tiny", "qwen:8b", "qwen:30b-a3b", "qwen3.5", "qwen3.5:0.8b", "qwen3.5:4b", "qwen3.5:9b",
    "qwen3.6", "qwen3.6:27b", "qwen3.6:35b-a3b", "gemma4", "gemma4:e2b", "gemma4:e4b", "gemma4:26b-a4b", "gemma3",
    "gemma3:1b", "gemma3:4b", "llama", "llama:1b", "llama:3b", "llama:8b", "gpt-oss", "lfm2.5", "ministral",
    "ministral:3b", "ministral:8b", "granite4", "smollm3",
]
# fmt: on


def test_aliases_are_those_that_people_type() -> None:
    assert set(TABLE) == set(NAMES)
    assert ALIASES["qwen"] == "mlx-community/Qwen3-4B-Instruct-2507-4bit"
    for name in TABLE:
        family = name.partition(":")[0]
        assert family in TABLE, f"{name} has no default"


@pytest.mark.parametrize("name", NAMES)
def test_alias_stands_for_a_repository_that_the_backend_reads(name: str) -> None:
    assert meaning(name) == meaning(name, "mlx") == ("hub", TABLE[name].mlx)
    kind, target = meaning(name, "torch")
    assert kind == "hub"
    assert target == TABLE[name].torch == repository(name, "torch")
    assert not re.search(r"mlx|\d-?bit|MXFP4", target, re.IGNORECASE)
    assert locate(name, "torch").license == TABLE[name].license


# Families whose dimensions are not shipped, and what the original stores; recorded from their documentation.
RECORDED = {
    "gemma4": {"model_type": "gemma4"},
    "lfm2.5": {"model_type": "lfm2"},
    "granite4": {"model_type": "granitemoehybrid"},
    "gpt-oss": {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}},
}


@pytest.mark.parametrize("backend", ["mlx", "torch"])
@pytest.mark.parametrize("name", NAMES)
def test_backend_accepts_the_configuration_of_its_repository(name: str, backend: str) -> None:
    recorded = RECORDED.get(name.partition(":")[0], {})
    config = shipped_dimensions(name, backend) or recorded
    config = {**config, **recorded} if backend == "torch" else {**config, "quantization": {"bits": 4}}
    check_configuration(config, name, backend)
    if backend == "torch":
        with pytest.raises(ConfigError, match="quantized by mlx"):
            check_configuration({**config, "quantization": {"bits": 4}}, name, backend)


@pytest.mark.parametrize("name", [name for name in NAMES if shipped_configuration(TABLE[name].mlx)])
def test_shipped_dimensions_have_the_parameters_of_the_model(name: str) -> None:
    """All but a vision tower, which is at most a tenth of the parameters, and of which no dimension is shipped."""
    alias = TABLE[name]
    dims = ModelDims.of(shipped_configuration(alias.mlx), name)
    towers = 1.0 if name.startswith(("qwen:", "llama", "smollm", "gpt", "gemma3:1b")) else 0.82
    assert towers * 0.97 < dims.parameters / 1e9 / alias.billions < 1.04
    assert dims.weight_bytes(2) < 1.1 * alias.bytes("mlx")


def test_alias_of_a_missing_repository_says_what_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    with pytest.raises(ConfigError) as caught:
        resolve("granite4")
    line = caught.value.line()
    assert f"the alias 'granite4' stands for {TABLE['granite4'].mlx}, which the hub does not have" in line
    assert "owner/name" in line
    assert "\n" not in line
    with pytest.raises(ConfigError, match="no such repository"):
        resolve("owner/absent")


def test_documented_table_is_the_table() -> None:
    page = (ROOT / "docs" / "aliases.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [row(name) for name in TABLE]


def row(name: str) -> str:
    alias = TABLE[name]
    mark = "" if alias.verified else " (not verified)"
    return f"| `{name}` | `{alias.mlx}`{mark} | `{alias.torch}` | {alias.gigabytes:.1f} GB | {alias.license} |"


def test_shipped_configurations_belong_to_known_names() -> None:
    shapes = json.loads(Path(ROOT / "sdpo_mlx/assets/shapes.json").read_text(encoding="utf-8"))
    assert set(shapes) <= {*ALIASES.values(), "smollm2"}
