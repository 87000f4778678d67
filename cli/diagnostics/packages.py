"""What is installed of the packages that sdpo-mlx names: those it needs, and each of its extras."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, metadata, version

from packaging.requirements import Requirement
from sdpo_cli.diagnostics.finding import Finding

OURS = "sdpo-mlx"
SHOWN = ("mlx", "mlx-lm", "numpy")
MOST_NAMED = 4  # packages of one extra that are told with their versions
# For those who change sdpo-mlx; a user's machine is not worse without.
PURPOSES: Mapping[str, str] = {
    "fast-cpu": "fast products on Linux without a GPU",
    "results": "drawing measured curves",
    "docs": "building the documents",
    "math": "more forms of right answers in the task math",
    "datasets": "rows in parquet, and hub:NAME",
    "humaneval": "the 164 problems of HumanEval",
    "rubric": "checks by JSON Schema",
    "torch": "--backend torch",
    "bitsandbytes": "4- and 8-bit bases on torch",
    "tensorboard": "curves in TensorBoard",
    "wandb": "curves in Weights & Biases",
    "trackio": "curves in trackio",
    "mlflow": "curves in MLflow",
    "dev": "changing sdpo-mlx",
}


def needed() -> Iterator[Finding]:
    """The packages without which nothing runs, in the versions that are asked for."""
    wanted = [each for each in _requirements() if _applies(each, "")]
    faults = [fault for each in wanted if (fault := _fault(each))]
    told = {name: found for name in SHOWN if (found := installed(name))}
    versions = ", ".join(f"{name} {found}" for name, found in told.items())
    found = "; ".join([versions, *faults] if versions else faults)
    yield Finding("packages", not faults, found, "pip install --upgrade sdpo-mlx", True, facts=told)


def extras() -> Iterator[Finding]:
    """Every extra: what of it is here, or the line that installs it. A missing one is no fault, a wrong version is."""
    requirements = _requirements()
    for name in metadata(OURS).get_all("Provides-Extra") or []:
        yield extra(str(name), [each for each in requirements if _only_for(each, str(name))])


def extra(name: str, requirements: list[Requirement]) -> Finding:
    """One extra by its requirements."""
    line = f"pip install 'sdpo-mlx[{name}]'"
    purpose = f" ({PURPOSES[name]})" if name in PURPOSES else ""
    here = {each.name: installed(each.name) for each in requirements if _applies(each, name)}
    versions = {package: found for package, found in here.items() if found}
    facts = {"installed": versions, "missing": sorted(set(here) - set(versions)), "install": line}
    title = f"extra {name}"
    if not here:
        return Finding(title, True, f"nothing to install on this machine{purpose}", facts=facts)
    if wrong := [fault for each in requirements if each.name in versions and (fault := _fault(each))]:
        return Finding(title, False, "; ".join(wrong), f"{line} --upgrade", facts=facts)
    if len(versions) < len(here):
        count = f"{len(versions)} of {len(here)} packages here" if versions else "not installed"
        return Finding(title, True, f"{count}{purpose}: {line}", facts=facts)
    told = [f"{package} {found}" for package, found in versions.items()]
    return Finding(title, True, ", ".join(told) if len(told) <= MOST_NAMED else f"{len(told)} packages", facts=facts)


def installed(name: str) -> str:
    """The version of a package, blank where it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _requirements() -> list[Requirement]:
    return [Requirement(str(text)) for text in metadata(OURS).get_all("Requires-Dist") or []]


def _applies(requirement: Requirement, extra_name: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra_name})


def _only_for(requirement: Requirement, extra_name: str) -> bool:
    """Whether it belongs to the extra, on this machine or another."""
    return requirement.marker is not None and f'extra == "{extra_name}"' in str(requirement.marker)


def _fault(requirement: Requirement) -> str:
    found = installed(requirement.name)
    if not found:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(found, prereleases=True):
        return ""
    return f"{requirement.name} {found} is here, wanted is {requirement.specifier}"
