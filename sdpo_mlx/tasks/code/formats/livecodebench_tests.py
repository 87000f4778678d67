"""Reads the packed tests of LiveCodeBench without ever unpickling: base64, zlib, one pickled text, JSON.

A pickle is a program. Of its instructions only those that write down one text are known here; every other
one, such as those that name a class or call it, ends the reading.
"""

from __future__ import annotations

import base64
import binascii
import pickletools
import zlib

MOST_BYTES = 256_000_000  # unpacked; a bomb is stopped there
_TEXT = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_HARMLESS = ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP")  # version, framing, memo, end


class PackedError(ValueError):
    """The text is not packed as it should be; the message says how."""


def unpacked_text(packed: str, most: int = MOST_BYTES) -> str:
    """Return the text inside base64(zlib(pickle(text))), or inside base64(zlib(text)). Raises PackedError."""
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
    if data[:1] not in (b"[", b"{"):
        return pickled_text(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise PackedError("holds a text that is not UTF-8") from None


def pickled_text(data: bytes) -> str:
    """Return the one text that a pickle writes down. Raises PackedError for a pickle that does anything else."""
    text, end = None, 0
    try:
        for opcode, argument, place in pickletools.genops(data):  # names the instructions and runs none
            if opcode.name in _TEXT and text is None:
                text = str(argument)
                text.encode()
            elif opcode.name not in _HARMLESS:
                raise PackedError("holds a pickle that is more than one text, and pickles are not run")
            end = (place or 0) + 1
    except PackedError:
        raise
    except UnicodeEncodeError:  # half of a surrogate pair, which a pickle may hold and UTF-8 may not
        raise PackedError("holds a text that is not UTF-8") from None
    except (ValueError, OverflowError):
        raise PackedError("holds a pickle that is cut off or damaged") from None
    if text is None or end != len(data):
        raise PackedError("holds a pickle that is not one text")
    return text
