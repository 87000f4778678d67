"""Append-only JSON Lines files: whole records, torn lines, several writers."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sdpo_mlx.core.errors import StorageError
from sdpo_mlx.core.jsonl import JsonlWriter, numbered_lines, read_records, seal, unseal


def test_damaged_lines_keep_their_number_and_a_torn_one_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\nnoise\n[]\n{"a": 2}\n{"a"')
    assert list(numbered_lines(path)) == [(1, {"a": 1}), (3, None), (4, None), (5, {"a": 2})]
    assert list(read_records(path)) == [{"a": 1}, {"a": 2}]
    assert list(read_records(tmp_path / "absent")) == []


def test_torn_line_is_cut_for_one_writer_and_ended_for_several(tmp_path: Path) -> None:
    for shared, content in ((False, b'{"a": 1}\n{"a": 3}\n'), (True, b'{"a": 1}\n{"a"\n{"a": 3}\n')):
        path = tmp_path / f"{shared}.jsonl"
        path.write_bytes(b'{"a": 1}\n{"a"')
        with JsonlWriter(path, shared=shared) as writer:
            writer.append([{"a": 3}])
        assert path.read_bytes() == content


@pytest.mark.parametrize("shared", [False, True])
def test_refused_write_loses_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    path, write = tmp_path / "rows.jsonl", os.write

    def half(descriptor: int, content: bytes) -> int:
        if len(content) <= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[: len(content) - 4])

    with JsonlWriter(path, shared=shared) as writer:
        writer.append([{"a": 1}])
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(StorageError, match="No space left"):
                writer.append([{"a": 2}])
    with JsonlWriter(path, shared=shared) as writer:
        writer.append([{"a": 3}])
    assert list(read_records(path)) == [{"a": 1}, {"a": 3}]


def test_sealed_record_is_returned_unless_changed() -> None:
    sealed = seal({"a": 1, "text": "\ud800"})
    assert unseal(sealed) == {"a": 1, "text": "\ud800"}
    assert unseal({**sealed, "a": 2}) is None
    assert unseal({"a": 1}) is None
