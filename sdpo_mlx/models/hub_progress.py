"""What the hub's client draws its progress with, made to tell a callable instead of drawing."""

from __future__ import annotations

from typing import Any

from sdpo_mlx.core.progress import ProgressCallback

MEGABYTE = 1 << 20


def telling(tell: ProgressCallback) -> type[Any]:
    """A class for `snapshot_download(tqdm_class=...)`: the bars that count bytes tell megabytes, none draws."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class ProgressBar(tqdm):
        """Shows nothing; several of them may count the same bytes, each in its own stage."""

        def update(self, n: float | None = 1) -> bool | None:
            moved: bool | None = super().update(n)
            # A bar that the hub's own settings switch off has neither unit nor count.
            if not self.disable and self.unit == "B" and self.total:
                tell(int(self.n) // MEGABYTE, int(self.total) // MEGABYTE)
            return moved

        def display(self, *_: Any, **__: Any) -> None:
            """Whoever is told draws."""

        def close(self) -> None:
            """Leaves no line behind."""
            self.disable = True

    return ProgressBar
