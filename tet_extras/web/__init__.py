"""HTTP, for HTTP_ADDR, on Starlette and uvicorn; loaded only with it. The page's files are in ``../page/``.

* ``events``: what happened lately, from the log.
* ``showing``: the feeds and their candles.
* ``pairs``: the page's table.
* ``answers``: bodies with their types and tags.
* ``metrics``: what /metrics has.
* ``closes``: closed candles, for who follows them by /events.
* ``news``: what /events sends.
* ``guard``: who may ask, and the headers that keep the page safe.
* ``routes``: the table of addresses, and what answers each.
* ``bounds``: how much of us a client may take.
* ``server``: uvicorn on a thread of its own.
"""
