"""Build the embedded model from scratch: `python examples/tiny_model/build.py` (or `make tiny-model`).

Train the tokenizer, pretrain, save in float16, and check the quality bounds (`gate.py`), with fixed seeds. It took 19
minutes on two cores that were busy with other jobs. If a bound is missed, the exit code is 1 and nothing is replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from sdpo_mlx.backends.mlx.blas import load_blas

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "sdpo_mlx" / "assets" / "tiny"
LIMIT_BYTES = 3 * 2**20


def main() -> int:
    """Build in a temporary folder, measure, and copy the files if all bounds hold."""
    options = _options()
    os.environ["OMP_NUM_THREADS"] = (
        "1"  # pretraining runs its own parallel streams, and sums must not depend on the thread count
    )
    load_blas()  # before the first import of mlx
    started = time.time()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _make(folder, options.steps)
        shares = import_module("gate").measure(folder)
        print("\n".join(f"{name:>24}: {share.rate:.4f} of {share.samples}" for name, share in shares.items()))
        problems = [*import_module("gate").misses(shares), *_too_large(folder)]
        if problems:
            print("\n".join(["not shipped:", *problems]))
            return 1
        (folder / "README.md").write_text(import_module("card").model_card(shares, time.time() - started))
        options.out.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir()):
            shutil.copyfile(file, options.out / file.name)
    print(f"written to {options.out} in {time.time() - started:.0f} s")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write")
    parser.add_argument("--steps", type=int, default=None, help="fewer optimizer steps, for a trial")
    return parser.parse_args()


def _make(folder: Path, steps: int | None) -> None:
    """Write tokenizer, weights and configuration."""
    pretrain, tokenizer = import_module("pretrain"), import_module("tokenizer")
    recipe = pretrain.Recipe() if steps is None else pretrain.Recipe(steps=steps)
    bpe = tokenizer.train_tokenizer(import_module("episodes").corpus())
    tokenizer.save_tokenizer(bpe, folder, pretrain.CONTEXT)
    model = pretrain.new_model(recipe.seed)
    pretrain.pretrain(model, bpe, recipe)
    pretrain.save_model(model, folder)
    settings = {
        **pretrain.CONFIG,
        "eos_token_id": bpe.token_to_id(tokenizer.END),
        "pad_token_id": bpe.token_to_id(tokenizer.PAD),
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _too_large(folder: Path) -> list[str]:
    size = sum(file.stat().st_size for file in folder.iterdir())
    return [f"{size} bytes are more than {LIMIT_BYTES}"] if size > LIMIT_BYTES else []


if __name__ == "__main__":
    sys.exit(main())
