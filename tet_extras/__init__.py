"""Optional front doors of TET Data Service, each loaded only when a setting asks for it.

Nothing in here imports ``tet_data_service``: values and callables go in, values come out. Started as a
script or frozen into a binary that module is ``__main__``, and an import would load it a second time.

* ``simulated_binance``: the exchange for ``--demo``, the tests and the benchmarks.
* ``embedded``: a Redis server of our own, for ``REDIS_ADDR=embedded``.
* ``report``: what ``--status`` and ``--health-check`` find, judged and shown.
* ``web``: ``/health`` and ``/metrics``, for ``HTTP_ADDR``.
"""
