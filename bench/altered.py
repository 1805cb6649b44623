"""The service, altered for a benchmark that measures what it costs otherwise, or later.

    python bench/altered.py CHANGE… -- ARGUMENTS

ARGUMENTS are the service's. A CHANGE is one of

    profile=FILE   what its threads that serve do is written there in the end, see bench/sampler.py
    whole          at each close the value is written whole, as before the window slid in it
    speed=N        time passes N times as fast; the exchange's is to do so, too
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tet_data_service as tet
from tet_core import drafts
from tet_extras import process

SERVING_THREADS = "http|AnyIO"


def profile(out: str) -> None:
    """Sample until the process ends."""
    from sampler import ThreadSampler

    sampler, end = ThreadSampler(SERVING_THREADS), process.end_process

    def end_process(code: int) -> None:
        Path(out).write_text("\n".join(sampler.lines()) + "\n")
        end(code)

    process.end_process = end_process  # type: ignore[assignment]
    sampler.start()


def whole() -> None:
    """Let no patch move a window."""
    make = drafts.make_patch

    def make_patch(old: Any, new: Any, *rest: Any) -> Any:
        is_close = new.series.closed_end_ms > old.series.closed_end_ms
        return None if is_close else make(old, new, *rest)

    drafts.make_patch = make_patch  # type: ignore[assignment]


def speed(times: str) -> None:
    """Have a clock that runs fast."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from rig import FastClock

    tet.Clock = lambda: FastClock(float(times))  # type: ignore[misc, assignment]


CHANGES: dict[str, Callable[..., None]] = {"profile": profile, "whole": whole, "speed": speed}


def main() -> None:
    """Make the changes, and run the service."""
    end = sys.argv.index("--")
    for change in sys.argv[1:end]:
        name, _, value = change.partition("=")
        CHANGES[name](*filter(None, [value]))
    sys.argv[1 : end + 1] = []
    tet.main()


if __name__ == "__main__":
    main()
