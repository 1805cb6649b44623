"""The service as a process: signals, the service manager, memory, the terminal, the end."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, NoReturn

import click

from .output import make_robust

MAX_STOP_SECONDS = 4.5
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if sys.platform == "win32":  # Ctrl-Break, which is what a program can send to another one there
    STOP_SIGNALS.append(signal.SIGBREAK)


#: Windows has none.
HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)


def _has_terminal() -> bool:
    """Whether stdin is a terminal that is still there."""
    try:
        return os.isatty(0)
    except OSError:
        return False


def stop_on_signals(stop: Callable[[str], None], code: int, hang_up: Callable[[str], None] | None) -> None:
    """Let SIGINT and SIGTERM stop the service; a second one a second later, or `MAX_STOP_SECONDS`, end it.

    On Windows Ctrl-Break and the closing of the console do, too. SIGHUP is for ``hang_up``, unless it says
    that the terminal is gone in which the service was started: then, or without ``hang_up``, it stops. The
    handler only puts a note into a queue, which is safe at any moment; a thread of its own reads it and calls
    ``stop`` or ``hang_up`` with the signal's name: these may take a lock that the interrupted thread holds.
    ``code`` is the exit code of a stop that had to be cut short: nothing is half-written, since Redis
    writes in one step.
    """
    notes: queue.SimpleQueue[int] = queue.SimpleQueue()
    had_terminal = _has_terminal()

    def watch() -> None:
        while (number := notes.get()) == HANG_UP and hang_up and _has_terminal() is had_terminal:
            hang_up(signal.Signals(number).name)
        stop(signal.Signals(number).name)
        began = time.monotonic()
        with suppress(queue.Empty):
            while (now := time.monotonic()) < began + MAX_STOP_SECONDS:
                if notes.get(timeout=began + MAX_STOP_SECONDS - now) == HANG_UP:
                    continue
                # A terminal's Ctrl-C comes twice when a launcher passes its own on.
                if time.monotonic() - began > 1:
                    os._exit(1)
        os._exit(code)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    for number in STOP_SIGNALS if HANG_UP is None else (*STOP_SIGNALS, HANG_UP):
        signal.signal(number, lambda signum, frame: notes.put(signum))
    if sys.platform == "win32":
        from . import windows

        windows.on_close(lambda: notes.put(signal.SIGBREAK))
        if getattr(sys, "frozen", False):  # its launcher may be killed, which it cannot pass on
            windows.end_with(os.getppid(), lambda: notes.put(signal.SIGTERM))


def claim_port(listener: socket.socket) -> None:
    """Let a socket have a port that was in use a moment ago, but never one that another program listens on.

    On Windows SO_REUSEADDR allows that, too, and SO_EXCLUSIVEADDRUSE keeps others from doing it.
    """
    exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR if exclusive is None else exclusive, 1)


#: Sockets that listen already, for who will serve at their addresses.
_kept: dict[tuple[str, int], socket.socket] = {}


def keep_port(listener: socket.socket) -> None:
    """Keep a socket that listens until this process serves there: nobody gets the port meanwhile."""
    _kept[listener.getsockname()[:2]] = listener


def kept_port(address: tuple[str, int]) -> socket.socket | None:
    """The socket that was kept for that address, once."""
    return _kept.pop(address, None)


def take_file(file: IO[bytes]) -> None:
    """Take a file for as long as it is open. Raises BlockingIOError where another process has it."""
    if sys.platform == "win32":
        from . import windows

        windows.lock(file)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def notify_systemd(text: str) -> None:
    """Send a line such as ``READY=1`` to the service manager, where there is one that listens (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(text.encode(), f"\0{address[1:]}" if address.startswith("@") else address)


def tune_memory() -> None:
    """Fit memory management to large values and pages of rows.

    Python is to look for cycles less often: a page of 1000 rows has none, and would be looked through
    for them. glibc is to keep one heap for all threads, since with one for each some 10 MB more are
    held, and in it a few freed megabytes: each value of 400 KB would be given back to the kernel, which
    clears its pages for the next one, a third of a refresh's CPU (source: mallopt(3)).
    """
    gc.set_threshold(20_000)
    if sys.platform == "linux":
        import ctypes

        m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8  # as in malloc.h
        with suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(m_arena_max, 1)
            mallopt(m_mmap_threshold, 32 << 20)
            mallopt(m_trim_threshold, 4 << 20)


def end_process(code: int) -> NoReturn:
    """Exit even while a worker still waits for a reply that nobody needs any more.

    A signal that comes now, such as a Ctrl-C that a launcher passes on, changes nothing: while Python
    ends it would meet no handler of ours.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    logging.shutdown()
    sys.stdout.flush()
    if any(thread.name.startswith(("worker", "writer")) for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)


@contextmanager
def progress_bar(length: int, label: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr where that is a terminal; yields the function that moves it on."""
    if not length or not sys.stderr.isatty():
        yield lambda count: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr, show_pos=True) as bar:
        yield bar.update


def version_text(version: str) -> str:
    """The version, and where the build noted them, the commit and the day."""
    try:
        build = importlib.import_module("tet_build_info")  # the build script writes it
    except ImportError:
        return version
    return f"{version} ({build.COMMIT}, built {build.BUILT})"


class GroupedCommand(click.Command):
    """A command whose --help lists what to do and the settings, whose names are upper case, in two groups.

    However its output ends, it goes on.
    """

    def main(self, *arguments: Any, **named: Any) -> Any:
        """Run it."""
        make_robust()
        return super().main(*arguments, **named)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options."""
        for title, are_settings in (("What to do", False), ("Settings", True)):
            chosen = [each for each in self.get_params(ctx) if str(each.name).isupper() is are_settings]
            with formatter.section(title):
                formatter.write_dl(list(filter(None, (each.get_help_record(ctx) for each in chosen))))
