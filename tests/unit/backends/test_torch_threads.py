"""torch's threads sleep while they wait: spinning ones starve each other on a busy machine."""

import importlib

import pytest

import sdpo_mlx.backends.torch as package


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_asleep_unless_the_user_chose(
    given: str | None, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    importlib.reload(package)
    assert package.os.environ["OMP_WAIT_POLICY"] == used
