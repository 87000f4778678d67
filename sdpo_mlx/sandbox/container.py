"""Containment by a container engine, podman or docker, for systems that have no mechanism of their own.

Each run is a container without network, capabilities or a writable root, made from an image that must be here
already: nothing is ever pulled. Starting one takes a few tenths of a second, and ten where an engine's virtual
machine has gone to sleep; the program's clock starts after that.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache

from sdpo_mlx.sandbox import seccomp
from sdpo_mlx.sandbox.base import RunResult
from sdpo_mlx.sandbox.launch import (
    ENVIRONMENT,
    INTERPRETER_FLAGS,
    START_SECONDS,
    Limits,
    bootstrap,
    last_line,
    launch,
    launch_spawned,
    payload,
)
from sdpo_mlx.sandbox.probe import CHECKS, Probe, probe
from sdpo_mlx.sandbox.work_folder import alive

BOX = "/box"  # the work folder inside
_CLIENT_SECONDS = 30.0
_ENGINES = ("podman", "docker")  # podman first: it needs no daemon and no root
# What an engine's own client needs to find its daemon and its images; no proxy, no token.
_CLIENT_NAMES = ("PATH", "HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR")
_CLIENT_PREFIXES = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_TLS", "DOCKER_CERT", "CONTAINER")
_PODMAN_ONLY = ("--read-only-tmpfs=false", "--no-hosts")
_LABEL = "sdpo.host"  # with the host's name: an engine may serve several, whose process numbers say nothing here
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}  # as engines name them
_CHECKS = tuple(name for name in CHECKS if name != "system_invisible")  # an image has a system of its own
_CLEAN_CODES = range(125)  # 125 to 127 are the engine's own failures, above are signals


@dataclass(frozen=True)
class Engine:
    """A container engine's client, the image its containers are made from, and whether it talks to another machine."""

    name: str
    path: str
    image: str
    remote: bool = False


class ImageMissingError(LookupError):
    """The image is not on this machine; the text is the engine's message."""


class ImageMachineError(LookupError):
    """The image is made for another processor, which the list of refused calls does not bind; the text names both."""


class EngineDownError(ConnectionError):
    """An engine is installed and none answers; the text is what they said."""


def find_engine(image: str) -> Engine:
    """Return podman, otherwise docker, whichever answers first.

    Raises FileNotFoundError if there is neither, EngineDownError if none that is installed answers: on a Mac both
    need a virtual machine that must be started.
    """
    said = []
    for name in _ENGINES:
        if (path := shutil.which(name)) is not None:
            code, message = _ask(engine := Engine(name, path, image), "version", "--format", "{{.Server.Version}}")
            if code == 0:
                remote = name == "podman" and _answer(engine, "info", "--format", "{{.Host.ServiceIsRemote}}") == [
                    "true"
                ]
                return replace(engine, remote=remote)
            said.append(message or f"{name}: code {code}")
    raise EngineDownError("; ".join(said)) if said else FileNotFoundError("podman or docker")


def _run_client(argv: list[str], stdin: bytes, seconds: float) -> RunResult:
    """Run the engine's client; on a Mac its monitor is in the virtual machine and leaves nothing here."""
    if sys.platform == "darwin":
        return launch_spawned(argv, stdin, seconds, env=client_environment())
    with tempfile.TemporaryDirectory() as folder:  # podman's monitor leaves a file where it was started
        return launch(argv, stdin, seconds, env=client_environment(), cwd=folder)


def _ask(engine: Engine, *words: str) -> tuple[int, str]:
    """Return exit status and last line of one short command of the engine."""
    try:
        done = _short(engine, *words)
    except OSError as error:
        return 125, f"{engine.name}: {type(error).__name__}"
    return (done.code, last_line(done.stderr)) if done.status == "exited" else (125, f"{engine.name}: {done.status}")


def _answer(engine: Engine, *words: str) -> list[str]:
    """Return the lines that one short command of the engine prints; none if it fails."""
    try:
        done = _short(engine, *words)
    except OSError:
        return []
    return done.stdout.decode("utf-8", "replace").split() if done.status == "exited" and done.code == 0 else []


def _short(engine: Engine, *words: str) -> RunResult:
    start = launch_spawned if sys.platform == "darwin" else launch
    return start([engine.path, *words], b"", _CLIENT_SECONDS, env=client_environment())


def remove_left_behind(engine: Engine) -> None:
    """Remove containers of trainers of this host that were killed: nothing else ends them under docker."""
    label = f"label={_LABEL}={socket.gethostname()}"
    for name in _answer(engine, "ps", "--all", "--filter", label, "--format", "{{.Names}}"):
        owner = name.removeprefix("sdpo-").partition("-")[0]
        if name.startswith("sdpo-") and owner.isdigit() and not alive(int(owner)):
            _ask(engine, "rm", "--force", name)


def _check_machine(engine: Engine) -> None:
    """Raises ImageMachineError if the image is for another processor; an engine that does not say is believed."""
    own = _MACHINES.get(os.uname().machine)
    for machine in _answer(engine, "image", "inspect", "--format", "{{.Architecture}}", engine.image):
        if own is not None and machine in _MACHINES.values() and machine != own:
            raise ImageMachineError(f"made for {machine}, this machine is {own}")


def container_arguments(engine: Engine, name: str, limits: Limits, seconds: float) -> list[str]:
    """Return the engine's command line up to the interpreter's own arguments."""
    memory, size = f"{limits.memory_mb}m", limits.file_mb << 20
    arguments = [engine.path, "run", "--rm", "--interactive", "--pull", "never", "--name", name]
    arguments += ["--network", "none", "--ipc", "none", "--hostname", "box", "--log-driver", "none"]
    arguments += ["--read-only", "--tmpfs", f"{BOX}:rw,noexec,nosuid,nodev,size={size},mode=1777", "--workdir", BOX]
    arguments += ["--user", "65534:65534", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    arguments += ["--pids-limit", str(limits.processes), "--memory", memory, "--memory-swap", memory]
    # `nproc` counts all containers of this user together; the binding number is the pids limit
    for resource, most in (("nofile", limits.files), ("nproc", 64 * limits.processes), ("core", 0)):
        arguments += ["--ulimit", f"{resource}={most}:{most}"]
    arguments += ["--stop-signal", "SIGKILL", "--label", f"{_LABEL}={socket.gethostname()}"]
    if engine.name == "podman":  # its own clock is the net for the day when this process is killed
        arguments += [
            *_PODMAN_ONLY,
            *(() if engine.remote else ("--http-proxy=false",)),
            "--timeout",
            str(int(seconds + START_SECONDS + _CLIENT_SECONDS)),
        ]
    for variable, value in ENVIRONMENT.items():
        arguments += ["--env", f"{variable}={value}"]
    return [*arguments, "--entrypoint", "python", engine.image]


class ContainerSandbox:
    """Runs every program in its own container."""

    kind = "container"

    def __init__(self, image: str, limits: Limits | None = None) -> None:
        """Raises FileNotFoundError, EngineDownError, ImageMissingError or ImageMachineError.

        They mean no engine, none that answers, no image, or one for another processor.
        """
        self.limits = limits or Limits()
        self.engine = find_engine(image)
        code, message = _ask(self.engine, "image", "inspect", "--format", "{{.Id}}", image)
        if code != 0:
            raise ImageMissingError(message)
        _check_machine(self.engine)
        remove_left_behind(self.engine)

    def run(
        self, program: str, stdin: bytes = b"", *, seconds: float | None = None, memory_mb: int | None = None
    ) -> RunResult:
        """Run one program isolated from this machine; thread-safe."""
        seconds = self.limits.seconds if seconds is None else seconds
        name = f"sdpo-{os.getpid()}-{secrets.token_hex(6)}"
        limits = self.limits.with_memory(memory_mb)
        argv = [*container_arguments(self.engine, name, limits, seconds), *INTERPRETER_FLAGS, "-c", bootstrap()]
        argv += [*limits.arguments(seconds, count_processes=False), filters()]
        done = False
        try:
            result = _run_client(argv, payload(program, stdin), seconds)
            done = result.started and result.status == "exited" and result.code in _CLEAN_CODES
            return result
        finally:
            if not done:  # what was killed is the client alone, the container has another parent
                _ask(self.engine, "kill", name)
                _ask(self.engine, "rm", "--force", name)

    def self_test(self) -> dict[str, bool]:
        """Return the results of checks that run inside the container."""
        return self.probe().checks

    def probe(self) -> Probe:
        """Run the general checks, except for /etc and /proc, which an image has itself."""
        memory = max(8_192, 2 * self.limits.memory_mb)
        return probe(self, memory_mb=memory, checks=_CHECKS, hidden=())


@cache
def filters() -> str:
    """Return the seccomp list for each machine that an image may be made for, besides the engine's own looser one."""
    return ",".join(f"{machine}:{base64.b64encode(seccomp.program(machine)).decode()}" for machine in seccomp.MACHINES)


def client_environment() -> dict[str, str]:
    """Return the client's environment variables; the container gets none of them."""
    return {
        name: value for name, value in os.environ.items() if name in _CLIENT_NAMES or name.startswith(_CLIENT_PREFIXES)
    }
