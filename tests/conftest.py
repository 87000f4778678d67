"""Settings of every test session: the BLAS that users get, hypothesis profiles, a temporary folder of its own."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path

import hypothesis
import pytest
import temp_folders
from few_prompts import FEW
from mlx_kernels import Kernels

from sdpo_mlx.backends.mlx.blas import load_blas

gc.disable()  # saves a quarter of the time of collecting; see pytest_collection_finish
load_blas()  # before any test imports mlx

# The default suite always tries the same examples; `make test-slow` draws new ones (--hypothesis-profile slow).
hypothesis.settings.register_profile("default", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("slow", derandomize=False, deadline=None)
hypothesis.settings.load_profile("default")

KERNELS = pytest.StashKey[Kernels]()


def pytest_configure(config: pytest.Config) -> None:
    """Give the session a temporary folder of its own, for child processes too; pytest's `tmp_path` stays outside."""
    outer = tempfile.gettempdir()
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", outer)
    folder = tempfile.mkdtemp(prefix="sdpo-tests-")
    Path(folder).chmod(0o1777)  # sandboxed programs may run as another user
    os.environ["TMPDIR"] = tempfile.tempdir = folder

    if os.environ.get("SDPO_TEST_DEVICE", "cpu") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # `backend: auto` and torch take no card that happens to be there

    if cache := getattr(config, "cache", None):
        config.stash[KERNELS] = Kernels(cache.mkdir("mlx-kernels"))

    # The last thing that happens: multiprocessing removes its own folder in it before, at priority -100.
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-200)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the long tests on every worker, so that short ones fill up the end.

    `--dist worksteal` gives each worker an equal run of the tests, and an idle one the last of another's.
    """
    long = [item for item in items if item.get_closest_marker("long")]
    short = [item for item in items if not item.get_closest_marker("long")]
    dealt: list[pytest.Item] = []
    for workers in range(getattr(config, "workerinput", {}).get("workercount", 1), 0, -1):
        size, first = (len(long) + len(short)) // workers, len(long) // workers
        dealt += long[:first] + short[: size - first]
        long, short = long[first:], short[size - first :]
    items[:] = dealt


def pytest_collection_finish() -> None:
    """Collect garbage again, but never look through the thousands of tests and modules that live until the end."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def few_general_prompts() -> Iterator[None]:
    """Two short prompts and one sentence, as each finished run measures forgetting twice.

    test_forgetting.py has all of them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdpo_mlx.evaluation.forgetting._general", lambda: FEW)
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fetch the kernels that other processes have compiled."""
    _exchange(item.config)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the kernels that the last test compiled."""
    _exchange(session.config)


def _exchange(config: pytest.Config) -> None:
    if KERNELS in config.stash:
        config.stash[KERNELS].exchange()


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_in_the_working_folder() -> Iterator[None]:
    place = Path.cwd()
    before = set(place.iterdir())
    yield
    left = [path.name for path in set(place.iterdir()) - before if not path.name.startswith(".")]
    assert left == [], "a test that writes relative paths must change to a folder of its own first"


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_in_the_temporary_folder() -> Iterator[None]:
    yield
    # Removed at exit: our cache, the sockets of multiprocessing, what importing wandb makes (`tmp...wandb-media`), and
    # the kernels that MLX and torch compile (`mlx`, `torchinductor_...`).
    # A killed Chromium leaves its own folder (`org.chromium...`).
    names = {path.name for path in Path(tempfile.gettempdir()).iterdir()}
    ours = (temp_folders.PREFIX, "pymp-", "mlx", "torchinductor", "org.chromium")
    left = [name for name in names if not name.startswith(ours) and "wandb-" not in name]
    assert left == []
