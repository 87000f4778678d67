"""Which sandbox is used here; nothing usable means that nothing runs."""

from __future__ import annotations

import sys
from pathlib import Path

from sdpo_mlx.config import SandboxConfig
from sdpo_mlx.errors import SandboxError
from sdpo_mlx.sandbox.base import Sandbox
from sdpo_mlx.sandbox.bubblewrap import BubblewrapSandbox
from sdpo_mlx.sandbox.launch import Limits
from sdpo_mlx.sandbox.probe import Probe, probe
from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox

_OPT_IN = "or give up containment with --sandbox unconfined"


def open_sandbox(cfg: SandboxConfig) -> Sandbox:
    """The configured sandbox, self-tested.

    Raises SandboxError (exit 4) with the cause when it cannot be used; `unconfined` comes only by name.
    """
    limits = Limits(seconds=cfg.seconds, memory_mb=cfg.memory_mb)
    if cfg.kind == "unconfined":
        return _checked_unconfined(limits)
    if sys.platform == "darwin":
        raise _refusal("there is no sandbox for macOS in this version", "Seatbelt is planned; use a Linux machine")
    if not sys.platform.startswith("linux"):
        raise _refusal(f"there is no sandbox for {sys.platform}", "use a Linux machine")
    return _checked_bubblewrap(limits)


def _checked_unconfined(limits: Limits) -> Sandbox:
    sandbox = UnconfinedSandbox(limits)
    if not all(sandbox.self_test().values()):
        raise SandboxError("not even an unconfined program runs here", where="sandbox.kind", fix="try `sdpo doctor`")
    return sandbox


def _checked_bubblewrap(limits: Limits) -> Sandbox:
    try:
        sandbox = BubblewrapSandbox(limits)
    except FileNotFoundError:
        raise _refusal("bubblewrap (the program bwrap) is not installed", "apt install bubblewrap") from None
    found = probe(sandbox, memory_mb=max(8_192, 2 * limits.memory_mb))
    if not all(found.checks.values()):
        raise _broken(found)
    return sandbox


def _broken(found: Probe) -> SandboxError:
    """The refusal for a bubblewrap that is there but does not contain."""
    if not found.said:
        failed = ", ".join(name for name, holds in found.checks.items() if not holds)
        return _refusal(f"bubblewrap runs but does not contain: {failed} failed", "use another kernel or a VM")
    if not found.said.startswith("bwrap:"):
        return _refusal(f"bubblewrap starts but Python does not run in it ({found.said})", "use another Python")
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        fix = "allow bwrap an AppArmor profile, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        return _refusal(f"AppArmor denies user namespaces, as on Ubuntu 24.04 ({found.said})", fix)
    if "0" in (_setting("user/max_user_namespaces"), _setting("kernel/unprivileged_userns_clone")):
        fix = "sysctl -w user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1"
        return _refusal(f"this kernel is set to deny user namespaces ({found.said})", fix)
    fix = "in a container allow namespaces (for Docker: --security-opt seccomp=unconfined --cap-add SYS_ADMIN)"
    return _refusal(f"bubblewrap cannot start, namespaces are probably denied ({found.said})", fix)


def _setting(name: str) -> str:
    """A kernel setting, blank where this kernel has none."""
    try:
        return Path("/proc/sys", name).read_text("ascii").strip()
    except OSError:
        return ""


def _refusal(cause: str, fix: str) -> SandboxError:
    return SandboxError(
        f"no sandbox for model-written programs: {cause}", where="sandbox.kind", fix=f"{fix}; {_OPT_IN}"
    )
