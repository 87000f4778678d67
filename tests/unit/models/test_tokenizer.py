"""Nothing on the MLX path imports torch, and the torch backend works in the same process afterwards."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from small_tokenizers import folder

from sdpo_mlx.models.tokenizer import auto_tokenizer, opening_ids

RAISES = """
import os, traceback
with open(os.environ["TORCH_IMPORTS"], "a") as file:
    traceback.print_stack(file=file)
raise ImportError("a test forbids torch")
"""
COMMANDS = """
import sys
from pathlib import Path
from sdpo_cli.main import main
out = sys.argv[1]
tiny = ["--model", "tiny", "--task", "tiny"]
short = ["--group-size", "2", "--max-tokens", "8", "--set", "rollout.problems_per_step=2"]
for words in (
    ["train", *tiny, *short, "--steps", "1", "--set", "eval.problems=2", "--plain", "--out", out],
    ["eval", out, "--set", "eval.problems=1", "--plain"],
    ["rollout", *tiny],
    ["export", out, "--to", "fused", "--out", f"{out}-fused"],
):
    sys.argv = ["sdpo", *words]
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    assert not code, (words, code)
from mlx_lm import load
load(str(Path(f"{out}-fused")))
"""
TORCH_AFTERWARDS = """
import sys
from pathlib import Path
from sdpo_mlx.models.chat_template import load_chat
chat = load_chat(sys.argv[1])
assert "torch" not in sys.modules
from transformers import AutoModelForCausalLM, modeling_rope_utils
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
import torch
assert type(torch.arange(2)) is torch.Tensor and modeling_rope_utils.torch.Tensor is torch.Tensor
ids = torch.tensor([chat.render([{"role": "user", "content": "Hello"}]).tolist()])
assert model(ids).logits.shape[1] == ids.shape[1]
"""


def child(program: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(
        command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, check=False
    )


def forbidden_torch(folder: Path) -> dict[str, str]:
    """An installed torch that writes down who imports it, and fails; whether a real one is installed or not."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(RAISES)
    metadata = folder / "torch-99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {"PYTHONPATH": path, "TORCH_IMPORTS": str(folder / "imports.txt"), "TMPDIR": str(folder)}


@pytest.mark.long
def test_mlx_commands_never_import_torch(tmp_path: Path) -> None:
    environment = forbidden_torch(tmp_path / "site")
    done = child(COMMANDS, str(tmp_path / "run"), **environment)
    imports = tmp_path / "site" / "imports.txt"
    assert not imports.exists(), imports.read_text()
    assert done.returncode == 0, done.stderr[-2_000:]


@pytest.mark.long
def test_forbidden_torch_is_noticed(tmp_path: Path) -> None:
    environment = forbidden_torch(tmp_path / "site")
    child("import torch", **environment)
    assert (tmp_path / "site" / "imports.txt").exists()


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.long
def test_torch_works_after_a_tokenizer_was_opened_without_it(tmp_path: Path) -> None:
    done = child(TORCH_AFTERWARDS, str(ROOT / "sdpo_mlx" / "assets" / "tiny"), TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2_000:]


@pytest.mark.parametrize(
    ("family", "flag", "opens"),
    [("smollm2", None, False), ("llama3", None, True), ("gemma3", None, False), ("gemma3", True, True)],
)
def test_text_begins_as_post_processor_or_setting_says(
    tmp_path: Path, family: str, flag: bool | None, opens: bool
) -> None:
    copy = shutil.copytree(folder(family), tmp_path / "model")
    if flag is not None:
        file = copy / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "add_bos_token": flag}))
    tokenizer = auto_tokenizer().from_pretrained(str(copy))
    assert opening_ids(tokenizer) == ((tokenizer.bos_token_id,) if opens else ())
