"""Answers that are kept, within bounds: what strangers ask for is not to fill the memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Entry(NamedTuple, Generic[V]):
    value: V
    size: int


class Kept(Generic[K, V]):
    """Values by key; beyond ``most`` of them, or ``most_bytes`` together, those leave that came first."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """What is kept for a key, if anything is."""
        entry = self._entries.get(key)
        return entry.value if entry else None

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value, which with its key takes so many bytes; one that is too large alone is not kept."""
        self._drop(key)
        if size > self._most_bytes:
            return
        self._entries[key] = _Entry(value, size)
        self.size += size
        while len(self) > self._most or self.size > self._most_bytes:
            self._drop(next(iter(self._entries)))

    def drop_if(self, is_over: Callable[[V], bool]) -> None:
        """Keep no more those of which that is true."""
        for key in [key for key, entry in self._entries.items() if is_over(entry.value)]:
            self._drop(key)

    def _drop(self, key: K) -> None:
        if entry := self._entries.pop(key, None):
            self.size -= entry.size
