"""The rooms of TET Data Service: what it does beside fetching and writing, each in a file of its own.

Nothing in here imports ``tet_data_service``: started as a script or frozen into a binary that module is
``__main__``, and an import would load it a second time. The rules, in ``tet_core``, may be imported.

The optional front doors are loaded only when a setting asks for them:

* ``simulated_binance``: the exchange for ``--demo``, the tests and the benchmarks.
* ``simulated_streams``: its WebSocket streams.
* ``demo``: what ``--demo`` adds.
* ``embedded``, ``data_folder``, ``memory_store``: a Redis server of our own, for ``REDIS_ADDR=embedded``, and
  its folder: Valkey, else, as on Windows, one within this process.
* ``live``, ``streams``: what is streamed, and what REST is asked for, for ``LIVE``; the connections to them.
* ``messages``, ``subscriptions``: what comes by those; what they ask for, and what of it never speaks.
* ``audit``: whole windows compared with the exchange, for ``AUDIT_HOURS`` and ``--verify``.
* ``report``, ``verdicts``: what ``--status`` and ``--health-check`` find, judged and shown, and ``--verify``.
* ``export``: a pair's candles as a file, for ``--export``.
* ``terminal``: text of 80 columns, and its colours.
* ``members``, ``merged``: several instances that share the pairs, a rate, or both, for ``GROUP``, ``SHARD``
  and ``EGRESS``; and their status as one.
* ``proxy/``: the exchange's own paths at ``HTTP_ADDR``, for ``BINANCE_PROXY``.
* ``web/``: HTTP, for ``HTTP_ADDR``; its own docstring says what is in it. The page's files are in ``page/``.

What every run of the service needs of the system around it:

* ``clock``: the exchange's time, and waiting that a stop cuts short.
* ``transport``, ``proxies``: connections to the exchange, proxies, deadlines.
* ``servers``: connections to Redis: one server, what sentinels name, a cluster.
* ``updates``: the feeds that are due, on their way through REST.
* ``workers``: the main thread's inbox, how it waits, and the threads that ask the exchange.
* ``logs``: how the log looks, and the log file.
* ``options``, ``addresses``, ``settings_file``: what a setting is, and the texts that it is read from.
* ``places``, ``symbols``: where the market is found, and which symbols it has.
* ``hints``: what was probably meant.
* ``reload``: the settings read again, for SIGHUP and ``WATCH_CONFIG``.
* ``counts``, ``status``, ``bulletin``: what has happened, what is said of that, and that in Redis.
* ``figures``: counts, delays, memory and costs, for the status.
* ``remedies``, ``notices``: what helps against an error of Redis, and what is wrong though it answers.
* ``outages``, ``losses``: which servers of Redis are away, and what it loses, by eviction or otherwise.
* ``scripts``, ``writes``, ``pipelines``, ``claims``: what Redis runs, what it is given to write, alone and
  many at once, and what keeps services that differ apart.
* ``filling``: how far the first fill is.
* ``output``: stdout and stderr, whatever has become of them.
* ``script``: a script begins anew with the module imported.
* ``process``: signals, the service manager, memory, the end.
* ``windows``: what of that Windows does in a way of its own.
"""
