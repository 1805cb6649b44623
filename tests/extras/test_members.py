"""Several instances: what each may send, and what happens when one comes or goes."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections import Counter
from functools import partial

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import (
    PROGRAM,
    Rig,
    Running,
    eventually,
    in_background,
    run_cycles,
    run_program,
    settings,
    stored,
    unused_port,
)
from samples import MINUTE

import tet_data_service as tet
from tet_core import shares
from tet_extras.members import JOIN_SECONDS, RENEW_SECONDS
from tet_extras.simulated_binance import Market, SimulatedBinance

PAIRS = tuple(f"C{number:02}/USDT" for number in range(12))


def entry(group="g", egress="", left=False):
    """A member's entry."""
    return json.dumps(shares.Entry(group, egress, left)._asdict())


def test_group_and_shard_exclude_each_other():
    """Both divide the pairs."""
    with pytest.raises(tet.ConfigError, match=r"SHARD \(flag --shard\): allowed without GROUP only"):
        settings(GROUP="g", SHARD="1/2")


# The gate


class HandClock(tet.Clock):
    """A clock set by hand; a wait moves it on."""

    def __init__(self):
        self.at_seconds = 1000.0
        super().__init__()

    def monotonic(self):
        """What it was set to."""
        return self.at_seconds

    def sleep(self, seconds):
        """Pass the time."""
        self.at_seconds += seconds


def test_a_gate_admits_nothing_outside_of_its_lease():
    """Neither before nor after; a renewal lets the next one in."""
    clock = HandClock()
    gate = tet.RequestGate(clock, 100, 6000)
    gate.lease(1004, 1008)
    gate.enter(1)
    assert clock.at_seconds == 1004
    clock.at_seconds = 1030
    sleep = clock.sleep

    def renew_later(seconds):
        sleep(seconds)
        if clock.at_seconds > 1035:
            gate.lease(1040, 1050)

    clock.sleep = renew_later
    gate.enter(1)
    assert clock.at_seconds >= 1040


@given(st.lists(st.tuples(st.floats(0.5, 50), st.floats(0, 3)), min_size=1, max_size=8))
def test_a_bucket_whose_rate_changes_never_gives_more_than_each_rate_allows(steps):
    """Requests in each stretch of time are at most a burst and what the rate gives."""
    clock = HandClock()
    bucket = tet.TokenBucket(steps[0][0], clock.monotonic())
    for rate, seconds in steps:
        bucket.set_rate(rate, clock.monotonic())
        until, used = clock.monotonic() + seconds, 0
        while (now := clock.monotonic()) <= until:
            used += 1
            clock.sleep(bucket.reserve(now))
        assert used <= max(1.0, rate) + rate * seconds + 2


# Two services, one Redis


@pytest.fixture
def market():
    """An exchange with a dozen pairs, its time running."""
    with SimulatedBinance(market=Market.random_walk(PAIRS)) as exchange:
        yield exchange


class Member(Rig):
    """A member of a group, running in threads of this process."""

    def __init__(self, exchange, redis_url, /, **given):
        given = {"SYMBOLS": ",".join(PAIRS), "GROUP": "g", "DATA_DAYS": 1, "UPDATE_INTERVAL": 1} | given
        given |= {"MARKET_HOURS_OPTIMIZATION": "false", "API_REQUESTS_PER_SEC": 40} | given
        super().__init__(exchange, redis_url, **given)
        self.thread = in_background(self._run)

    def _run(self):
        self.service.start()
        run_cycles(self.service)

    def __exit__(self, *unused):
        self.clock.stop()
        self.thread.join()
        super().__exit__(*unused)

    @property
    def is_settled(self):
        """Whether all that it owns was updated."""
        return bool(self.service.watchlist.pairs) and all(feed.updated_ms for feed in self.feeds)

    @property
    def owned(self):
        """The pairs that it works on."""
        return {feed.pair.name for feed in self.feeds}


def test_two_members_share_the_pairs_and_the_rate(market, redis_url, reader, caplog):
    """All pairs once; who leaves hands its share over at once, and it is resumed with one request each."""
    caplog.set_level(logging.INFO, tet.LOGGER)
    with Member(market, redis_url) as first:
        eventually(lambda: first.is_settled and first.owned == set(PAIRS))
        with Member(market, redis_url) as second:
            eventually(lambda: first.owned | second.owned == set(PAIRS) and not first.owned & second.owned)
            eventually(lambda: second.is_settled)
            assert first.binance.gate.rate == second.binance.gate.rate == 20
            handed_over = second.owned
            moved = [request for request in market.asked() if int(request.params["limit"]) < 50]
            assert {request.params["symbol"] for request in moved} >= {
                n.replace("/", "") for n in handed_over
            }
            market.clear()
        eventually(lambda: first.owned == set(PAIRS), 5)
        eventually(lambda: first.is_settled)
        assert first.binance.gate.rate == 40
        assert all(int(request.params["limit"]) < 50 for request in market.asked())
    assert market.refused_429 == 0
    assert [text for text in caplog.messages if text.startswith("member ")] == [
        "member came",
        "member came",
        "member gone",
    ]
    assert stored(reader, f"15m:{PAIRS[0].replace('/', '_')}")["candle_count"] == 97 - 1


def test_pairs_that_are_taken_over_in_a_long_cycle_come_next(market, redis_url):
    """Not after all that were due before them: at 4 requests a second a cycle takes seconds."""
    with Member(market, redis_url, API_REQUESTS_PER_SEC=4, TIMEFRAME="15m,1h,4h") as first:
        with Member(market, redis_url, API_REQUESTS_PER_SEC=4, TIMEFRAME="15m,1h,4h") as second:
            eventually(lambda: first.is_settled and second.is_settled and not first.owned & second.owned, 60)
            theirs = {feed.pair.symbol for feed in second.feeds}
        market.clear()
        eventually(lambda: first.owned == set(PAIRS), 5)
        gained = eventually(lambda: asked_of(market, theirs) if len(asked_of(market, theirs)) > 5 else None)
        others = [r for r in market.asked() if r.at_monotonic < gained[5].at_monotonic]
        assert len(others) < 6 + 4 * 4, "a second's worth for each tick until they came"


def asked_of(market, symbols):
    """The requests for these symbols, in order."""
    return [request for request in market.asked() if request.params["symbol"] in symbols]


def test_a_new_member_sends_nothing_until_the_others_have_seen_it(market, redis_url):
    """So that the sum of rates is never above the one configured, and no pair has two owners that ask."""
    with Member(market, redis_url) as first:
        eventually(lambda: first.is_settled)
        joined_seconds = first.clock.monotonic()
        with Member(market, redis_url) as second:
            eventually(lambda: second.is_settled)
            asked = [request.at_monotonic for request in market.asked("/time")]
    first_of_second = min(seconds for seconds in asked if seconds > joined_seconds)
    assert first_of_second - joined_seconds >= JOIN_SECONDS - 0.1


def test_keys_deleted_by_hand_move_no_pair(market, redis_url, reader, caplog):
    """Each member is there again within 2 s, and nobody thinks it gone meanwhile."""
    caplog.set_level(logging.INFO, tet.LOGGER)
    with Member(market, redis_url) as first, Member(market, redis_url) as second:
        eventually(lambda: first.is_settled and second.is_settled and not first.owned & second.owned)
        keys = [f"tet:member:{{tet}}:{rig.service.members.id}" for rig in (first, second)]
        caplog.clear()
        for gone in (keys[:1], keys[1:], [*keys, "tet:member:{tet}"]):
            reader.delete(*gone)
            first.clock.sleep(0.5)
            eventually(lambda: reader.exists(*keys) == 2)
        first.clock.sleep(RENEW_SECONDS + 1)
        assert [text for text in caplog.messages if text.startswith("member")] == []
        assert first.owned | second.owned == set(PAIRS)


def test_two_groups_on_one_redis_share_the_rate_and_not_the_pairs(market, redis_url):
    """One address by default; with another EGRESS a member has a rate of its own."""
    with Member(market, redis_url) as first, Member(market, redis_url, GROUP="h") as second:
        eventually(lambda: first.binance.gate.rate == second.binance.gate.rate == 20)
        eventually(lambda: first.owned == second.owned == set(PAIRS))
        with Member(market, redis_url, GROUP="h", EGRESS="other") as third:
            eventually(lambda: len(second.owned) + len(third.owned) == len(PAIRS))
            assert [rig.binance.gate.rate for rig in (first, second, third)] == [20, 20, 40]


def test_a_ban_that_one_member_sees_holds_all_behind_its_address(market, redis_url, reader):
    """Through the pause key of that address; a member behind another address goes on."""
    with (
        Member(market, redis_url) as first,
        Member(market, redis_url) as second,
        Member(market, redis_url, GROUP="h", EGRESS="other") as third,
    ):
        eventually(lambda: all(rig.is_settled for rig in (first, second, third)))
        first.binance.gate.pause(60, "banned")
        first.service.bulletin.paused()
        eventually(lambda: second.binance.gate.pause_left_seconds() > 50)
        assert second.binance.gate.pause_reason == "banned"
        third.clock.sleep(3)
        assert third.binance.gate.pause_left_seconds() == 0
        second.binance.gate.pause(1, "a shorter one")
        second.service.bulletin.paused()
        assert reader.pttl("tet:system:pause") > 40_000
    assert not reader.exists("tet:system:pause:other")


SCHEMA = json.loads((PROGRAM.parent / "tests" / "schemas" / "status.json").read_text())


def test_the_status_is_that_of_all_members(market, redis_url, reader):
    """Totals, the worst of ages, and a line for each member; each has one of its own, too."""
    with Member(market, redis_url) as first:
        with Member(market, redis_url) as second:
            eventually(lambda: first.is_settled and second.is_settled and not first.owned & second.owned)
            for rig in (first, second, first):
                rig.service.bulletin.hurry()  # at the next tick
                eventually(partial(getattr, rig.service.bulletin, "_status_at_seconds"))
            status = eventually(lambda: two_members(reader))
            jsonschema.validate(status, SCHEMA)
            assert set(status["symbols"]) == set(PAIRS)
            assert status["active_symbols"] == len(PAIRS)
            own = [json.loads(reader.get(f"tet:status:{member['id']}")) for member in status["members"]]
            assert sorted(each["active_symbols"] for each in own) == sorted(
                [len(first.owned), len(second.owned)]
            )
            assert status["requests"] == sum(member["requests"] for member in status["members"])
            done = run_program("--status", f"--redis={redis_url}", f"--symbols={','.join(PAIRS)}")
            assert done.stdout.count("\nmember ") == 2, done.stdout
            assert done.returncode == 0
        eventually(lambda: not two_members(reader))
        assert json.loads(reader.get("tet:system:status"))["state"] == "running"
    assert json.loads(reader.get("tet:system:status"))["state"] == "stopped"


def test_any_member_serves_all_pairs_and_names_the_others(market, redis_url):
    """Over HTTP: those of others come from Redis; the table has its own, and /api/status the members."""
    address = f"127.0.0.1:{unused_port()}"

    def get(path):
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as reply:
            return json.loads(reply.read())

    with Member(market, redis_url, HTTP_ADDR=address) as first, Member(market, redis_url) as second:
        eventually(lambda: first.is_settled and second.is_settled and not first.owned & second.owned)
        assert {row["symbol"] for row in get("/api/pairs")} == first.owned
        for name in sorted(first.owned)[:1] + sorted(second.owned)[:1]:
            assert len(get(f"/api/candles?symbol={name}&limit=50")) == 50
        first.service.bulletin.hurry()  # at the next tick
        eventually(lambda: len(get("/api/status").get("members", ())) == 2)
        ids = {member["id"] for member in get("/api/status")["members"]}
        assert ids == {first.service.members.id, second.service.members.id}


def two_members(reader):
    """The status, where it is of two members that both have updated all."""
    status = json.loads(reader.get("tet:system:status"))
    return status if len(status["members"]) == 2 and status["never_updated"] == 0 else None


def test_what_redis_has_lost_each_member_writes_again(market, redis_url, reader):
    """Each notices by its own status."""
    with (
        Member(market, redis_url, UPDATE_INTERVAL=3600) as first,
        Member(market, redis_url, UPDATE_INTERVAL=3600) as second,
    ):
        eventually(lambda: first.is_settled and second.is_settled and not first.owned & second.owned)
        eventually(lambda: len(reader.keys("tet:status:*")) == 2)
        reader.flushall()
        eventually(lambda: len(reader.keys("tet:kline:*")) == len(PAIRS), 40)


def test_a_lone_instance_takes_no_part(exchange, redis_url, reader):
    """No key, no wait, no lease."""
    with Rig(exchange, redis_url) as rig:
        rig.service.start()
        rig.refresh()
        exchange.clock.advance(MINUTE)
        rig.refresh()
        assert reader.keys("tet:member*") == []
        assert rig.binance.gate.rate == 100


def test_members_that_differ_leave_no_pair_to_nobody(market, redis_url, reader, caplog):
    """Each pair and timeframe is kept by one of those that have it; who lacks what is a warning of all."""
    caplog.set_level(logging.INFO, tet.LOGGER)
    own, both = PAIRS[:4], PAIRS[4:8]
    ours = {"SYMBOLS": ",".join(own + both), "TIMEFRAME": "15m,1h"}
    theirs = {"SYMBOLS": ",".join(PAIRS[4:]), "TIMEFRAME": "15m"}
    with Member(market, redis_url, **ours) as first, Member(market, redis_url, **theirs) as second:
        wanted = {(name, frame) for name in own + both for frame in ("15m", "1h")}
        wanted |= {(name, "15m") for name in PAIRS[8:]}
        eventually(lambda: first.is_settled and second.is_settled)
        eventually(lambda: not kept_by(first) & kept_by(second))
        assert kept_by(first) | kept_by(second) == wanted
        assert {frame for name, frame in kept_by(first) if name in both} == {"15m", "1h"}
        ids = [rig.service.members.id for rig in (first, second)]
        for name in both:  # what both have is divided between them
            owner = first if shares.owner_of(name, ids) == ids[0] else second
            assert (name, "15m") in kept_by(owner)
        eventually(lambda: len(reader.keys("tet:kline:*")) == len(wanted))
        for rig in (first, second, first):
            rig.service.bulletin.hurry()  # at the next tick
            eventually(partial(getattr, rig.service.bulletin, "_status_at_seconds"))
        status = eventually(lambda: two_members(reader))
        assert len(status["warnings"]) == 2
        for rig, count in ((first, 4), (second, 4 + 8)):
            text = f"GROUP: {rig.service.members.id} lacks {count} of the group's pairs: "
            assert any(warning.startswith(text) for warning in status["warnings"])
            assert sum(message.startswith(text) for message in caplog.messages) == 2, "each says it once"
    assert set(status["symbols"]) == set(PAIRS)


def kept_by(member):
    """Pair and timeframe of what a member keeps."""
    return {(feed.pair.name, feed.timeframe.name) for feed in member.feeds}


def test_a_member_that_does_not_say_what_it_has_is_expected_to_have_nothing(market, redis_url, reader):
    """One of an older release, whose pairs may be others; and an entry whose selection is gone."""
    for older in (entry(), json.dumps({"group": "g", "egress": "", "left": False}), unreadable()):
        reader.sadd("tet:member:{tet}", "old")
        reader.set("tet:member:{tet}:old", older, px=60_000)
        with Member(market, redis_url) as rig:
            eventually(partial(has_all, rig))
            assert rig.binance.gate.rate == 20
            says = [text for text in rig.store.notices.texts if "old does not say" in text]
            assert len(says) == (older != unreadable())


def has_all(member):
    """Whether it keeps every pair, and has updated all."""
    return member.is_settled and member.owned == set(PAIRS)


def unreadable():
    """An entry whose selection nobody can read."""
    return json.dumps({"group": "g", "egress": "", "left": False, "selection": "0" * 16})


def test_wildcards_that_were_resolved_at_different_hours_are_no_warning():
    """The settings are the same; who owns what is decided by what each has."""
    early = shares.Selection.of(["*USDT"], ["A/USDT"], ["1m"])
    late = shares.Selection.of(["*USDT"], ["A/USDT", "B/USDT"], ["1m"])
    assert shares.lacking({"a": early, "b": late}) == {}
    assert shares.sharing("b", {"a": early, "b": late})("B/USDT", "1m")
    other = shares.Selection.of(["A/USDT"], ["A/USDT"], ["1m"])
    assert shares.lacking({"a": other, "b": late}) == {"a": ["B/USDT 1m"]}


FEEDS = st.sets(st.sampled_from(["A/X", "B/X", "C/X", "D/X"]))


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(FEEDS, st.sets(st.sampled_from(["1m", "1h"])))))
def test_each_feed_has_one_owner_among_those_that_have_it(members):
    """Whatever they have; members that are alike divide as they did before."""
    selections = {
        name: shares.Selection.of(pairs, pairs, frames) for name, (pairs, frames) in members.items()
    }
    kept = Counter(
        (pair, frame)
        for name, selection in selections.items()
        for pair in selection.pairs
        for frame in selection.timeframes
        if shares.sharing(name, selections)(pair, frame)
    )
    every = {
        (pair, frame) for each in selections.values() for pair in each.pairs for frame in each.timeframes
    }
    assert kept == Counter(every)
    for name, selection in selections.items():
        assert shares.parse_selection(selection.text()) == selection
        alike = dict.fromkeys(selections, selection)
        for pair in selection.pairs:
            for frame in selection.timeframes:
                assert shares.sharing(name, alike)(pair, frame) == (shares.owner_of(pair, alike) == name)


def test_the_start_says_where_the_group_comes_from(exchange, redis_url):
    """tcsh sets a variable of that name; who did not mean it finds it in the log."""
    done = run_program(
        "--public", "--once", "--days=1", "--symbols=BTC/USDT", f"--base-url={exchange.url}",
        f"--redis={redis_url}", GROUP="users",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "shares the pairs group=users from=environment" in done.stderr


def test_shards_work_on_their_shares_alone(market, redis_url, reader):
    """Without a group; all pairs once, and the rate is divided."""
    with (
        Member(market, redis_url, GROUP="", SHARD="1/2") as first,
        Member(market, redis_url, GROUP="", SHARD="2/2") as second,
    ):
        eventually(lambda: first.is_settled and second.is_settled)
        assert first.owned | second.owned == set(PAIRS)
        assert not first.owned & second.owned
        assert first.binance.gate.rate == second.binance.gate.rate == 20
    assert len(reader.keys("tet:kline:*")) == len(PAIRS)


def test_a_rolling_change_of_symbols_leaves_no_pair_to_nobody(exchange, redis_url, reader, tmp_path):
    """One process is started again with a pair more, then the other: each pair is kept in between, too."""
    exchange.clock.resume()

    def member(name, symbols):
        (tmp_path / name).mkdir()
        given = ("--public", "--days=1", "--group=g", f"--symbols={symbols}", "--interval=2", "--max-age=60")
        servers = (f"--base-url={exchange.url}", f"--redis={redis_url}")
        return Running(tmp_path / name, *given, *servers)

    before, after = "BTC/USDT,ETH/USDT", "BTC/USDT,ETH/USDT,DOGE/USDT"
    keys = [f"tet:timestamp:15m:{symbol.replace('/', '_')}" for symbol in after.split(",")]

    def all_fresh():
        times = reader.mget(keys)
        return all(times) and min(times) > began

    with member("a", before) as a, member("b", before) as b:
        eventually(lambda: a.says("member came") or b.says("member came"), 40)
        eventually(lambda: all(reader.mget(keys[:2])), 40)
        b.process.terminate()
        assert b.process.wait(15) == 0
        with member("b2", after) as b2:
            eventually(lambda: reader.get(keys[2]), 40)
            began = tet.iso_time(exchange.clock.now_ms())
            eventually(all_fresh, 40)
            eventually(lambda: a.says("lacks 1 of the group's pairs: DOGE/USDT 15m"), 40)
            a.process.terminate()
            assert a.process.wait(15) == 0
            with member("a2", after) as a2:
                eventually(lambda: a2.says("restored from redis"), 40)  # it may come to own none
                began = tet.iso_time(exchange.clock.now_ms())
                eventually(all_fresh, 40)
                assert not a2.says("lacks")
                assert b2.process.poll() is None
