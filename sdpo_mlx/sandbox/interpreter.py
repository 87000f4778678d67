"""Which files a bare Python needs, and where they stand inside a sandbox."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HOME = "/python"  # the interpreter's only name inside: host paths, and so user names, stay outside


@dataclass(frozen=True)
class Interpreter:
    """The base interpreter behind `sys.executable`, whatever virtual environment runs us."""

    executable: Path
    stdlib: Path
    stdlib_inside: str
    libpython: Path | None

    @property
    def inside(self) -> str:
        """The executable's path inside the sandbox."""
        return f"{HOME}/bin/python{sys.version_info.major}.{sys.version_info.minor}"

    def mounts(self) -> list[str]:
        """Return bwrap arguments: executable, standard library without installed packages, libpython."""
        arguments = ["--ro-bind", str(self.executable), self.inside]
        arguments += ["--ro-bind", str(self.stdlib), self.stdlib_inside]
        if (self.stdlib / "site-packages").is_dir():
            arguments += ["--tmpfs", f"{self.stdlib_inside}/site-packages"]
            arguments += ["--remount-ro", f"{self.stdlib_inside}/site-packages"]
        if self.libpython is not None:
            arguments += ["--ro-bind", str(self.libpython), f"{HOME}/lib/{self.libpython.name}"]
        return arguments


def find_interpreter() -> Interpreter:
    """Return the interpreter that runs this process, followed through virtual environments and links."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return Interpreter(
        executable=_base_executable().resolve(),
        stdlib=stdlib.resolve(),
        stdlib_inside=f"{HOME}/{sys.platlibdir}/{version}",
        libpython=_libpython(),
    )


def python_build(config: Mapping[str, object] | None = None, prefix: str | None = None) -> str:
    """Say who built this Python and how; it decides what a sandbox must let it read. The arguments are for tests."""
    config = sysconfig.get_config_vars() if config is None else config
    prefix = os.path.realpath(sys.base_prefix) if prefix is None else prefix
    makers = {"uv": "/uv/python/", "Homebrew": "/Cellar/", "pyenv": "/.pyenv/"}
    maker = next((name for name, sign in makers.items() if sign in f"{prefix}/"), "")
    if (Path(prefix) / "conda-meta").is_dir():
        maker = "conda"
    framework = "framework" if config.get("PYTHONFRAMEWORK") else ""
    kind = framework or ("shared library" if config.get("Py_ENABLE_SHARED") else "static")
    return f"{maker}, {kind}" if maker else kind


def _base_executable() -> Path:
    """Return the program behind a virtual environment, whose own may be a copy that lies far from its library."""
    base = str(getattr(sys, "_base_executable", "") or "")
    return Path(base if os.access(base, os.X_OK) else sys.executable)


def _libpython() -> Path | None:
    """Return the shared library of builds that have one; None for static builds.

    Looked for beside the interpreter as well: a Python that was moved still names the folder it was built for.
    """
    folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if not folder or not name or ".so" not in str(name):
        return None
    for candidate in (Path(sys.base_prefix, "lib"), Path(str(folder))):
        if os.access(path := candidate / str(name), os.R_OK):
            return path
    return None


def library_mounts() -> list[str]:
    """Return bwrap arguments for the system's shared libraries and loader: Debian's layout, Fedora's, or plain /lib."""
    folders = _library_folders()
    arguments: list[str] = []
    for root in ("/lib", "/lib64"):
        if Path(root).is_symlink():
            arguments += ["--symlink", str(Path(root).readlink()), root]
    for folder in folders:
        arguments += ["--ro-bind", folder, folder]
    return arguments + _loader_mounts(folders)


def _library_folders() -> list[str]:
    """Return real folders that hold shared libraries, as few as the layout allows."""
    triple = str(sysconfig.get_config_var("MULTIARCH") or "")
    narrow = [f"/usr/lib/{triple}", f"/lib/{triple}"] if triple and Path(f"/usr/lib/{triple}").is_dir() else []
    wide = ["/usr/lib64", "/lib64"] + ([] if narrow else ["/usr/lib", "/lib"])
    kept: list[str] = []
    for folder in map(Path, narrow + wide):
        if folder.is_dir() and not folder.is_symlink() and not folder.parent.is_symlink():
            kept.append(str(folder))
    return kept


def _loader_mounts(folders: list[str]) -> list[str]:
    """Return the dynamic loader where it lies beside the bound folders (aarch64 and musl)."""
    arguments: list[str] = []
    for root in ("/usr/lib", "/lib"):
        if root in folders or Path(root).is_symlink():
            continue
        for loader in sorted(Path(root).glob("ld-*.so*")):
            if loader.is_symlink():
                arguments += ["--symlink", str(loader.readlink()), str(loader)]
            else:
                arguments += ["--ro-bind", str(loader), str(loader)]
    return arguments
