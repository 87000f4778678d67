"""Reads the packed tests of LiveCodeBench without ever unpickling: base64, zlib, one pickled text, JSON.

A pickle is a program. Of its instructions only those that write down one text are known here; every other
one, such as those that name a class or call it, ends the reading.
"""

from __future__ import annotations

import base64
import binascii
import zlib

MOST_BYTES = 256_000_000  # unpacked; a bomb is stopped there
_SHORT, _NORMAL, _LONG = 0x8C, 0x58, 0x8D  # a text in UTF-8, with 1, 4 or 8 bytes of length before it
_LENGTH_BYTES = {_SHORT: 1, _NORMAL: 4, _LONG: 8}
_STEPS = {0x80: 1, 0x95: 8, 0x94: 0, ord("q"): 1, ord("r"): 4}  # protocol, frame, memo: bytes of their argument
_STOP = ord(".")


class PackedError(ValueError):
    """The text is not packed as it should be; the message says how."""


def unpacked_text(packed: str, most: int = MOST_BYTES) -> str:
    """The text inside base64(zlib(pickle(text))), or inside base64(zlib(text)). Raises PackedError."""
    try:
        squeezed = base64.b64decode(packed.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise PackedError("is neither JSON nor base64") from None
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(squeezed, most + 1)
    except zlib.error:
        raise PackedError("holds no zlib data") from None
    if len(data) > most:
        raise PackedError(f"unpacks to more than {most // 1_000_000} MB")
    if not unpacker.eof:
        raise PackedError("ends in the middle of its zlib data")
    return _decoded(data) if data[:1] in (b"[", b"{") else pickled_text(data)


def pickled_text(data: bytes) -> str:
    """The one text that a pickle writes down. Raises PackedError for a pickle that does anything else."""
    place, text = 0, None
    while place < len(data):
        code, place = data[place], place + 1
        if code in _LENGTH_BYTES and text is None:
            width = _LENGTH_BYTES[code]
            length = int.from_bytes(_taken(data, place, width), "little")
            text = _decoded(_taken(data, place + width, length))
            place += width + length
        elif code in _STEPS:
            _taken(data, place, _STEPS[code])
            place += _STEPS[code]
        elif code == _STOP and text is not None and place == len(data):
            return text
        else:
            raise PackedError("holds a pickle that is more than one text, and pickles are not run")
    raise PackedError("holds a pickle without an end")


def _taken(data: bytes, place: int, count: int) -> bytes:
    if count > len(data) - place:
        raise PackedError("holds a pickle that is cut off")
    return data[place : place + count]


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise PackedError("holds a text that is not UTF-8") from None
