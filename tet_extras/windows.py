"""What Windows does in a way of its own: the console's events, memory, locks on files. Loaded there alone."""

from __future__ import annotations

import ctypes
import msvcrt
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

assert sys.platform == "win32", "loaded on Windows alone"  # noqa: S101

CLOSE_EVENTS = {2: "console closed", 5: "logoff", 6: "shutdown"}  # as in wincon.h
CLOSE_SECONDS = 4.5  # Windows ends the process 5 s after the event, or when the handler returns


class MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS, as in psapi.h."""

    _fields_ = (
        ("size", ctypes.c_ulong),
        ("page_faults", ctypes.c_ulong),
        *(
            (name, ctypes.c_size_t)
            for name in (
                "peak_working_set working_set peak_paged_pool paged_pool peak_nonpaged_pool nonpaged_pool "
                "pagefile peak_pagefile"
            ).split()
        ),
    )


def resident_bytes() -> int | None:
    """The working set of this process; None where the system does not say."""
    kernel32 = ctypes.WinDLL("kernel32")
    kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    counters = MemoryCounters(ctypes.sizeof(MemoryCounters))
    process = ctypes.c_void_p(kernel32.GetCurrentProcess())
    told = kernel32.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size)
    return int(counters.working_set) if told else None


def on_close(stop: Callable[[], None]) -> None:
    """Have ``stop`` called when the console is closed, or the user logs off, in a thread of the system.

    That thread then waits for the process to end, as long as Windows allows it to.
    """

    def handle(event: int) -> bool:
        if event in CLOSE_EVENTS:
            stop()
            threading.Event().wait(CLOSE_SECONDS)
        return False

    handler = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_ulong)(handle)
    _kept.append(handler)
    ctypes.WinDLL("kernel32").SetConsoleCtrlHandler(handler, 1)


_kept: list[Any] = []  # what the system calls must not be collected


def lock(file: IO[bytes]) -> None:
    """Take a file for as long as it is open. Raises BlockingIOError where another process has it."""
    file.seek(0)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        raise BlockingIOError(error.errno, error.strerror) from error


def end_with(process_id: int, end: Callable[[], None]) -> None:
    """Have ``end`` called in a thread of its own as soon as that process is gone."""
    synchronize, forever = 0x00100000, 0xFFFFFFFF
    kernel32 = ctypes.WinDLL("kernel32")
    kernel32.OpenProcess.restype = ctypes.c_void_p
    handle = kernel32.OpenProcess(synchronize, 0, process_id)

    def wait() -> None:
        kernel32.WaitForSingleObject(ctypes.c_void_p(handle), forever)
        end()

    if handle:
        threading.Thread(target=wait, name="launcher", daemon=True).start()
