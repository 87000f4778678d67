"""Checkpoints: kills, full disks, flipped bytes, changed settings (promises 1, 4 and "Training state")."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from paths import SUPPORT
from saved_states import META, save, state_of

from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.runs import checkpoint


def assert_same(found: dict[str, dict[str, np.ndarray]], wanted: dict[str, dict[str, np.ndarray]]) -> None:
    assert found.keys() == wanted.keys()
    for part, arrays in wanted.items():
        assert found[part].keys() == arrays.keys()
        for name, array in arrays.items():
            other = found[part][name]
            assert (other.dtype, other.shape) == (array.dtype, array.shape)
            assert other.tobytes() == array.tobytes()


def loaded(root: Path, **options: object) -> checkpoint.Loaded:
    found = checkpoint.load(root, **options)  # type: ignore[arg-type]
    assert found is not None
    return found


DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int32, np.uint16, np.uint64, np.bool_])
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text("abz._0", min_size=1, max_size=6), ARRAYS, max_size=4), st.booleans())
def test_state_returns_bit_for_bit_for_any_dtype_and_shape(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray], transposed: bool
) -> None:
    state = {"student": {name: array.T if transposed else array for name, array in arrays.items()}, "teacher": {}}
    root = tmp_path_factory.mktemp("state")
    checkpoint.save(root, 3, state, META)
    found = loaded(root)
    assert_same(found.state, state)
    assert found.meta == META
    assert found.step == 3


def test_equal_state_gives_equal_files(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 7), save(tmp_path / "b", 7)
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def test_nothing_is_loaded_where_nothing_was_saved(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "absent") is None
    assert checkpoint.load(tmp_path) is None


def test_pruning_keeps_the_last_two_and_the_best(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step, keep_steps={20})
    assert checkpoint.steps(tmp_path) == [20, 40, 50]
    assert {path.name for path in tmp_path.iterdir()} == {"step-000020", "step-000040", "step-000050"}


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, state_of(1), {"note": "old"})
    checkpoint.save(tmp_path, 5, state_of(2), {"note": "new"})
    assert_same(loaded(tmp_path).state, state_of(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_saving_an_earlier_step_drops_the_abandoned_future(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step)
    save(tmp_path, 15, keep_steps={20})
    assert checkpoint.steps(tmp_path) == [10, 15]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_falls_back_with_a_warning(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("flip")
    save(root, 10)
    newest = save(root, 20)
    victim = data.draw(st.sampled_from(sorted(newest.iterdir())))
    content = bytearray(victim.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    victim.write_bytes(content)
    found = loaded(root)
    assert found.step == 10
    assert_same(found.state, state_of(10))
    assert len(found.warnings) == 1
    assert "step-000020" in found.warnings[0]


@pytest.mark.parametrize("name", ["student.safetensors", "state.json", "manifest.json"])
def test_a_missing_or_cut_file_falls_back(tmp_path: Path, name: str) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    newest = save(tmp_path, 30)
    (newest / name).write_bytes((newest / name).read_bytes()[:-1])
    (tmp_path / "step-000020" / name).unlink()
    with pytest.raises(StorageError, match="step-000030"):
        checkpoint.load(tmp_path)
    save(tmp_path, 5)
    assert loaded(tmp_path).step == 5


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", 1)
    (tmp_path / "c" / "secret").write_text("x")
    record = json.loads((folder / "manifest.json").read_text())
    record["files"]["../secret"] = {"size": 1, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(record, indent=1))
    with pytest.raises(StorageError, match="outside"):
        checkpoint.load(tmp_path / "c")


def test_a_folder_renamed_to_another_step_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 10).rename(tmp_path / "step-000099")
    with pytest.raises(StorageError, match="step 10"):
        checkpoint.load(tmp_path)


def test_unrelated_files_do_no_harm(tmp_path: Path) -> None:
    (save(tmp_path, 10) / ".DS_Store").write_bytes(b"x")
    (tmp_path / "step-notes").mkdir()
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert loaded(tmp_path).step == 10


def test_a_changed_base_is_refused_and_named(tmp_path: Path) -> None:
    save(tmp_path, 10)
    with pytest.raises(ConfigError, match=r'base\.hash was "a1", is "b2"') as caught:
        checkpoint.load(tmp_path, expect={"base": {"id": "tiny", "hash": "b2"}})
    assert caught.value.exit_code == 2
    assert "--resume" in str(caught.value)


def test_another_model_is_named_before_its_hashes_and_these_are_short(tmp_path: Path) -> None:
    meta = {"base": "a" * 64, "config": {"train": {"seed": 0}, "model": {"name": "tiny"}}}
    checkpoint.save(tmp_path, 1, state_of(1), meta)
    expect = {"base": "b" * 64, "config": {"train": {"seed": 1}, "model": {"name": "qwen"}}}
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(tmp_path, expect=expect)
    assert f'settings: model.name was "tiny", is "qwen"; base was "{"a" * 12}", is' in str(caught.value)


def test_setting_that_an_older_version_did_not_have_is_no_change(tmp_path: Path) -> None:
    meta = {"base": "a", "config": {"train": {"seed": 0}}}
    checkpoint.save(tmp_path, 1, state_of(1), meta)
    newer = {"base": "a", "config": {"train": {"seed": 0, "fresh": True}, "teacher": {"fresh": None}}}
    assert loaded(tmp_path, expect=newer).step == 1
    with pytest.raises(ConfigError, match=r"tokenizer was null, is \"b\""):
        checkpoint.load(tmp_path, expect={**newer, "tokenizer": "b"})


def test_a_changed_setting_is_refused_unless_told(tmp_path: Path) -> None:
    save(tmp_path, 10)
    changed = {"config": {"train": {"learning_rate": 1e-3, "seed": 0}}}
    with pytest.raises(ConfigError, match=r"settings: train\.learning_rate was 0\.0001, is 0\.001"):
        checkpoint.load(tmp_path, expect=changed)
    assert loaded(tmp_path, expect=None).step == 10


def test_equal_and_unasked_settings_are_accepted(tmp_path: Path) -> None:
    save(tmp_path, 10)
    assert loaded(tmp_path, expect={"config": {"train": {"seed": 0}}, "base": META["base"]}).step == 10


def test_leftovers_of_a_kill_are_cleared_and_a_replaced_one_returns(tmp_path: Path) -> None:
    save(tmp_path, 10).rename(tmp_path / ".replaced-step-000010")
    for name in (".saving-step-000020", ".removing-step-000005"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "student.safetensors").write_bytes(b"half")
    assert loaded(tmp_path).step == 10
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]


@contextmanager
def failing_disk(nth: int, lasting: bool) -> Iterator[list[str]]:
    """ENOSPC at the nth call that changes the disk, and, when lasting, at all that need space after it."""
    calls: list[str] = []
    real = {name: getattr(os, name) for name in ("write", "open", "mkdir", "fsync", "rename")}

    def wrap(name: str):
        def call(*args, **kwargs):
            if name == "open" and not args[1] & os.O_CREAT:
                return real[name](*args, **kwargs)
            calls.append(name)
            if len(calls) == nth or (lasting and len(calls) > nth and name != "rename"):
                if name == "write":
                    real["write"](args[0], args[1][: len(args[1]) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real[name](*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in real:
            patch.setattr(os, name, wrap(name))
        yield calls


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step"])
def test_a_full_disk_at_any_write_leaves_the_last_good(tmp_path: Path, lasting: bool, again: bool) -> None:
    failures = 0
    for nth in range(1, 200):
        root = tmp_path / str(nth)
        save(root, 10)
        step, wanted = (10, state_of(11)) if again else (20, state_of(20))
        caught = None
        with failing_disk(nth, lasting) as calls:
            try:
                checkpoint.save(root, step, wanted, META)
            except StorageError as error:
                caught = error
        failures += caught is not None
        assert caught is None or (caught.exit_code, "No space left" in str(caught)) == (5, True)
        found = loaded(root)
        assert not found.warnings
        assert not [path for path in root.iterdir() if path.name.startswith(".")]
        # once renamed the new one counts, even where the fsync after it was what failed
        is_new = found.state["optimizer"]["step"] == wanted["optimizer"]["step"]
        assert is_new or caught is not None
        assert_same(found.state, wanted if is_new else state_of(10))
        if len(calls) < nth:
            break
    assert caught is None
    assert failures > 15


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from saved_states import save
from sdpo_mlx.runs import checkpoint
root = Path(sys.argv[1])
found = checkpoint.load(root)
step = found.step if found else 0
while True:
    # every third round saves the same step twice, as after a resume
    step += 1
    save(root, step, keep_steps={3})
    if step % 3 == 0:
        save(root, step, keep_steps={3})
    print(step, flush=True)
"""


def kill_and_check(root: Path, pause: float) -> int:
    """Start a writer, kill it after its next save and a pause; the step that loads then."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITER, str(root), str(SUPPORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        line = writer.stdout.readline()
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        reported = [int(each) for each in (line + writer.stdout.read()).split()]
    found = loaded(root)
    assert reported
    assert found.step >= reported[-1]
    assert not found.warnings
    assert_same(found.state, state_of(found.step))
    return found.step


def test_kills_at_random_moments_never_lose_a_finished_save(tmp_path: Path) -> None:
    pauses = random.Random(20)
    before = 0
    for _ in range(20):
        step = kill_and_check(tmp_path, pauses.uniform(0, 0.05))
        assert step > before
        before = step


@pytest.mark.slow
def test_two_hundred_kills_never_lose_a_finished_save(tmp_path: Path) -> None:
    pauses = random.Random(200)
    for _ in range(200):
        kill_and_check(tmp_path, pauses.uniform(0, 0.05))
