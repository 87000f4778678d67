"""Headers of GGUF files and licenses: what a listing reads of a model, and what it makes of damage."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_files import write_sample
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_mlx.backends.fit import memory_fit
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models import inventory, license
from sdpo_mlx.models.gguf.header import read_header
from sdpo_mlx.models.gguf.reader import import_gguf, read_gguf

CARD = "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: not this one\n"


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small GGUF that can be imported."""
    return write_sample(tmp_path_factory.mktemp("gguf") / "small-Q8_0.gguf", "llama", "Q8_0").path


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
@pytest.mark.parametrize("tied", [True, False])
def test_header_says_what_the_import_will(tmp_path: Path, arch: str, tied: bool) -> None:
    file = write_sample(tmp_path / "model-Q8_0.gguf", arch, "Q8_0", tied=tied).path
    header = read_header(file)
    whole = json.loads((import_gguf(file, tmp_path / "out") / "config.json").read_text())
    ours = {key: value for key, value in header.config().items() if key != "model_type"}
    assert ours == {key: whole[key] for key in ours}
    assert set(ours) >= {"hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"}
    assert all(read_gguf(file)[0][key] == value for key, value in header.metadata.items() if value is not None)


def test_header_finds_license_mixture_and_what_cannot_be_imported(tmp_path: Path) -> None:
    def written(name: str, arch: str, **numbers: int) -> Any:
        writer = gguf.GGUFWriter(tmp_path / name, arch)
        writer.add_license("mit")
        writer.add_tags(["one", "two"])
        writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
        for key, value in numbers.items():
            writer.add_uint32(key.replace("__", "."), value)
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.close):
            step()
        return read_header(tmp_path / name)

    late = written("x.gguf", "llama", general__file_type=15)
    assert (late.license, late.quantization, late.vocabulary, late.trouble()) == ("mit", "Q4_K_M", 3, "")
    assert written("model-IQ4_XS.gguf", "llama").trouble() == "weights stored as IQ4_XS cannot be imported"
    assert "'falcon' is not supported" in written("y.gguf", "falcon").trouble()
    assert written("llama-3.2-1b-instruct-q4_k_m.gguf", "llama").quantization == "Q4_K_M"


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400), st.booleans())
def test_damaged_header_is_one_line(sample: Path, noise: bytes, place: int, cut: bool) -> None:
    file = sample.with_name("damaged.gguf")
    content = sample.read_bytes()[:20_000]
    file.write_bytes(content[:place] + noise + (b"" if cut else content[place + len(noise) :]))
    with suppress(ConfigError):  # anything else would be a bug
        read_header(file).trouble()
    found = inventory.item(str(file))
    assert "\n" not in found.trouble
    assert memory_fit(found).verdict in ("yes", "no", "unknown")


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (CARD, "apache-2.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense:\n- mit\n---\n", ""),
        ("# no front\nlicense: mit\n", ""),
        ("---\nlicense: " + "x" * 500 + "\n---\n", "x" * 57 + "..."),
    ],
)
def test_license_is_the_cards(tmp_path: Path, card: str, said: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert license.of_folder(tmp_path) == said
