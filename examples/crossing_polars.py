"""Moving averages that cross, at each close: pip install redis polars, and tet_reader.py beside this file."""

import sys

import polars as pl

from tet_reader import Reader

reader = Reader(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost:6379/1", engine="polars")
close, above = pl.col("close"), pl.col("fast") > pl.col("slow")
averages = {"fast": close.rolling_mean(20), "slow": close.rolling_mean(50)}
for pair, timeframe, frame in reader.follow(reader.pairs("15m"), "15m", last=200):
    was, now = frame.with_columns(**averages).select("time", above=above).tail(2).iter_rows()
    print(f"{now[0]} {pair} {timeframe} {'above' if now[1] else 'below'} crossed={was[1] != now[1]}")
