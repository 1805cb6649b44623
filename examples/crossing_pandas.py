"""Moving averages that cross, at each close: pip install redis pandas, and tet_reader.py beside this file."""

import sys

from tet_reader import Reader

reader = Reader(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost:6379/1")
for pair, timeframe, frame in reader.follow(reader.pairs("15m"), "15m", last=200):
    fast, slow = frame["close"].rolling(20).mean(), frame["close"].rolling(50).mean()
    above = (fast > slow).tolist()
    crossed = above[-1] != above[-2]
    print(f"{frame.index[-1]} {pair} {timeframe} {'above' if above[-1] else 'below'} {crossed=}")
