"""What the process is given to write to: stdout and stderr that may be closed, full, or of a narrow encoding.

What cannot be written there is dropped: neither the service nor an exit code depends on who reads along.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any


class _Descriptor(io.FileIO):
    """A file descriptor that takes everything: what it cannot write is dropped."""

    reader_is_gone = False

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Write what can be written; returns how much was taken, which is all when that fails."""
        try:
            written: int | None = super().write(data)  # None of a full pipe that does not block
            return len(data) if written is None else written
        except BrokenPipeError:
            self.reader_is_gone = True
        except OSError:  # a full disk, a terminal that has hung up
            pass
        return len(data)


class Output(io.TextIOWrapper):
    """A text stream on a descriptor, which never fails; what its encoding lacks becomes a question mark."""

    #: None, so that click does not look below for bytes: it writes UTF-8 where the encoding is ASCII.
    buffer = None  # type: ignore[assignment]

    def __init__(self, number: int, encoding: str) -> None:
        self.descriptor = _Descriptor(number, "w", closefd=False)
        below: Any = io.BufferedWriter(self.descriptor)
        super().__init__(below, encoding=encoding, errors="replace", line_buffering=True)


def make_robust() -> None:
    """Let stdout and stderr never fail. Streams that somebody has put in their place are left alone.

    A descriptor that was closed (``2>&-``) is opened on the null device first: else the next socket or file
    would get its number, and what a library writes to stderr would go there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        if os.name == "nt" and stream and stream.isatty():  # a console has its own way to write all there is
            stream.reconfigure(errors="replace")
        else:
            with suppress(OSError, AttributeError):
                stream.flush()
            setattr(sys, name, Output(number, stream.encoding if stream else "utf-8"))


def reader_is_gone() -> bool:
    """Whether nobody can read what is written to stdout any more."""
    return isinstance(sys.stdout, Output) and sys.stdout.descriptor.reader_is_gone
