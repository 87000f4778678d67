"""Which files a Python on macOS needs, by the names that the kernel compares.

Framework builds (python.org, Homebrew, `actions/setup-python`) put a small launcher in `bin`, which looks up every
folder above itself and so cannot start in a sandbox. The program that it starts, in `Python.app`, can.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdpo_mlx.sandbox.interpreter import find_interpreter
from sdpo_mlx.sandbox.launch import ENVIRONMENT, INTERPRETER_FLAGS, launch_spawned

SYSTEM_LIBRARIES = ("/usr/lib", "/System")
_F_GETPATH = 50  # fcntl.h of macOS; `fcntl` names it in Python 3.9 and later, on macOS alone
_IMAGE_SECONDS = 60.0
# Outside any sandbox, and only the standard library: what dyld loads for each extension module.
_IMAGES = """
import ctypes, importlib, json, os, sys
folder = sys.argv[1]
for name in sorted({each.partition(".")[0] for each in os.listdir(folder)}) if os.path.isdir(folder) else ():
    if "test" not in name:
        try:
            importlib.import_module(name)
        except BaseException:
            pass
library = ctypes.CDLL(None)
library._dyld_get_image_name.restype = ctypes.c_char_p
names = [library._dyld_get_image_name(number) for number in range(library._dyld_image_count())]
print(json.dumps([os.fsdecode(name) for name in names if name]))
"""


@dataclass(frozen=True)
class Python:
    """Real paths of an interpreter: what may be executed, which files and folders may be read, and what may not."""

    executables: tuple[str, ...]
    folders: tuple[str, ...]
    files: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


def installed_python() -> Python:
    """Return the interpreter that runs this process, started without a launcher."""
    found = find_interpreter()
    base = Path(sys.base_prefix)
    framework = str(sysconfig.get_config_var("PYTHONFRAMEWORK") or "")
    program = base / "Resources/Python.app/Contents/MacOS" / framework
    folders, files, started = [Path(str(sysconfig.get_path("stdlib")))], [], found.executable
    if framework and program.is_file():
        started = program
        folders.append(base / "Resources/Python.app/Contents")
        files.append(base / framework)
    files += [*sorted((base / "lib").glob("libpython*.dylib")), *([found.libpython] if found.libpython else [])]
    executable = kernel_path(started)
    images = loaded_images(executable, Path(executable).stat().st_mtime_ns, str(folders[0] / "lib-dynload"))
    named = [str(each) for each in (started, *folders, *files) if each.exists()]
    libraries = library_grants([*map(str, files), *images])
    return Python(
        executables=(executable,),
        folders=_unique(kernel_path(each) for each in folders if each.is_dir()),
        files=tuple(each for each in libraries if each != executable),
        links=_unique(link for path in (*named, *images) for link in links_on_the_way(path)),
        hidden=(f"{kernel_path(folders[0])}/site-packages",),
    )


@lru_cache(maxsize=4)
def loaded_images(executable: str, modified: int, modules: str) -> tuple[str, ...]:  # noqa: ARG001 part of the cache key
    """Return the files that dyld loads for all extension modules of `modules`; none where there is no dyld.

    Asked once for each interpreter: by its path and `modified`, its time of modification.
    """
    argv = [executable, *INTERPRETER_FLAGS, "-c", _IMAGES, modules]
    try:
        names = json.loads(launch_spawned(argv, b"", _IMAGE_SECONDS, env=ENVIRONMENT).stdout)
    except (OSError, ValueError):
        return ()
    return tuple(name for name in names if isinstance(name, str))


def library_grants(images: Iterable[str]) -> tuple[str, ...]:
    """Return the real files behind loaded images, without the system's own, which the profile names as folders.

    Never a folder, and nothing of `site-packages`.
    """
    files = [kernel_path(Path(image)) for image in images if Path(image).is_file()]
    return _unique(
        file for file in files if not _within(file, SYSTEM_LIBRARIES) and "site-packages" not in Path(file).parts
    )


def links_on_the_way(path: str) -> list[str]:
    """Return every symbolic link that the kernel reads to reach a path, by the link's own real name."""
    found: list[str] = []
    parts, here = list(Path(path).parts[1:]), Path("/")
    while parts and len(found) < 40:  # as many as the kernel follows
        part = parts.pop(0)
        here = here.parent if part == ".." else here / part
        if here.is_symlink():
            target = here.readlink()
            found.append(str(here))
            parts = [*target.parts[target.is_absolute() :], *parts]
            here = Path("/") if target.is_absolute() else here.parent
    return found


def kernel_path(path: Path) -> str:
    """Return a path as the kernel spells it: `resolve` keeps the caller's case, which macOS may store differently."""
    real = str(path.resolve())
    if sys.platform != "darwin":
        return real
    try:
        descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return real
    try:
        return os.fsdecode(fcntl.fcntl(descriptor, _F_GETPATH, bytes(1024)).rstrip(b"\0"))
    except OSError:
        return real
    finally:
        os.close(descriptor)


def _within(path: str, folders: tuple[str, ...]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)


def _unique(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(paths))
