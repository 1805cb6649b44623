"""Which tests failed in the last run, if it was whole: for who runs them again, as `.ci/run` does.

python tests/failed.py 5     # prints one in a line; exit code 1 if they are more, or nobody knows
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CACHE = Path(".pytest_cache/v")
EXIT_FILE = "tests/exit"  # there: pytest's own exit code, which make does not hand on
TESTS_FAILED = 1  # that code where all tests were run


def main() -> int:
    """Print them; returns the exit code."""
    try:
        code = json.loads((CACHE / EXIT_FILE).read_text())
        failed = json.loads((CACHE / "cache" / "lastfailed").read_text())
    except (OSError, ValueError):
        return 1
    if code != TESTS_FAILED or len(failed) > int(sys.argv[1]):
        return 1
    print(*failed, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
