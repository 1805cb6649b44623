"""Binance's own REST paths on HTTP_ADDR, for BINANCE_PROXY: bots use them by changing an address.

* ``paths``: which calls pass, what may be asked with them, and what each weighs.
* ``window``: klines of what the service holds.
* ``forwarding``: asking the exchange on behalf of bots, through the gate that every request passes.
* ``kept``: answers that are given again, within bounds.
* ``api``: the routes, and answers in the exchange's own shape.
"""
