"""The JSON Schema in the repository is that of the code, and the shipped presets keep to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from paths import ROOT

from sdpo_mlx.config import Config, json_schema
from sdpo_mlx.config.keys import LEAVES

CONFIGS = ROOT / "configs"
PRESETS = sorted(CONFIGS.rglob("*.yaml"))


def test_the_schema_in_the_repository_is_the_code_s() -> None:
    kept = json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8"))
    assert kept == json_schema(), "run: sdpo config schema > configs/schema.json"


def test_every_key_with_a_description_has_it_in_the_schema() -> None:
    text = json.dumps(json_schema())
    assert all(json.dumps(schema["description"])[1:-1] in text for schema in LEAVES.values() if "description" in schema)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_keep_to_the_schema_that_they_name(preset: Path) -> None:
    validator = pytest.importorskip("jsonschema", reason="the extra rubric is not installed")
    first = preset.read_text(encoding="utf-8").splitlines()[0]
    named = preset.parent / first.removeprefix("# yaml-language-server: $schema=")
    tree = yaml.safe_load(preset.read_text(encoding="utf-8"))
    validator.validate(tree, json.loads(named.read_text(encoding="utf-8")))
    with pytest.raises(validator.ValidationError):
        validator.validate({**tree, "trian": {}}, json.loads(named.read_text(encoding="utf-8")))
    assert Config.model_validate(tree, strict=False)
