"""Functions that several benchmarks share."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def machine() -> str:
    """Return the system and thread count that figures were measured on."""
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, threads: {threads}"


def write_json(path: Path | None, content: Any, indent: int = 1) -> None:
    """Write figures to `--out`; do nothing if it was not given."""
    if path is not None:
        path.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    first, *rest = (f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (head, *rows))
    return "\n".join([first, "|" + "---|" * len(head), *rest])


def peak_resident() -> int:
    """Return the peak resident memory of this process in bytes."""
    # ru_maxrss is in KiB on Linux, in bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1_024)


def distill_sample(index: int, prompt: Any, context: Any, answer: Any, logps: Any) -> Any:
    """Return the sample of one rollout: `answer` ids behind the student's prompt and the teacher's context."""
    import numpy as np

    from sdpo_mlx.types import DistillSample

    return DistillSample(
        problem_id="a",
        index=index,
        student_ids=np.concatenate([prompt, answer]),
        student_span=(prompt.size, prompt.size + answer.size),
        teacher_ids=np.concatenate([context, answer]),
        teacher_span=(context.size, context.size + answer.size),
        rollout_logps_T=logps,
    )
