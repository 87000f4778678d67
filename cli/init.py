"""`sdpo init`: a starter folder with settings, rows and a task of one's own that works."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from sdpo_cli import render

# As named there, and as they lie in the package: what is a program of the user's is no module of ours.
FILES = {"my_task.py": "my_task.py.txt", "problems.jsonl": "problems.jsonl", "config.yaml": "config.yaml"}


def command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made where it is missing.")] = Path("my-task"),
) -> None:
    """Write a starter folder: your own task, its rows, and the settings of a run.

    Example: sdpo init my-task
    """
    from sdpo_mlx.errors import ConfigError, StorageError

    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise ConfigError(f"{folder / there[0]} is there already", where="FOLDER", fix="name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, kept in FILES.items():
            text = resources.files("sdpo_mlx").joinpath("assets", "starter", kept).read_bytes()
            (folder / name).write_bytes(text)
    except OSError as error:
        raise StorageError(
            f"cannot write {folder}: {error.strerror}", fix="choose a folder you may write to"
        ) from error
    enter = [] if folder == Path() else [f"  cd {folder}"]
    next_steps = [
        "  sdpo tasks check ./my_task.py --data problems.jsonl",
        "  sdpo train -c config.yaml",
        "  sdpo train -c config.yaml --model qwen",
    ]
    render.result([f"wrote {', '.join(FILES)} to {folder}", "next:", *enter, *next_steps])
