#!/bin/sh
# Start TET Data Service: the binary for this platform, else the zipapp, else the source in a virtual
# environment of its own. Arguments are passed on; without any, config.txt beside this script is used.
# Usage: ./run.sh [--demo | --config=FILE | any other flag; see ./run.sh --help]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export TET_STARTED_AS="$0" # for the commands that the demo prints

say() {
    echo "run.sh: $*" >&2
}

platform() {
    system=$(uname -s | tr '[:upper:]' '[:lower:]')
    machine=$(uname -m)
    case $machine in
        x86_64) machine=amd64 ;;
        aarch64) machine=arm64 ;;
    esac
    echo "$system-$machine"
}

find_python() {
    for candidate in "${PYTHON:-}" python3.14 python3.13 python3.12 python3.11 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    say "Python 3.11 or newer is needed; set PYTHON to where it is"
    return 1
}

# The Python of the development environment, when make has it up to date.
development_python() {
    if [ -z "${PYTHON:-}" ] && [ -n "$(find "$here/.venv/ready" -newer "$here/pyproject.toml" 2>/dev/null)" ]; then
        echo "$here/.venv/bin/python"
    fi
}

if [ $# -eq 0 ]; then
    if [ ! -f "$here/config.txt" ]; then
        (umask 077 && cp "$here/config.example" "$here/config.txt")
        say "made $here/config.txt: put your BINANCE_API_KEY and BINANCE_SECRET_KEY into it, or set"
        say "PUBLIC_DATA=true to run without keys; then start me again. ./run.sh --demo needs neither."
        exit 2
    fi
    set -- "--config=$here/config.txt"
fi

for folder in "$here" "$here/dist"; do
    binary=$folder/tet-data-service-$(platform)
    if [ -x "$binary" ]; then
        say "starting $binary"
        exec "$binary" "$@"
    fi
done

python=$(development_python)
for folder in "$here" "$here/dist"; do
    if [ -f "$folder/tet-data-service.pyz" ]; then
        python=${python:-$(find_python)}
        say "starting $folder/tet-data-service.pyz with $python"
        exec "$python" "$folder/tet-data-service.pyz" "$@"
    fi
done

if [ -z "$python" ]; then
    python=$(find_python)
    "$python" "$here/deploy/build.py" venv "$here/.venv-run" >&2
    python=$here/.venv-run/bin/python
fi
say "starting $here/tet_data_service.py with $python"
exec "$python" "$here/tet_data_service.py" "$@"
