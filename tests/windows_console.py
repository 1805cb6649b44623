"""Run by a Windows Python that has a console: start a program, press a key once its log says a text.

    python windows_console.py KEY TEXT LOG RESULT PROGRAM [argument ...]

KEY is ctrl-c, ctrl-break, or kill, which is what `taskkill /F` does to the process that was started. Into the
file RESULT it writes the program's exit code, or what went wrong.
"""

import ctypes
import pathlib
import subprocess
import sys
import time

CONTROL_EVENTS = {"ctrl-c": 0, "ctrl-break": 1}  # as in wincon.h


def press(key: str, process: "subprocess.Popen[bytes]") -> None:
    """Do that to the program, or to all of this console but us."""
    if key == "kill":
        return process.kill()
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    ignore = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_ulong)(lambda event: 1)  # type: ignore[attr-defined,unused-ignore]
    kernel32.SetConsoleCtrlHandler(ignore, 1)
    if not kernel32.GenerateConsoleCtrlEvent(CONTROL_EVENTS[key], 0):
        raise OSError(ctypes.get_last_error(), "GenerateConsoleCtrlEvent")  # type: ignore[attr-defined,unused-ignore]
    time.sleep(0.5)  # until a thread of the system has called that
    return None


def ended(key: str, text: str, log: pathlib.Path, *command: str) -> str:
    """The exit code of the program, or what went wrong."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not log.exists() or text not in log.read_text("utf-8"):
        if time.monotonic() > deadline or process.poll() is not None:
            return f"{log} does not say {text}; exit code {process.poll()}"
        time.sleep(0.1)
    press(key, process)
    return str(process.wait(20))


key, text, log, result, *command = sys.argv[1:]
try:
    outcome = ended(key, text, pathlib.Path(log), *command)
except Exception as error:
    outcome = repr(error)
pathlib.Path(result).write_text(outcome, "utf-8")
