"""The errors this program raises on purpose, and how an event is logged.

TetError
  ConfigError         the settings are wrong: say all of it, exit 2
  Stopped             a stop was asked for while waiting
  ExchangeError       Binance did not give what was asked
    TransientError    passing trouble: try again
      BadReply        ... the reply was damaged or impossible
      PauseError      ... and nothing may be sent for a while
    SymbolError       no such symbol: skip it, check hourly
    RefusedError      trying again will not help
  StoreError          Redis did not take or give what was asked: keep the data, try later
    TakenError        ... since a key is another program's
    RightsError       ... since this user may not
    FullError         ... since it is out of memory
    ClaimedError      ... since a service that is set differently writes there
  StoredValueError    what Redis holds is no sound value of ours: fetch anew
"""

from __future__ import annotations

import logging
from collections.abc import Sequence


class TetError(Exception):
    """The root of all errors this program raises on purpose."""


class ConfigError(TetError):
    """The settings are wrong. ``problems`` has one line for each problem."""

    def __init__(self, problems: Sequence[str], warnings: Sequence[str] = ()) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)


class Stopped(TetError):
    """A stop was asked for while a thread waited."""


class ExchangeError(TetError):
    """Binance did not give what was asked."""


class TransientError(ExchangeError):
    """Passing trouble on the way to Binance or at Binance: the same request may work later."""


class BadReply(TransientError):
    """The reply is damaged, or says what cannot be. Nothing of it is used."""


class PauseError(TransientError):
    """Rate limited, banned or refused by Binance; the request gate is paused already when this is raised."""


class SymbolError(ExchangeError):
    """Binance does not know the symbol (-1121)."""


class RefusedError(ExchangeError):
    """Binance refuses the request, and would again."""


class StoreError(TetError):
    """Redis cannot be reached, or refuses. The message ends with the remedy."""


class TakenError(StoreError):
    """A key of ours holds what another program has put there: nothing is written."""

    def __init__(self, key: str, kind: str) -> None:
        remedy = "rename or delete it, or choose another REDIS_DB or REDIS_PREFIX"
        super().__init__(f"Redis key {key} holds a {kind} of another program; {remedy}")


class RightsError(StoreError):
    """The user of Redis lacks a right. The message names it."""


class FullError(StoreError):
    """Redis is out of memory."""


class ClaimedError(StoreError):
    """A service that is set differently writes under the same keys: nothing is written."""


class StoredValueError(TetError):
    """What Redis holds under a key is not a sound value of this service and configuration."""


LOGGER = "tet"


def say(level: int, event: str, **facts: object) -> None:
    """Log an event with its facts; how they look is the formatter's business."""
    logging.getLogger(LOGGER).log(level, event, extra={"facts": facts})


def some_of(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
