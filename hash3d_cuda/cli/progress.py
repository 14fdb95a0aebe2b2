"""The live progress bar."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Bar:
    """A bar on stderr with hit rate, x and time left; silent when quiet, sparse when stderr is not a
    terminal."""

    def __init__(self, label: str, quiet: bool = False, cache: bool = True):
        self.label, self.quiet, self.cache = label, quiet, cache
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: Any) -> None:
        """Shows one finished step (a :class:`hash3d_cuda.sds.loop.Progress`)."""
        if self.quiet:
            return
        if self._bar is None:
            from tqdm import tqdm

            interval = 0.2 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(
                total=progress.total,
                initial=progress.step - 1,
                desc=self.label,
                unit="step",
                mininterval=interval,
            )
        if self.cache:
            self._bar.set_postfix_str(f"hit rate {progress.hit_rate:.0%}, x {progress.x:.0%}", refresh=False)
        self._bar.update(progress.step - self._bar.n)
        if progress.step == progress.total:
            self.close()
