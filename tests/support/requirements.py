"""Skip marks for optional packages, decided without importing them: collection must stay fast."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def needs(*packages: str, extra: str) -> pytest.MarkDecorator:
    """Skip unless all `packages` are installed; `extra` is the part of the installation that brings them."""
    missing = [name for name in packages if find_spec(name) is None]
    reason = f"{', '.join(missing)} not installed: pip install -e '.[{extra}]'"
    return pytest.mark.skipif(bool(missing), reason=reason)


HAS_TORCH = all(find_spec(name) is not None for name in ("torch", "peft"))
needs_torch = needs("torch", "peft", extra="torch")
