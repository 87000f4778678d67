"""The checks of `sdpo doctor --self-test`: each is isolated, and an exception in one is a failed line."""

from __future__ import annotations

import getpass
import platform
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from sdpo_cli.diagnostics import packages

from sdpo_mlx import __version__
from sdpo_mlx.core.hardware import total_memory

# Of a relative difference. Float32 leaves room for the 10 bits of NVIDIA's TF32; on a CPU the figures are near 1e-6 and
# 1e-5. Bfloat16 keeps 8 bits: its gradient differs by 0.016 on a CPU where only the order of sums differs.
BOUNDS = {
    True: {"loss": 5e-3, "gradient": 2e-2, "log-prob": 2e-2},
    False: {"loss": 5e-2, "gradient": 0.1, "log-prob": 0.2},
}
GROWTH = 1 << 20  # bytes
NOT_BITWISE = 1e-3  # of a weight, where the device may sum in another order each time
NOTE = 500  # characters of an error; cut when no path or name is left in it
PATH = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][\w.@~+-]+){2,}[\\/]?|~[\\/]\S*")


@dataclass(frozen=True)
class Line:
    """One line of the table; without a bound it is a measurement, which cannot fail. `figure` None: no number."""

    name: str
    ok: bool
    figure: float | None = None
    bound: float | None = None
    unit: str = ""
    note: str = ""


Part = Callable[[], Iterable[Line]]


def run(parts: Sequence[tuple[str, Part]] | None = None) -> Iterator[Line]:
    """Yield the lines of all parts, in order; never raises but for Ctrl-C."""
    for name, part in default_parts() if parts is None else parts:
        try:
            yield from part()
        except Exception as error:  # what is broken here is what this command is for
            yield Line(name, False, note=scrub(f"{type(error).__name__}: {' '.join(str(error).split())}")[:NOTE])


def default_parts() -> list[tuple[str, Part]]:
    """Return all parts by name."""
    try:
        from sdpo_mlx.backends.mlx.self_test.models import MODELS
    except (ImportError, OSError) as error:
        note = scrub(f"mlx cannot be imported: {error}")[:NOTE]
        return [("mlx", lambda: [Line("mlx", False, note=note)])]
    parts: list[tuple[str, Part]] = [(each.name, partial(_model, each)) for each in MODELS]
    parts += [("steps resumed", _resumed_steps), ("run killed and resumed", _killed_run), ("memory", _memory)]
    return [*parts, ("sandbox", _sandbox), ("attacks", _attacks), ("speed", _speed)]


def facts() -> dict[str, Any]:
    """Return what a report needs about the machine: versions and chip, no names."""
    found: dict[str, Any] = {"sdpo_mlx": __version__, "python": platform.python_version()}
    found |= {"system": f"{platform.system()} {platform.release()}", "machine": platform.machine()}
    found |= {"memory_gb": round(total_memory() / 2**30)}
    found |= {name.replace("-", "_"): packages.installed(name) for name in ("mlx", "mlx-lm", "numpy")}
    with suppress(ImportError, OSError):
        from sdpo_mlx.backends.mlx.device import device_facts, device_line

        found |= {"device": device_line(), "chip": str(device_facts().get("device_name") or "")}
    return found


def scrub(text: str) -> str:
    """Remove paths and the names of the user and the host."""
    text = PATH.sub("PATH", text)
    for name in _names():
        text = re.sub(rf"\b{re.escape(name)}\b", "NAME", text)
    return text


def _names() -> Iterator[str]:
    with suppress(Exception):  # a user without an entry
        yield getpass.getuser()
    host = socket.gethostname()
    yield from (name for name in (host, host.partition(".")[0]) if name not in ("", "localhost"))


def _within(name: str, figure: float, bound: float, unit: str = "") -> Line:
    return Line(name, bool(figure <= bound), float(figure), bound, unit)


def _model(model: Any) -> Iterator[Line]:
    """Loss, gradient and generation of one random model."""
    from sdpo_mlx.backends.mlx.self_test import generation, gradients, models

    bounds = BOUNDS[model.exact]
    with models.opened(model) as policy:
        gaps = gradients.gaps(policy)
        yield _within(f"{model.name}: loss", gaps.loss, bounds["loss"])
        yield _within(f"{model.name}: gradient", gaps.gradient, bounds["gradient"])
        if policy.info.device != "cpu":
            yield _within(f"{model.name}: gradient, same code on the CPU", gaps.device, bounds["gradient"])
        name = f"{model.name}: batch against one row"
        if policy.model.batched:
            yield _within(name, generation.batch_gap(policy), bounds["log-prob"])
        else:
            yield Line(name, False, note="rows of a batch change each other")
        yield _within(f"{model.name}: sampling against learning", generation.score_gap(policy), bounds["log-prob"])
        yield _within(f"{model.name}: greedy twice", generation.repeat_gap(policy), 0, "tokens")


def _resumed_steps() -> Iterator[Line]:
    from sdpo_mlx.backends.mlx.self_test import models, steps

    gap, bitwise = steps.resume_gap(models.MODELS[0])
    yield _within("3 steps, saved and resumed after 2", gap, 0.0 if bitwise else NOT_BITWISE)


def _killed_run() -> Iterator[Line]:
    """A training run that is killed and resumed, against one that runs through."""
    from sdpo_cli.diagnostics import killed_run

    found = killed_run.compare()
    name = f"run of {killed_run.STEPS} steps, killed after {found.killed_at} and resumed"
    ok = found.gap <= found.bound and not found.differs
    yield Line(name, ok, found.gap, found.bound, "of a step", found.differs)


def _memory() -> Iterator[Line]:
    from sdpo_mlx.backends.mlx.self_test import models, steps

    with models.opened(models.MODELS[0]) as policy:
        yield _within("memory kept after 24 more steps", steps.memory_growth(policy), GROWTH, "bytes")


def _sandbox() -> Iterator[Line]:
    """What the sandbox must refuse, what it must allow, and how long a program takes to start in it."""
    from sdpo_mlx.config import SandboxConfig
    from sdpo_mlx.sandbox.abilities import OPTIONAL, abilities, start_milliseconds
    from sdpo_mlx.sandbox.choice import open_sandbox
    from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox

    sandbox = open_sandbox(SandboxConfig())
    for name, ok in sandbox.self_test().items():
        if ok is not None:
            yield Line(f"sandbox: {name.replace('_', ' ')}", ok)
    optional = {f"import {name}" for name in OPTIONAL}  # as this Python and its libraries have them
    found = abilities(sandbox)
    for name, ok in found.items():
        if not ok or not name.startswith("import "):
            note = "not promised on every system" if name in optional else ""
            yield Line(f"sandbox allows: {name}", ok or name in optional, note="" if ok else note)
    yield Line("sandbox allows: imports", True, sum(name.startswith("import ") and ok for name, ok in found.items()))
    yield Line("sandbox: start of a program", True, start_milliseconds(sandbox), None, "ms")
    yield Line("sandbox: start without it", True, start_milliseconds(UnconfinedSandbox()), None, "ms")


def _attacks() -> Iterator[Line]:
    """The attack list in the sandbox; the line of an attack that fails outside too says that it proves nothing."""
    from sdpo_mlx.config import SandboxConfig
    from sdpo_mlx.sandbox.attacks import attack_report
    from sdpo_mlx.sandbox.choice import open_sandbox
    from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox

    for each in attack_report(open_sandbox(SandboxConfig()), UnconfinedSandbox()):
        note = "" if each.works else "proves nothing here: it fails without a sandbox too"
        yield Line(f"attack: {each.name.replace('_', ' ')}", each.refused is True, note=note)


def _speed() -> Iterator[Line]:
    """Measure, and keep what `sdpo plan` computes times with."""
    from sdpo_mlx.backends.mlx.self_test import speed

    for name, figure in speed.measure():
        yield Line(f"speed: {name}", True, figure, None, "tokens/s")
