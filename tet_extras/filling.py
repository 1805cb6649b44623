"""The first fill: how far it is, and how long it will take. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tet_core.snapshot import Filling


def progress_of(of: int, waiting: int, asked_ms: Sequence[int], now_ms: int) -> Filling | None:
    """How far the fill is while ``waiting`` of the feeds were never fetched; None when all were.

    ``asked_ms`` is when each of those was asked for that are there: so fast it goes on. Rounded up to ten
    seconds, since it is a guess.
    """
    if not waiting:
        return None
    took_ms = now_ms - min(asked_ms, default=now_ms)
    if len(asked_ms) < 2 or took_ms <= 0:
        return Filling(of - waiting, of, None)
    left_seconds = waiting * took_ms / (len(asked_ms) - 1) / 1000
    return Filling(of - waiting, of, -(-int(left_seconds + 1) // 10) * 10)
