"""One status of several members: totals, the worst of them, and reasons that belong to what they explain."""

from __future__ import annotations

from dataclasses import fields, replace

from rig import started

from tet_core.snapshot import Delays, DelaysBySource, FeedsByLink, Filling, LiveFigures, Snapshot
from tet_extras.merged import HOW, merged

NONE = Delays(0, None, None, None)
STREAMS = LiveFigures(
    connections=1, streams=3, messages=100, messages_per_second=1.5, silent=0, refused=0, subscribed_again=0,
    bad_frames=1, last_message_age_seconds=0.5, reconnects={"age": 1}, queue=2,
    feeds=FeedsByLink(live=3, catching_up=0, blind=0), blind=[], catching_up=[],
    messages_by_outcome={"accepted": 100},
    close_to_redis_by_source=DelaysBySource(replace(NONE, closes=9, p99=0.1), replace(NONE, closes=1)),
    closes_by_stream_share=0.9,
)  # fmt: skip


def test_a_group_has_the_streams_and_audits_of_all_and_the_reason_of_its_pause(exchange, redis_url):
    """Nothing of it is left out; of several pauses the longest is shown, with its own reason."""
    with started(exchange, redis_url) as rig:
        rig.refresh()
        base = rig.service.status.snapshot()
    late, early = "2026-01-15T12:10:00Z", "2026-01-15T12:08:00Z"
    polled = replace(
        STREAMS, feeds=FeedsByLink(live=1, catching_up=0, blind=2), blind=["A/B 1m", "C/D 1m"],
        last_message_age_seconds=7.0, reconnects={"age": 1, "silence": 2},
    )  # fmt: skip
    found = {
        "a": replace(
            base, paused_until=late, pause_reason="banned", candles_corrected=2, candles_audited=100,
            update_interval_seconds=180, update_interval_reason="base", live=STREAMS,
        ),
        "b": replace(
            base, paused_until=early, pause_reason="too many requests", candles_corrected=3,
            candles_audited=50, update_interval_seconds=360, update_interval_reason="a off-peak", live=polled,
            filling=Filling(2, 5, 10),
        ),
        "c": replace(base, live=None, filling=Filling(1, 3, None)),
    }  # fmt: skip
    status = merged(found, {"a": {"group": "g", "egress": "e"}})
    assert (status.paused_until, status.pause_reason) == (late, "banned")
    assert (status.update_interval_seconds, status.update_interval_reason) == (360, "a off-peak")
    assert (status.candles_corrected, status.candles_audited) == (5, 150)
    assert status.filling == Filling(3, 8, 10)
    assert [(each.id, each.group) for each in status.members or ()] == [("a", "g"), ("b", ""), ("c", "")]
    live = status.live
    assert live.feeds == FeedsByLink(live=4, catching_up=0, blind=2)
    assert live.blind == ["A/B 1m", "C/D 1m"]
    assert (live.connections, live.streams, live.messages, live.queue) == (2, 6, 200, 4)
    assert live.last_message_age_seconds == 7.0
    assert live.reconnects == {"age": 2, "silence": 2}
    assert live.closes_by_stream_share == 0.9
    assert live.close_to_redis_by_source.stream == replace(NONE, closes=18, p99=0.1)
    assert merged({"c": found["c"]}, {}).live is None


def test_every_figure_of_a_snapshot_has_a_way_to_be_merged():
    """A new one is not forgotten."""
    kinds = (Snapshot, LiveFigures, Delays)
    assert {field.name for kind in kinds for field in fields(kind)} <= HOW.keys()
