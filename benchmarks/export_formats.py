"""Measure how each export format changes the logits: `python benchmarks/export_formats.py RUN`.

RUN is a run folder on an open base (SmolLM2 by `sdpo models fetch smollm2`). Logits at 200 positions of random tokens
in float32 are compared with mlx-lm reading the run folder. Needs the extra `torch`; llama.cpp is included if
`llama-cpp-python` is installed.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import sdpo_mlx.backends.mlx  # loads the BLAS before mlx
from sdpo_mlx.models.resolve import resolve
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.export import formats
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.targets import run_config

IDS = np.random.default_rng(3).integers(4, 600, size=(4, 50))


def main(run: Path) -> None:
    """Export to each format, load it, and print the difference from the trained model."""
    assert sdpo_mlx.backends.mlx.BLAS is not None
    base = resolve(run_config(run, [], {}).model.name).path
    with TemporaryDirectory() as folder:
        home = Path(folder)
        run = _last(run, home / "run")
        trained = _by_mlx(base, run)
        print("| export format | loaded by | largest logit difference | equal top-1 | KL to the trained model (nats) |")
        print("|---|---|---|---|---|")
        print(_row("none (base model)", "mlx-lm", _by_mlx(base, None), trained))
        formats.export_peft(run, home / "peft")
        print(_row("peft", "PeftModel", _by_peft(base, home / "peft"), trained))
        formats.export_mlx(home / "peft", str(base), home / "back")
        print(_row("peft, then mlx", "mlx-lm", _by_mlx(base, home / "back"), trained))
        formats.export_fused(run, home / "fused")
        print(_row("fused", "mlx-lm", _by_mlx(home / "fused", None), trained))
        print(_row("fused", "transformers", _by_torch(home / "fused"), trained))
        for kind in ("F16", "BF16", "Q8_0"):
            formats.export_gguf(run, home / kind, kind)  # type: ignore[arg-type]
            file = next((home / kind).rglob("*.gguf"))
            print(_row(f"gguf {kind}", "transformers", _by_torch(file.parent, gguf_file=file.name), trained))
            if find_spec("llama_cpp"):
                print(_row(f"gguf {kind}", "llama.cpp", _by_llama_cpp(file), trained))


def _last(run: Path, out: Path) -> Path:
    """Copy the run with its last student as adapter, because the best one may be the base."""
    loaded = checkpoint.load(run / "checkpoints")
    assert loaded is not None
    shutil.copytree(run, out)
    folder = RunFolder(out)
    folder.save_adapter(loaded.state["student"], folder.load_adapter()[1])
    return out


def _row(name: str, reader: str, logits: Any, trained: Any) -> str:
    logp, logq = (_log_softmax(each.astype(np.float64)) for each in (trained, logits))
    nats = float((np.exp(logp) * (logp - logq)).sum(-1).mean())
    equal = float((logits.argmax(-1) == trained.argmax(-1)).mean())
    return f"| {name} | {reader} | {np.abs(logits - trained).max():.1e} | {100 * equal:.1f} % | {nats:.1e} |"


def _log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _by_mlx(base: Path, adapter: Path | None) -> Any:
    import mlx.core as mx
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    model, _ = load_model(base)
    if adapter is not None:
        model = load_adapters(model, str(adapter))
    model.set_dtype(mx.float32)
    model.eval()
    return np.array(model(mx.array(IDS)).astype(mx.float32))


def _by_torch(folder: Path, wrap: Callable[[Any], Any] = lambda model: model, **options: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = wrap(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)).eval()
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(IDS)).logits.float().numpy()


def _by_llama_cpp(file: Path) -> Any:
    from llama_cpp import Llama

    model = Llama(str(file), n_ctx=64, logits_all=True, verbose=False)
    rows = []
    for ids in IDS:
        model.reset()
        model.eval(ids.tolist())
        rows.append(np.array(model.scores[: ids.size]))
    return np.stack(rows)


def _by_peft(base: Path, adapter: Path) -> Any:
    from peft import PeftModel

    return _by_torch(base, lambda model: PeftModel.from_pretrained(model, adapter))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    main(parser.parse_args().run)
