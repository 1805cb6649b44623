"""The program started as a script: it begins anew before it imports anything else."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from .output import make_robust


def run_imported(module: str, function: str) -> None:
    """Let this process, started as a script, begin anew with a module imported, and run its function.

    Python keeps the syntax tree of a script, here some 10 MB, for as long as it runs; of what it imports it
    does not. Returns where that cannot be: on Windows, where a new program is another process, in a frozen
    binary, which has no syntax tree, and without an interpreter to name or to start.
    """
    if os.name != "posix" or getattr(sys, "frozen", False) or not sys.executable:
        return
    make_robust()
    folder = os.path.dirname(os.path.abspath(sys.argv[0]))  # noqa: PTH100, PTH120 (as Python itself does)
    code = f"import sys; sys.path[0] = {folder!r}; sys.argv[0] = {sys.argv[0]!r}; import {module}; "
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
    command = [sys.executable, *options, "-c", f"{code}{module}.{function}()", *sys.argv[1:]]
    sys.stdout.flush()
    with suppress(OSError):  # an interpreter that this user may not run anew
        os.execv(sys.executable, command)  # noqa: S606 (no shell: that is what it is for)
