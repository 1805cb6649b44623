"""What stands around TET Data Service; nothing in here decides which candle reaches Redis, or when.

Nothing in here imports ``tet_data_service``: values and callables go in, values come out. Started as a
script or frozen into a binary that module is ``__main__``, and an import would load it a second time.

The optional front doors are loaded only when a setting asks for them:

* ``simulated_binance``: the exchange for ``--demo``, the tests and the benchmarks.
* ``simulated_streams``: its WebSocket streams.
* ``demo``: what ``--demo`` adds.
* ``embedded``: a Redis server of our own, for ``REDIS_ADDR=embedded``.
* ``live``: connections to the exchange's streams, for ``LIVE``.
* ``report``: what ``--status``, ``--health-check`` and ``--verify`` find, judged and shown.
* ``merged``: the status of several members as one, for ``GROUP``.
* ``web``: HTTP, for ``HTTP_ADDR``; the page's own files are in ``page/``.
* ``answers``, ``pairs``, ``news``: what ``web`` answers, the page's table, what changes in it.

What every run of the service needs of the system around it:

* ``transport``: connections to the exchange, proxies, deadlines.
* ``servers``: connections to Redis: one server, what sentinels name, a cluster.
* ``logs``: how the log looks, and the log file.
* ``options``, ``addresses``, ``settings_file``: what a setting is, and the texts that it is read from.
* ``figures``: counts, delays, memory and costs, for the status.
* ``remedies``: what helps against an error of Redis.
* ``process``: signals, the service manager, memory, the end.
"""
