"""Seeds are derived, never stored: each is a hash of its purpose."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(*parts: int | str) -> int:
    """Return a 32-bit seed, a pure function of its parts, equal on every platform."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def rng(*parts: int | str) -> np.random.Generator:
    """Return a numpy generator seeded by `derive(*parts)`."""
    return np.random.default_rng(derive(*parts))
