"""The snapshot: what another release, or anybody, has written as the status is read as far as it is known."""

from __future__ import annotations

import json
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from tet_core.snapshot import Delays, KnownGap, LiveFigures, Snapshot, as_json

NOTHING = Snapshot.of({})
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


def test_what_is_not_there_is_nothing():
    """A status of an older release has fewer fields; those that may be left out stay out."""
    assert (NOTHING.state, NOTHING.requests, NOTHING.live, NOTHING.gaps) == ("", 0, None, {})
    assert NOTHING.close_to_redis_seconds == Delays(0, None, None, None)
    assert as_json(NOTHING).keys() == {field.name for field in fields(Snapshot)} - {"store", "members"}


def test_what_only_a_newer_release_knows_is_left_out():
    """Anywhere in it."""
    gap = KnownGap("a", "b", 3, "c", "halted")
    newer = {"requests": 5, "moon": "full", "gaps": {"X": [as_json(gap) | {"moon": 1}]}, "live": {"queue": 2}}
    snapshot = Snapshot.of(newer)
    assert (snapshot.requests, snapshot.gaps) == (5, {"X": [gap]})
    assert isinstance(snapshot.live, LiveFigures)
    assert (snapshot.live.queue, snapshot.live.feeds.live, snapshot.live.reconnects) == (2, 0, {})


@given(st.dictionaries(st.sampled_from([field.name for field in fields(Snapshot)]), JUNK, max_size=8))
def test_whatever_is_found_there_is_a_snapshot(found):
    """What is of another type counts as nothing, and what is read comes back the same."""
    snapshot = Snapshot.of(found)
    assert as_json(Snapshot.of(json.loads(json.dumps(as_json(snapshot))))) == as_json(snapshot)
