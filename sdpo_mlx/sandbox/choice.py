"""Choose and test a sandbox; without a usable one nothing runs."""

from __future__ import annotations

import sys
from pathlib import Path

from sdpo_mlx.config import SandboxConfig
from sdpo_mlx.core.errors import SandboxError
from sdpo_mlx.sandbox import seatbelt
from sdpo_mlx.sandbox.base import Sandbox
from sdpo_mlx.sandbox.bubblewrap import BubblewrapSandbox
from sdpo_mlx.sandbox.container import (
    ContainerSandbox,
    EngineDownError,
    ImageMachineError,
    ImageMissingError,
    find_engine,
)
from sdpo_mlx.sandbox.denials import system_facts
from sdpo_mlx.sandbox.launch import Limits
from sdpo_mlx.sandbox.probe import Probe, probe
from sdpo_mlx.sandbox.seatbelt import SeatbeltSandbox
from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox

_OPT_IN = "or give up containment with --sandbox unconfined"


def open_sandbox(cfg: SandboxConfig) -> Sandbox:
    """Return the configured sandbox, self-tested.

    Raises SandboxError (exit 4) with the cause when it cannot be used; `container` and `unconfined` come only
    by name.
    """
    limits = Limits(cfg.seconds, cfg.total_seconds, cfg.memory_mb)
    kind = _own_kind() if cfg.kind == "auto" else cfg.kind
    if kind == "unconfined":
        return _checked_unconfined(limits)
    if kind == "container":
        return _checked_container(cfg.image, limits)
    if kind != _own_kind():
        raise _refusal(f"{kind} does not exist on {sys.platform}", "write kind: auto")
    return _checked_seatbelt(limits) if kind == "seatbelt" else _checked_bubblewrap(limits)


def _own_kind() -> str:
    """Return the sandbox kind of this operating system."""
    if sys.platform == "darwin":
        return "seatbelt"
    if sys.platform.startswith("linux"):
        return "bubblewrap"
    raise _refusal(f"{sys.platform} has no sandbox", "set sandbox.kind to container, with podman or docker")


def _checked_unconfined(limits: Limits) -> Sandbox:
    sandbox = UnconfinedSandbox(limits)
    if not all(sandbox.self_test().values()):
        raise SandboxError("not even an unconfined program runs here", where="sandbox.kind", fix="try `sdpo doctor`")
    return sandbox


def _checked_seatbelt(limits: Limits) -> Sandbox:
    """Seatbelt is untested on a real Mac by this project, so every self-test must pass."""
    try:
        sandbox = SeatbeltSandbox(limits)
    except FileNotFoundError:
        cause = f"this macOS has no {seatbelt.SANDBOX_EXEC} that belongs to root"
        raise _refusal(cause, "set sandbox.kind to container, with podman or docker") from None
    except ValueError as error:
        fix = "install Python, or set TMPDIR to a folder, under a plain name"
        raise _refusal(f"Python or the temporary folder has {error}", fix) from None
    found = sandbox.probe()
    if "sandbox_apply" in found.message or found.message.endswith("code 71"):
        cause = f"this terminal runs in a sandbox itself ({found.message})"
        raise _refusal(cause, "start sdpo from Terminal.app, or let the agent run it outside of its sandbox")
    fix = "report the output of `sdpo doctor`, and set sandbox.kind to container"
    advice = _seatbelt_advice(found.message)
    if found.message and (facts := system_facts(sandbox.program)):
        found = Probe(found.checks, f"{found.message}; {facts}")
    return _proven(sandbox, found, f"{advice}{fix}")


def _seatbelt_advice(message: str) -> str:
    """Return what the way in which `sandbox-exec` failed says, blank if nothing."""
    if message.endswith("code 65"):
        return "this macOS does not take the profile; "
    if message.endswith("SIGABRT"):
        return "the system's loader could not read a file that Python needs; "
    if message.endswith("SIGKILL"):
        return "macOS refused to start the interpreter (rule or code signature); "
    return ""


def _checked_container(image: str, limits: Limits) -> Sandbox:
    try:
        sandbox = ContainerSandbox(image, limits)
    except FileNotFoundError:
        raise _refusal("neither podman nor docker is installed", "install podman") from None
    except EngineDownError as error:
        fix = "start it: `podman machine start` on a Mac, or open Docker Desktop"
        raise _refusal(f"no container engine answers ({error})", fix) from None
    except ImageMachineError as error:
        raise _refusal(f"the image {image} is {error}", "pull the image for this machine's processor") from None
    except ImageMissingError as error:
        name = find_engine(image).name
        fix = f"`{name} pull {image}`, or name another image in sandbox.image"
        raise _refusal(f"{name} has no image {image} here ({error})", fix) from None
    return _proven(sandbox, sandbox.probe(), "look at the engine's own messages with `sdpo doctor`")


def _proven(sandbox: Sandbox, found: Probe, fix: str) -> Sandbox:
    """Return the sandbox if every check holds. Raises SandboxError that names what failed."""
    if all(found.checks.values()):
        return sandbox
    if found.message:
        raise _refusal(f"{sandbox.kind} does not run Python ({found.message})", fix)
    failed = ", ".join(name for name, holds in found.checks.items() if not holds)
    raise _refusal(f"{sandbox.kind} runs but does not contain: {failed} failed", fix)


def _checked_bubblewrap(limits: Limits) -> Sandbox:
    try:
        sandbox = BubblewrapSandbox(limits)
    except FileNotFoundError:
        raise _refusal("bubblewrap (the program bwrap) is not installed", "run apt install bubblewrap") from None
    found = probe(sandbox, memory_mb=max(8_192, 2 * limits.memory_mb))
    if not all(found.checks.values()):
        raise _broken(found)
    return sandbox


def _broken(found: Probe) -> SandboxError:
    """Return the error for an installed bubblewrap that does not contain programs."""
    if not found.message:
        failed = ", ".join(name for name, holds in found.checks.items() if not holds)
        return _refusal(f"bubblewrap runs but does not contain: {failed} failed", "use another kernel or a VM")
    if not found.message.startswith("bwrap:"):
        return _refusal(f"bubblewrap starts but Python does not run in it ({found.message})", "use another Python")
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        fix = "allow bwrap an AppArmor profile, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        return _refusal(f"AppArmor denies user namespaces, as on Ubuntu 24.04 ({found.message})", fix)
    if "0" in (_setting("user/max_user_namespaces"), _setting("kernel/unprivileged_userns_clone")):
        fix = "run sysctl -w user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1"
        return _refusal(f"this kernel is set to deny user namespaces ({found.message})", fix)
    fix = "in a container allow namespaces (for Docker: --security-opt seccomp=unconfined --cap-add SYS_ADMIN)"
    return _refusal(f"bubblewrap cannot start, namespaces are probably denied ({found.message})", fix)


def _setting(name: str) -> str:
    """Return a kernel setting, blank if this kernel has none."""
    try:
        return Path("/proc/sys", name).read_text("ascii").strip()
    except OSError:
        return ""


def _refusal(cause: str, fix: str) -> SandboxError:
    return SandboxError(
        f"no sandbox for model-written programs: {cause}", where="sandbox.kind", fix=f"{fix}; {_OPT_IN}"
    )
