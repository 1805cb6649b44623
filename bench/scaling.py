"""How far it goes: what so many pairs need, from costs measured here. Started by `make bench-scaling`.

First the costs of this machine are measured: CPU of a refresh and of what it writes, between two closes and
at one, on both sides, and the memory of a pair. Then a day is simulated second by second for each size: which
feeds are due when, and how long the addresses' weight makes them wait. What does not fit on two cores is
worked out, not run. Writes `bench/scaling.txt` and `bench/scaling.svg`. Needs Linux.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

import chart
from common import ROOT
from writes import CANDLES, Written, written

import bench
import tet_data_service as tet
from tet_core.stored import MOST_ALLOCATED, ROOM_SHARE

DAY_SECONDS = 86_400
INTERVAL = 180  # UPDATE_INTERVAL
LIVE_WRITE_SECONDS = 5
AUDIT_HOURS = 24
#: Of a candle in Redis: its text, its share of the blanks, and what the allocator takes more.
REDIS_BYTES = 145 * (1 + 1 / ROOM_SHARE) * MOST_ALLOCATED
ALL = tuple(name for name in tet.TIMEFRAMES if name != "1s")
#: What one unit is taken to carry: the rest is slack.
ADDRESS_SHARE, INSTANCE_CORES, INSTANCE_GB = tet.WEIGHT_SHARE, 0.7, 8.0
NODE_CORES, NODE_GB, NODE_MB_PER_SECOND = 0.6, 8.0, 100.0


class Costs(NamedTuple):
    """Measured here: CPU in ms, sizes in bytes."""

    refresh_ms: float  # of polling: request, reply, patch
    patch: Written  # between two closes
    slide: Written  # at a close
    message_ms: float  # to decode a stream's message
    memory_bytes: float  # per candle, in an instance


class Size(NamedTuple):
    """A deployment: pairs of each market, timeframes, and whether it is live."""

    spot: int
    usdm: int
    timeframes: tuple[str, ...]
    live: bool = False

    @property
    def name(self) -> str:
        """As the table has it."""
        pairs = self.spot + self.usdm
        frames = self.timeframes[0] if len(self.timeframes) == 1 else f"{len(self.timeframes)} intervals"
        return f"{pairs:,} x {frames}"


SIZES = tuple(
    Size(spot, usdm, frames, live)
    for spot, usdm, frames in (
        (25, 0, ("15m",)),
        (25, 0, ALL),
        (500, 0, ("15m",)),
        (500, 0, ALL),
        (3000, 700, ("15m",)),
        (3000, 700, ALL),
    )
    for live in (False, True)
)


class Need(NamedTuple):
    """What a size needs, each in units of what one address, instance or Redis node carries."""

    size: Size
    requests: float  # per second
    slowest_seconds: float  # from a close to the last feed's refresh
    gigabytes: float
    to_redis_mb: float  # per second
    units: dict[str, float]

    @property
    def addresses(self) -> int:
        """Of the exchange's weight."""
        return max(1, math.ceil(self.units["weight"]))

    @property
    def instances(self) -> int:
        """Processes, at least one behind each address."""
        return max(self.addresses, math.ceil(max(self.units["CPU"], self.units["memory"])))

    @property
    def nodes(self) -> int:
        """Masters of Redis; a cluster has three or more."""
        most = math.ceil(max(self.units["Redis CPU"], self.units["Redis memory"], self.units["bandwidth"]))
        return most if most <= 1 else max(3, most)

    @property
    def first_limit(self) -> str:
        """The part of which most units are needed."""
        return max(self.units, key=lambda name: self.units[name])


# Measuring


def measure(few: int, many: int) -> Costs:
    """The costs on this machine, of runs with few and with many pairs."""
    small, large = bench.run_alone(few), bench.run_alone(many)
    memory = max(0.0, large.now_mb - small.now_mb) * 1e6 / (large.pairs - small.pairs) / CANDLES
    return Costs(
        refresh_ms=small.steady.cpu_ms,
        patch=written("refresh"),
        slide=written("slide"),
        message_ms=decoded(),
        memory_bytes=memory,
    )


def decoded(times: int = 2000) -> float:
    """CPU ms to decode a kline message of the exchange's stream."""
    kline = {"t": 1, "T": 2, "s": "BTCUSDT", "i": "15m", "o": "1.0", "c": "1.0", "h": "1.0", "l": "1.0"}
    kline |= {
        "v": "1.00000000",
        "q": "1.00000000",
        "V": "1.00000000",
        "Q": "1.00000000",
        "n": 100,
        "x": False,
    }
    message = json.dumps({"stream": "btcusdt@kline_15m", "data": {"e": "kline", "E": 1, "k": kline}})
    began = time.process_time()
    for _ in range(times):
        json.loads(message)
    return (time.process_time() - began) * 1000 / times


# Simulating


def due_at(second: int, step_seconds: int) -> bool:
    """Whether feeds of a timeframe are due then: a second after a close, and each interval from there."""
    since = (second - 1) % step_seconds
    return since % INTERVAL == 0 if step_seconds > INTERVAL else since == 0


def simulate(size: Size, addresses: int, seconds: int) -> tuple[float, float]:
    """Requests per second over so long, and the longest that any of them waited for weight, in seconds.

    Feeds that are due while the last ones still wait are asked for once, as the service does it.
    """
    slowest, requests = 0.0, 0.0
    for pairs, market in ((size.spot, "spot"), (size.usdm, "usdm")):
        if not pairs:
            continue
        limits = tet.MARKETS[market]
        weight = limits.klines_weight(7)
        rate = min(100.0, limits.weight_limit * ADDRESS_SHARE / 60 / weight) * addresses
        steps = [min(tet.TIMEFRAMES[name].step_ms // 1000, DAY_SECONDS) for name in size.timeframes]
        if size.live:
            requests += pairs * len(steps) / AUDIT_HOURS / 3600
            continue
        waiting = 0.0
        for second in range(seconds):
            due = pairs * sum(due_at(second, step) for step in steps)
            requests += due / seconds
            waiting = min(waiting + due, pairs * len(steps))
            slowest = max(slowest, waiting / rate)
            waiting = max(0.0, waiting - rate)
    return requests, slowest


def need_of(size: Size, costs: Costs, seconds: int) -> Need:
    """What a size needs: as many addresses as keep the mean weight within the limit, and what follows."""
    pairs, frames = size.spot + size.usdm, [tet.TIMEFRAMES[name] for name in size.timeframes]
    candles = sum(frame.candles_in_days(30) for frame in frames)
    closes = [1000 / frame.step_ms for frame in frames]  # per second and pair
    polls = [max(1 / INTERVAL, close) for close in closes]
    weights = {
        market: sum(polls)
        * each
        * tet.MARKETS[market].klines_weight(7)
        * 60
        / tet.MARKETS[market].weight_limit
        for market, each in (("spot", size.spot), ("usdm", size.usdm))
    }
    address_units = 0.0 if size.live else max(weights.values()) / ADDRESS_SHARE
    requests, slowest = simulate(size, max(1, math.ceil(address_units)), seconds)
    slides = pairs * sum(closes)
    patches = pairs * (len(frames) / LIVE_WRITE_SECONDS if size.live else sum(polls) - sum(closes))
    messages = pairs * len(frames) / 2 if size.live else 0.0  # the exchange pushes every 2 s
    patch, slide = costs.patch, costs.slide
    # A refresh by polling has a patch in it already, whether or not it is at a close.
    spent = patches * patch.cpu_ms if size.live else requests * costs.refresh_ms - slides * patch.cpu_ms
    cpu = (spent + messages * costs.message_ms + slides * slide.cpu_ms) / 1000
    redis_cpu = (patches * patch.redis_ms + slides * slide.redis_ms) / 1000
    to_redis_mb = (patches * patch.bytes + slides * slide.bytes) / 1e6
    gigabytes = pairs * candles * costs.memory_bytes / 1e9
    units = {
        "weight": address_units,
        "CPU": cpu / INSTANCE_CORES,
        "memory": gigabytes / INSTANCE_GB,
        "Redis CPU": redis_cpu / NODE_CORES,
        "Redis memory": pairs * candles * REDIS_BYTES / 1e9 / NODE_GB,
        "bandwidth": to_redis_mb / NODE_MB_PER_SECOND,
    }
    return Need(size, requests, slowest, gigabytes, to_redis_mb, units)


# Showing


def table(needs: Sequence[Need]) -> Iterator[str]:
    """A row for each size."""
    yield "                             requests slowest memory to Redis       in-  Redis first"
    yield "pairs x timeframes              per s close s     GB     MB/s addr. st. masters limit"
    for need in needs:
        mode = "live" if need.size.live else "polling"
        slowest = "-" if need.size.live else f"{need.slowest_seconds:.0f}"
        yield (
            f"{need.size.name:<20} {mode:<7} {need.requests:>8.1f} {slowest:>7} {need.gigabytes:>6.3f} "
            f"{need.to_redis_mb:>8.3f} {need.addresses:>5} {need.instances:>3} {need.nodes:>7} "
            f"{need.first_limit}"
        )


def cost_lines(costs: Costs) -> Iterator[str]:
    """What was measured."""
    parts = ", ".join(
        (
            f"a refresh {costs.refresh_ms:.2f}",
            f"a patch {costs.patch.cpu_ms:.2f} (Redis {costs.patch.redis_ms:.3f})",
            f"one that slides {costs.slide.cpu_ms:.2f} (Redis {costs.slide.redis_ms:.3f})",
            f"a stream's message decoded {costs.message_ms:.3f}",
        )
    )
    yield from bench.wrapped(
        f"Measured on this machine, CPU ms: {parts}. A patch sends {costs.patch.bytes:.0f} bytes, at a close "
        f"{costs.slide.bytes:.0f}; a candle takes {costs.memory_bytes:.0f} bytes of memory."
    )


NOTES = f"""\
Worked out from these costs, not run. One address carries {ADDRESS_SHARE:.0%} of the exchange's weight (6000
a minute on spot, 2400 on USD-M), one instance {INSTANCE_CORES:g} of a core and {INSTANCE_GB:g} GB, one Redis
master {NODE_CORES:g} of a core, {NODE_GB:g} GB and {NODE_MB_PER_SECOND:g} MB/s; a cluster has three masters
at least. 3,700 pairs are 3,000 of spot and 700 of USD-M futures, two groups behind the same addresses. 15
intervals are 1m to 1M; 30 days of candles; UPDATE_INTERVAL={INTERVAL}, no off-peak hours.

"slowest close" is the longest that a feed waits for its turn in a simulated day with so many addresses: more
of them make it shorter. At a close the window slides within the value, of which only what changed is sent;
once in as many closes as a {ROOM_SHARE}th of its candles Redis lays it out anew, by itself. Live counts a
message every 2 s and a write every {LIVE_WRITE_SECONDS} s for each feed, and an audit of each by REST in
{AUDIT_HOURS} hours; of a message's CPU only the decoding was measured.
"""


def draw(needs: Sequence[Need]) -> str:
    """How many addresses, instances and Redis masters each size needs, polling, on a logarithmic scale."""
    rows = [need for need in needs if not need.size.live]
    most = 10 ** math.ceil(math.log10(max(max(n.addresses, n.instances, n.nodes) for n in rows) + 1))
    left, width, top, row = 170, 760, 84, 74

    def x(value: float) -> float:
        return left + math.log10(value * 2) / math.log10(most * 2) * (width - left - 60)

    bottom = top + row * len(rows)
    parts = [f'<text class="title" x="16" y="28">{"What so many pairs need, polling (worked out)"}</text>']
    kinds = (("addresses", "cold"), ("instances", "steady"), ("Redis masters", "third"))
    for place, (name, kind) in enumerate(kinds):
        parts.append(f'<rect class="{kind}" x="{16 + 150 * place}" y="45" width="12" height="12" rx="2"/>')
        parts.append(f'<text x="{34 + 150 * place}" y="56">{name}</text>')
    for number in range(round(math.log10(most)) + 1):
        at = x(10**number)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{top - 8}" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(
            f'<text class="quiet" x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{10**number}</text>'
        )
    for number, need in enumerate(rows):
        y = top + number * row
        parts.append(f'<text x="{left - 10}" y="{y + 36}" text-anchor="end">{escape(need.size.name)}</text>')
        for (_, kind), value in zip(kinds, (need.addresses, need.instances, need.nodes), strict=True):
            bar = x(value) - left
            parts.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{bar:.1f}" height="18" rx="2"/>')
            parts.append(f'<text x="{left + bar + 6:.1f}" y="{y + 14}">{value}</text>')
            y += 20
    label = "; ".join(f"{n.size.name}: {n.addresses} addresses, {n.instances} instances" for n in rows)
    style = f"{chart.STYLE}\n.third {{ fill: #bf8700 }}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 30}" width="{width}"'
    head += f' height="{bottom + 30}" role="img" aria-label="{escape(label)}">'
    return "\n".join([head, f"<style>\n{style}\n</style>", *parts, "</svg>\n"])


def main() -> None:
    """Measure, simulate, print and write."""
    quick = sys.argv[1:] == ["--quick"]  # to see that it works: its figures are worth little
    costs = measure(2, 4) if quick else measure(25, 100)
    needs = [need_of(size, costs, 3600 if quick else DAY_SECONDS) for size in SIZES]
    lines = ["How far it goes: what so many pairs need", ""]
    lines += [*cost_lines(costs), "", *table(needs), "", *bench.wrapped(NOTES)]
    text = "\n".join(lines) + "\n"
    print(text)
    if quick:
        return
    (ROOT / "bench" / "scaling.txt").write_text(text)
    (ROOT / "bench" / "scaling.svg").write_text(draw(needs))


if __name__ == "__main__":
    main()
