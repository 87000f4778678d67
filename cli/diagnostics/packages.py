"""Checks of installed packages: the required ones, and each extra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, metadata, version

from packaging.requirements import Requirement
from sdpo_cli.diagnostics.finding import Finding

OURS = "sdpo-mlx"
SHOWN = ("mlx", "mlx-lm", "numpy")
MOST_NAMED = 4  # packages of one extra that are listed with their versions
PURPOSES: Mapping[str, str] = {
    "fast-cpu": "fast matrix products on Linux without a GPU",
    "docs": "building the docs",
    "datasets": "Parquet files and hub:NAME",
    "humaneval": "the 164 problems of HumanEval",
    "rubric": "checks by JSON Schema",
    "torch": "--backend torch",
    "bitsandbytes": "4- and 8-bit bases on torch",
    "serve": "JSON replies of sdpo serve",
    "tensorboard": "curves in TensorBoard",
    "wandb": "curves in Weights & Biases",
    "trackio": "curves in trackio",
    "mlflow": "curves in MLflow",
    "dev": "developing sdpo-mlx",
}


def needed() -> Iterator[Finding]:
    """Required packages and their versions."""
    required = [each for each in _requirements() if _applies(each, "")]
    faults = [fault for each in required if (fault := _fault(each))]
    shown = {name: found for name in SHOWN if (found := installed(name))}
    versions = ", ".join(f"{name} {found}" for name, found in shown.items())
    found = "; ".join([versions, *faults] if versions else faults)
    yield Finding("packages", not faults, found, "pip install --upgrade sdpo-mlx", True, facts=shown)


def extras() -> Iterator[Finding]:
    """Every extra: its packages, or the command that installs it. Only a wrong version of a whole extra is a fault."""
    requirements = _requirements()
    for name in metadata(OURS).get_all("Provides-Extra") or []:
        # on any machine: whether the other markers apply is `extra`'s question
        yield extra(str(name), [each for each in requirements if f'extra == "{name}"' in str(each.marker)])


def extra(name: str, requirements: list[Requirement]) -> Finding:
    """One extra."""
    line = f"pip install 'sdpo-mlx[{name}]'"
    purpose = f" ({PURPOSES[name]})" if name in PURPOSES else ""
    here = {each.name: installed(each.name) for each in requirements if _applies(each, name)}
    versions = {package: found for package, found in here.items() if found}
    facts = {"installed": versions, "missing": sorted(set(here) - set(versions)), "install": line}
    title = f"extra {name}"
    if not here:
        return Finding(title, True, f"not needed on this machine{purpose}", facts=facts)
    if len(versions) < len(here):  # not in use: packages of it may be here for another reason, in any version
        count = f"{len(versions)} of {len(here)} packages installed" if versions else "not installed"
        return Finding(title, True, f"{count}{purpose}: {line}", facts=facts)
    if wrong := [fault for each in requirements if each.name in versions and (fault := _fault(each))]:
        return Finding(title, False, "; ".join(wrong), f"{line} --upgrade", facts=facts)
    named = [f"{package} {found}" for package, found in versions.items()]
    return Finding(title, True, ", ".join(named) if len(named) <= MOST_NAMED else f"{len(named)} packages", facts=facts)


def installed(name: str) -> str:
    """Return the version of a package, blank if it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _requirements() -> list[Requirement]:
    return [Requirement(str(text)) for text in metadata(OURS).get_all("Requires-Dist") or []]


def _applies(requirement: Requirement, extra_name: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra_name})


def _fault(requirement: Requirement) -> str:
    found = installed(requirement.name)
    if not found:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(found, prereleases=True):
        return ""
    return f"{requirement.name} {found} is installed, required is {requirement.specifier}"
