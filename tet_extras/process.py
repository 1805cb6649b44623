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
from typing import NoReturn

import click

MAX_STOP_SECONDS = 4.5


def stop_on_signals(stop: Callable[[str], None], code: int) -> None:
    """Let SIGINT and SIGTERM stop the service; a second one a second later, or `MAX_STOP_SECONDS`, end it.

    The handler only puts a note into a queue, which is safe at any moment; a thread of its own reads it
    and calls ``stop`` with the signal's name: that may take a lock that the interrupted thread holds.
    ``code`` is the exit code of a stop that had to be cut short: nothing is half-written, since Redis
    writes in one step.
    """
    notes: queue.SimpleQueue[int] = queue.SimpleQueue()

    def watch() -> None:
        stop(signal.Signals(notes.get()).name)
        began = time.monotonic()
        with suppress(queue.Empty):
            while (now := time.monotonic()) < began + MAX_STOP_SECONDS:
                notes.get(timeout=began + MAX_STOP_SECONDS - now)
                # A terminal's Ctrl-C comes twice when a launcher passes its own on.
                if time.monotonic() - began > 1:
                    os._exit(1)
        os._exit(code)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, frame: notes.put(signum))


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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.shutdown()
    sys.stdout.flush()
    if any(thread.name.startswith(("worker", "writer")) for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)


def run_imported(module: str, function: str) -> None:
    """Let this process, started as a script, begin anew with a module imported, and run its function.

    Python keeps the syntax tree of a script, here some 10 MB, for as long as it runs; of what it imports it
    does not. Returns where that cannot be: on Windows, where a new program is another process, in a frozen
    binary, which has no syntax tree, and without an interpreter to name.
    """
    if os.name != "posix" or getattr(sys, "frozen", False) or not sys.executable:
        return
    folder = os.path.dirname(os.path.abspath(sys.argv[0]))  # noqa: PTH100, PTH120 (as Python itself does)
    code = f"import sys; sys.path[0] = {folder!r}; sys.argv[0] = {sys.argv[0]!r}; import {module}; "
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
    command = [sys.executable, *options, "-c", f"{code}{module}.{function}()", *sys.argv[1:]]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606 (no shell: that is what it is for)


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
    """A command whose --help lists what to do and the settings, whose names are upper case, in two groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options."""
        for title, are_settings in (("What to do", False), ("Settings", True)):
            chosen = [each for each in self.get_params(ctx) if str(each.name).isupper() is are_settings]
            with formatter.section(title):
                formatter.write_dl(list(filter(None, (each.get_help_record(ctx) for each in chosen))))
