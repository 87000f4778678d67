"""General prompts and a text for tests in which forgetting is not the point."""

from __future__ import annotations

from typing import Any

FEW: dict[str, Any] = {
    "prompts": ["Why is the sky blue?", "Who wrote Hamlet?"],
    "text": "The ferry leaves twice a day.",
}
