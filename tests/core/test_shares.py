"""Which member owns which pair: each computes it alone, and all the same."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tet_core import shares

MEMBERS = st.sets(st.text("abcdefgh-0123456789", min_size=1, max_size=12), min_size=1, max_size=12)
NAMES = [f"COIN{number}/USDT" for number in range(1000)]


def owners(members):
    """The owner of each of a thousand pairs."""
    return {name: shares.owner_of(name, members) for name in NAMES}


@given(MEMBERS, st.randoms())
def test_every_member_computes_the_same_owner(members, random):
    """In whatever order it knows the members; the owner is one of them."""
    shuffled = sorted(members)
    random.shuffle(shuffled)
    assert owners(members) == owners(shuffled)
    assert set(owners(members).values()) <= members


@given(MEMBERS)
def test_pairs_are_divided_evenly(members):
    """Each member owns about as many: within five standard deviations of a fair draw."""
    share = 1 / len(members)
    counts = Counter(owners(members).values())
    bound = 5 * (len(NAMES) * share * (1 - share)) ** 0.5
    assert all(abs(counts[member] - len(NAMES) * share) <= bound for member in members)


@given(MEMBERS, st.text("xyz", min_size=1, max_size=5))
def test_who_joins_or_leaves_moves_only_its_share(members, other):
    """No pair moves between two members that were and are there."""
    before, after = owners(members), owners(members | {other})
    moved = {name for name in NAMES if before[name] != after[name]}
    assert moved == {name for name in NAMES if after[name] == other}


def entry(group="g", egress="", left=False):
    """A member's entry."""
    return json.dumps(shares.Entry(group, egress, left)._asdict())


ENTRIES = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([entry(), entry(left=True), "{}", "["]))


@given(st.lists(st.tuples(ENTRIES, st.booleans(), st.floats(0, 8)), max_size=20))
def test_a_roster_has_who_was_seen_lately_and_has_not_left(looks):
    """Compared with the looks themselves."""
    roster, now, seen, looked = shares.Roster(), 0.0, {}, 0.0
    for entries, joined, seconds in looks:
        now += seconds
        before = set(roster.of_group("g"))
        come, gone = roster.note(entries, joined, now)
        if joined or now - looked > shares.MISSED_SECONDS:
            seen = dict.fromkeys(before, now)
        for member, text in entries.items():
            seen.pop(member, None)
            if text == entry():
                seen[member] = now
        looked, seen = now, {member: at for member, at in seen.items() if at >= now - shares.ABSENT_SECONDS}
        assert roster.of_group("g") == sorted(seen)
        assert (come, gone) == (set(seen) - before, before - set(seen))


def test_members_are_counted_by_group_and_by_address():
    """A group divides its pairs, an address its rate."""
    roster = shares.Roster()
    roster.note({"a": entry("x", "one"), "b": entry("x", "two"), "c": entry("y", "one")}, True, 0.0)
    assert (roster.of_group("x"), roster.of_group("y")) == (["a", "b"], ["c"])
    assert (roster.count_sharing("one"), roster.count_sharing("two"), roster.count_sharing("")) == (2, 1, 0)


@given(st.integers(1, 9))
def test_shards_together_have_every_pair_once(shards):
    """SHARD=1/n to n/n."""
    numbers = list(map(str, range(1, shards + 1)))
    owned = [{name for name in NAMES if shares.owner_of(name, numbers) == number} for number in numbers]
    assert sum(map(len, owned)) == len(set.union(*owned)) == len(NAMES)
