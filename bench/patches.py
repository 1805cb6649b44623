"""Does a value made of patches ever differ from one written whole? Started by `make bench-patches`.

Random candles come, change and slide out of the window; each state is patched onto the one before where
`make_patch` allows it, and compared byte for byte with the whole value, after the blanks at its end. Exit
code 1 at the first difference. PATCHES (200,000 unless given) is how many patches are to be made.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import common  # noqa: F401 (puts the project on the path)

import tet_data_service as tet

TIMEFRAME = tet.TIMEFRAMES["15m"]
WANTED = 60


def candle(open_ms: int, chance: random.Random) -> tet.Candles:
    """A candle with numbers of any length."""
    digits = chance.randint(0, 8)
    ohlcv = [["1"], ["3"], ["1"], ["2"], [f"{chance.random() * 10 ** chance.randint(0, 9):.{digits}f}"]]
    return tet.make_candles([open_ms], [tet.iso_time(open_ms)], ohlcv)


def states(chance: random.Random) -> Iterator[tuple[tet.Series, int]]:
    """Endless states of a series, and when each was fetched (ms)."""
    series, now_ms = tet.Series(TIMEFRAME), TIMEFRAME.floor(1_700_000_000_000)
    while True:
        now_ms += chance.choice((1, 20, 180, 180, 180)) * 1000
        newest_ms = TIMEFRAME.floor(now_ms)
        back = chance.choices((0, 1, 5, 30), (20, 5, 2, 1))[0]
        candles = candle(TIMEFRAME.shift(newest_ms, -back), chance) | candle(newest_ms, chance)
        series = series.merge(candles, False, WANTED)
        yield series, now_ms


def main() -> int:
    """Patch and compare; returns the exit code."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    image, value, patches, whole = None, b"", 0, 0
    for series, now_ms in states(random.Random(1)):
        new = tet.make_image(series, WANTED, now_ms, closed_only=False)
        patch = tet.make_patch(image, new) if image else None
        if patch:
            same = value[patch.offset :] == patch.expected
            value, image = value[: patch.offset] + patch.new, patch.image
        else:
            same, value, image = True, new.whole(), new
        patches, whole = patches + bool(patch), whole + (not patch)
        if not same or value.rstrip(b" ") != new.whole() or value != image.whole():
            print(f"after {patches} patches the value differs from the whole one")
            return 1
        if patches >= wanted:
            break
    print(f"{patches} patches, {whole} whole writes: each value the same as the whole one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
