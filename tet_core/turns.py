"""Whose turn it is: refreshes and backfills that wait for a worker."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

REFRESHES_BEFORE_A_BACKFILL = 3  # while both wait: a backfill goes on, also where refreshes never cease


class Turns(Generic[T]):
    """Who of those that wait comes next: refreshes in their order, and backfills when none waits.

    A refresh is a request or two, a backfill many, so that a backfill gives way after each page. It has one
    turn in four all the same, and comes before the backfills that have not begun.
    """

    def __init__(self) -> None:
        self._refreshes: list[tuple[tuple[int, int], int, T]] = []  # a heap: place, number, who
        self._backfills: deque[T] = deque()
        self._numbers = count()
        self._in_a_row = 0  # refreshes, since a backfill had its turn

    def __len__(self) -> int:
        return len(self._refreshes) + len(self._backfills)

    def add(self, who: T, place: tuple[int, int] | None) -> None:
        """Let it wait: a refresh by its place, the least first; without one, a backfill."""
        if place is None:
            self._backfills.append(who)
        else:
            heappush(self._refreshes, (place, next(self._numbers), who))

    def give_way(self, who: T) -> None:
        """Let a backfill wait that has begun."""
        self._backfills.appendleft(who)

    @property
    def has_refreshes(self) -> bool:
        """Whether a backfill is to give way."""
        return bool(self._refreshes)

    def take(self) -> T | None:
        """Whoever is next; None when nobody waits."""
        is_backfills = self._backfills and self._in_a_row >= REFRESHES_BEFORE_A_BACKFILL
        if self._refreshes and not is_backfills:
            self._in_a_row += 1
            return heappop(self._refreshes)[2]
        self._in_a_row = 0
        return self._backfills.popleft() if self._backfills else None
