"""Who is next."""

from __future__ import annotations

from tet_core.turns import Turns


def test_a_backfill_gives_way_and_is_not_forgotten():
    """Refreshes by their place, the stalest first; one turn in four is a backfill's, that which has begun."""
    turns: Turns[str] = Turns()
    for name in ("old", "older"):
        turns.add(name, None)
    for number in range(8):
        turns.add(f"r{number}", (1, 100 - number))
    turns.add("missed", (0, 500))
    taken = []
    while turns.has_refreshes:
        who = turns.take()
        taken.append(who)
        if who == "old":
            turns.give_way(who)
    assert taken == ["missed", "r7", "r6", "old", "r5", "r4", "r3", "old", "r2", "r1", "r0"]
    assert [turns.take(), turns.take(), turns.take()] == ["old", "older", None]
