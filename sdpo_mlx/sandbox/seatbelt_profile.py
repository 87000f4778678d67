"""The text of the Seatbelt profile.

How rules are weighed (measured by others, not by us): a rule without a filter only sets what an operation does by
default; a rule with a filter always beats it, in either order; of several with a filter the later one wins. So
denials without a filter stand first, and nothing that they close is opened again. Apple's `system.sb` and `bsd.sb`
are never imported: they would open forks and services.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sdpo_mlx.sandbox.mac_python import Python

DYLD_SUPPORT = Path("/System/Library/Sandbox/Profiles/dyld-support.sb")
IMPORT = '(import "dyld-support.sb")'
SYSTEM = ("/usr/lib", "/System/Library", "/private/var/db/dyld")
# What dyld reads before `main`, where the system has no list of its own to import.
CRYPTEXES = (
    "/System/Cryptexes/App",
    "/System/Cryptexes/OS",
    "/System/Volumes/Preboot/Cryptexes/App/System",
    "/System/Volumes/Preboot/Cryptexes/Incoming/OS",
    "/System/Volumes/Preboot/Cryptexes/OS",
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
# `deny default` leaves some of these open. Not `system*`: dyld checks signatures through `system-fcntl`.
CLOSED = (
    "process-info*",
    "file-map-executable",
    "iokit*",
    "nvram*",
    "appleevent-send",
    "mach*",
    "ipc*",
    "system-privilege",
    "system-socket",
    "network*",
    "process-fork",
    "sysctl-write",
    "file-link",
    "file-mknod",
)
# The single operations: `file-write*` would include flags, owners, access lists, attributes and the setuid bit.
WRITES = "file-write-create file-write-unlink file-write-data file-write-mode file-write-times"
# The environment of every other process of the user lies under `kern.procargs2`.
SYSCTLS = (
    "kern.argmax",
    "kern.hostname",
    "kern.maxfilesperproc",
    "kern.ngroups",
    "kern.osproductversion",
    "kern.osrelease",
    "kern.ostype",
    "kern.osversion",
    "kern.version",
    "vm.loadavg",
)


def quoted(path: str) -> str:
    """Return a path as a profile's text literal; raises ValueError for one that could mean anything else."""
    if not path.startswith("/") or not path.isprintable() or ".." in PurePosixPath(path).parts or path == "/":
        raise ValueError(f"no path for a sandbox profile: {path!r}")
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def profile(python: Python, work: str, *, imports: bool = False, closed: Iterable[str] = CLOSED) -> str:
    """Return the Seatbelt profile for one run; `imports`: whether this system's `dyld-support.sb` can be imported.

    All paths must be real ones: Seatbelt compares what the kernel resolved. `closed` are the operations that this
    system knows of `CLOSED`. Raises ValueError for a path that cannot be quoted.
    """
    folders = (*SYSTEM, *(() if imports else CRYPTEXES), *python.folders)
    readable = [*_all("subpath", folders), *_all("literal", (*DEVICES, *python.executables, *python.files))]
    parents = () if imports else _parents(CRYPTEXES)
    rules = ["(version 1)", "(deny default)", *(f"(deny {each})" for each in closed)]
    if imports:
        rules.append(IMPORT)
    rules += [
        _rule("allow process-exec", _all("literal", python.executables)),
        _rule("allow file-read*", readable),
        _rule("allow file-map-executable", readable),
        _rule("allow file-read-data file-read-metadata", ['(literal "/")', *_all("literal", parents)]),
    ]
    if python.links:
        rules.append(_rule("allow file-read-metadata", _all("literal", python.links)))
    if python.hidden:
        rules.append(_rule("deny file-read* file-map-executable", _all("subpath", python.hidden)))
    return "\n".join([*rules, *_own(work), ""])


def for_folder(text: str, old: str, new: str) -> str:
    """Return a profile for another work folder. Raises ValueError for a path that cannot be quoted."""
    return text.replace(quoted(old), quoted(new))


def _own(work: str) -> list[str]:
    """Return the rules for what belongs to one run: its folder, its process, facts about the machine."""
    return [
        _rule("allow file-write-data", _all("literal", ("/dev/null",))),
        _rule("allow file-read*", _all("subpath", (work,))),
        _rule(f"allow {WRITES}", _all("subpath", (work,))),
        # else the folder itself could be replaced by a link
        _rule("deny file-write-create file-write-unlink file-write-mode", _all("literal", (work,))),
        _rule("allow sysctl-read", ['(sysctl-name-prefix "hw.")', *(f'(sysctl-name "{each}")' for each in SYSCTLS)]),
        '(deny sysctl-read (sysctl-name-prefix "kern.proc"))',
        "(allow signal process-info* (target self))",
        "(deny process-info* (target others))",
    ]


def _parents(paths: Iterable[str]) -> list[str]:
    """Return all folders above these paths, without the root."""
    return sorted({str(parent) for path in paths for parent in PurePosixPath(path).parents} - {"/"})


def _all(matcher: str, paths: Iterable[str]) -> list[str]:
    return [f"({matcher} {quoted(path)})" for path in paths]


def _rule(action: str, matchers: list[str]) -> str:
    return f"({action} {' '.join(matchers)})"
