"""The rules of TET Data Service: values in, values out. No network, no Redis, no clock but one passed in.

Imports go down only: the module ``tet_data_service`` imports ``tet_extras`` and this, ``tet_extras`` imports
this, and nothing imports the module. From leaf to root:

* ``errors``: the tree of errors, and how an event is logged.
* ``protocols``: what parts are given that they may not import: the clock, the gate.
* ``times``: units, RFC 3339, timeframes and their grids.
* ``snapshot``: the figures of the service at one moment, as the status has them.
* ``candles``: entries of the stored value, and what rows they are made of.
* ``klines``: a reply's rows, checked, and what is odd of one.
* ``odd_rows``: when the exchange is believed although a row is odd.
* ``pauses``: which replies mean that nothing may be sent for a while, and for how long.
* ``history``: many candles, kept small.
* ``series``: the candles of one pair and timeframe, and what replies and streams do to them.
* ``markets``: what Binance's markets have otherwise, where each is found, and what its statuses mean.
* ``sessions``: when the markets are closed that stocks and metals follow.
* ``pairs``: names, wildcards, and the symbols that the exchange lists.
* ``exchange_info``: the exchange's replies that list symbols and their volumes.
* ``intervals``: how long an update interval is, and when candles are due again.
* ``proofs``: which of the streamed closes REST has repeated, and when it is asked for the others.
* ``turns``: which of those that wait for a worker comes next.
* ``shares``: who of several members keeps which pair fresh.
* ``stored``: the keys in Redis, and the value: made, patched, read back.
* ``gaps``: what a window lacks, since when that is known, and what REST has proven.
* ``freshness``: who keeps a feed fresh, its stream or REST, and when REST is due.
* ``feeds``: a pair in a timeframe, what is known of its candles, and of Redis' copy of them.
* ``listeners``: what happens, and who wants to hear of it.
* ``drafts``: what is to be written of a feed, beside what somebody else has written.
* ``watchlist``: the feeds that are kept fresh here, and the symbols that are invalid.

Two of them have locks, since any thread reads them: feeds and watchlist.
"""
