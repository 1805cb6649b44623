"""Replies that mean a pause, whatever status they come with, and how long it is."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import CHALLENGE, NOON_MS, TOO_MANY, banned

from tet_core import pauses
from tet_core.pauses import pause_seconds


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind"),
    [
        (202, {"x-amzn-waf-action": "challenge"}, "", 403),
        (202, {}, "", 403),
        (405, {"x-amzn-waf-action": "captcha"}, CHALLENGE, 403),
        (405, {}, "", 403),
        (403, {}, "<html>", 403),
        (403, {}, '{"code":0,"msg":"x"}', 403),
        (200, {}, CHALLENGE, 403),
        (200, {}, "\ufeff \n" + CHALLENGE, 403),
        (200, {"x-amzn-waf-action": "challenge"}, "", 403),
        (503, {"cf-mitigated": "challenge"}, CHALLENGE, 403),
        (429, {}, "", 429),
        (418, {}, "", 418),
        (451, {}, TOO_MANY, 451),
        *((status, {}, TOO_MANY, 429) for status in (200, 400, 403, 500, 503)),
        *((status, {}, banned(90), 418) for status in (200, 400, 403, 429, 503)),
        (503, {}, "<p>ip Banned Until 1768478950000</p>", 418),
        (400, {}, '{"code":"-1003"}', 429),
        (400, {}, '{"code":-1015,"msg":"Too many new orders."}', 429),
        (400, {}, '{"code":-1034,"msg":"Too many connections."}', 429),
        (503, {}, '{"code":-1008,"msg":"Server is currently overloaded."}', 429),
        (200, {}, "[]", None),
        (200, {}, '{"serverTime":1}', None),
        (200, {}, "", None),
        (200, {}, "[" + " " * 5000 + '"banned until 1768478950000"]', None),
        (200, {}, '{"symbols":[' + "1," * 5000 + '1],"code":-1003}', None),
        (400, {}, '{"code":-1121,"msg":"Invalid symbol."}', None),
        (400, {}, '{"code":true}', None),
        (400, {}, '{"code":-1003', None),
        (500, {}, "", None),
        (503, {}, "<html>Service Temporarily Unavailable</html>", None),
        (520, {}, "<html>Web server is returning an unknown error</html>", None),
        (502, {}, "[1]", None),
    ],
)
def test_what_a_reply_means(status, headers, body, kind):
    """By what it says, and by who says it; a server that fails asks for no pause."""
    assert pauses.pause_kind(status, headers, body.encode()) == kind


@given(st.sampled_from([200, 202, 400, 403, 418, 429, 500]), st.binary(max_size=60), st.text(max_size=40))
def test_whatever_comes_ends_in_a_pause_within_bounds_or_in_none(status, body, header):
    """No reply is fatal."""
    if kind := pauses.pause_kind(status, {}, body):
        assert 1 <= pauses.pause_seconds(kind, header, body, NOON_MS, 0) <= 7 * 86_400
        assert f"HTTP {status}" in pauses.pause_reason(kind, status, body)


@pytest.mark.parametrize(
    ("kind", "header", "expected"),
    [
        (429, formatdate(NOON_MS / 1000 + 90, usegmt=True), 90),
        (418, formatdate(NOON_MS / 1000 + 600, usegmt=True), 600),
        (429, formatdate(NOON_MS / 1000 + 90), 90),
        (429, formatdate(NOON_MS / 1000 - 90, usegmt=True), 60),
        (429, "Fri, 31 Dec 9999 23:59:59 GMT", 7 * 86_400),
        (429, "Fri, 31 Dec 99999 23:59:59 GMT", 60),
        (429, "Thu, 32 Jan 2026 12:00:00 GMT", 60),
        (403, formatdate(NOON_MS / 1000 + 90, usegmt=True), 90),
        (403, "999999999", 3600),
        (403, "-7", 60),
    ],
)
def test_retry_after_may_be_a_date(kind, header, expected):
    """Seconds or a date, as HTTP has it; what is past or no date counts as none."""
    assert pauses.pause_seconds(kind, header, b"", NOON_MS, 0) == expected


@pytest.mark.parametrize("kind", [429, 418])
def test_banned_until_counts_whatever_else_is_said(kind):
    """And the later of two ends."""
    assert pauses.pause_seconds(kind, "5", banned(90).encode(), NOON_MS, 0) == 90
    assert pauses.pause_seconds(kind, "500", banned(90).encode(), NOON_MS, 0) == 500


@pytest.mark.parametrize(
    ("status", "header", "until_ms", "expected"),
    [
        (429, None, None, 60),
        (429, "7", None, 7),
        (429, "0", None, 60),
        (429, "120", None, 120),
        (418, None, None, 120),
        (418, "300", None, 300),
        (418, "0", None, 120),
        (418, None, 90_000, 90),
        (418, "60", 90_000, 90),
        (418, "120", 90_000, 120),
        (418, "60", -5000, 60),
        (418, None, -5000, 120),
        (418, None, 200, 1),
        (418, None, 30 * 86_400_000, 7 * 86_400),
        (429, "999999999", None, 7 * 86_400),
        (451, None, None, 300),
        (451, "7", None, 300),
        (403, "7", None, 60),
    ],
)
def test_how_long_a_status_pauses(status, header, until_ms, expected):
    """The header or the ban's end counts, whichever is later; without a word there is a default."""
    body = b"" if until_ms is None else b"banned until %d. Use streams" % (NOON_MS + until_ms)
    assert pause_seconds(status, header, body, NOON_MS, 0) == expected


@pytest.mark.parametrize(
    "junk",
    ["", "soon", "-5", "1.5", "1e3", "٧", " 7", "7 ", "0x10", "9" * 400, "Wed, 21 Oct 2025 07:28:00 GMT"],
)
def test_a_header_of_junk_counts_as_none(junk):
    """What is no number of seconds is ignored, never fatal."""
    assert pause_seconds(429, junk, b"", NOON_MS, 0) == 60
    assert pause_seconds(418, junk, b"", NOON_MS, 0) == 120


@pytest.mark.parametrize("body", [b"\xff\xfe", b"banned until soon", b"banned until 123", b"{}"])
def test_a_body_of_junk_counts_as_none(body):
    """A body without a time leaves the decision to the header."""
    assert pause_seconds(418, "33", body, NOON_MS, 0) == 33


@pytest.mark.parametrize(
    ("repeat", "expected"), [(0, 60), (1, 120), (2, 240), (5, 1920), (6, 3600), (10, 3600), (100_000, 3600)]
)
def test_each_403_doubles_the_pause_up_to_an_hour(repeat, expected):
    """A firewall that stays shut is knocked at ever more rarely."""
    assert pause_seconds(403, None, b"", NOON_MS, repeat) == expected


@given(
    st.sampled_from([429, 418, 403, 451]),
    st.none() | st.text(max_size=12) | st.integers(0, 10**10).map(str),
    st.binary(max_size=30) | st.integers(10**12, 10**13 - 1).map(lambda at_ms: b"banned until %d" % at_ms),
    st.integers(0, 1000),
)
def test_any_answer_gives_a_pause_within_bounds(status, header, body, repeat):
    """Never below a second, never above a week, whatever the exchange writes."""
    assert 1 <= pause_seconds(status, header, body, NOON_MS, repeat) <= 7 * 86_400
