#!/bin/sh
# Make the binary for this platform and the zipapp, with their SHA256SUMS, in dist/ (or in $OUT).
# Needs Python 3.11 or newer ($PYTHON, else the newest found), pip's network, and nothing else.
# Usage: ./build.sh [all|binary|zipapp]
set -eu
here=$(cd "$(dirname "$0")" && pwd)

find_python() {
    for candidate in "${PYTHON:-}" python3.14 python3.13 python3.12 python3.11 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "build.sh: Python 3.11 or newer is needed; set PYTHON to where it is" >&2
    return 1
}

python=$(find_python)
exec "$python" "$here/deploy/build.py" "$@"
