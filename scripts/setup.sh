#!/usr/bin/env bash
# Makes .venv with the locked packages; a second run costs nothing.  Usage: scripts/setup.sh [aot|parity]
set -euo pipefail
cd "$(dirname "$0")/.."
readonly open3d_libraries="libusb-1.0-0 libgl1 libegl1 libx11-6 libgomp1"

stamped() { [ -f "$1" ] && sha256sum --check --status "$1"; }
stamp() { sha256sum "${@:2}" > "$1"; }

find_python() {
    local python
    for python in "${PYTHON:-}" python3.11 python3 python; do
        if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "setup: no Python 3.11 or newer found; install it (Debian: apt-get install python3 python3-venv)" >&2
    return 1
}

make_environment() {
    local python version
    [ -x .venv/bin/python ] && .venv/bin/python -m pip --version > /dev/null 2>&1 && return
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        echo "setup: $python cannot make a virtual environment; run: apt-get install python$version-venv" >&2
        return 1
    fi
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
}

# Only reading and writing point clouds with Open3D needs these, so their absence is a note and not an error.
provide_open3d_libraries() {
    .venv/bin/python -c 'import open3d' > /dev/null 2>&1 && return
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        echo "setup: installing the system libraries of Open3D ($open3d_libraries)"
        (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            $open3d_libraries) > .venv/apt.log 2>&1 || true
        .venv/bin/python -c 'import open3d' > /dev/null 2>&1 && return
    fi
    echo "setup: Open3D cannot load its system libraries; run: sudo apt-get install -y $open3d_libraries" >&2
}

if ! stamped .venv/.installed; then
    make_environment
    echo "setup: installing the locked packages (some minutes the first time)"
    .venv/bin/python -m pip install -qq --disable-pip-version-check -r requirements.lock
    provide_open3d_libraries
    stamp .venv/.installed requirements.lock
fi

if [ "${1:-}" = parity ] && ! stamped .venv/.installed-parity; then
    echo "setup: installing the peers for tests/parity"
    .venv/bin/python -m pip install -qq --disable-pip-version-check -r requirements-parity.txt -c requirements.lock
    stamp .venv/.installed-parity requirements.lock requirements-parity.txt
fi

# In a folder of its own, which only tests look into: where JAX finds libtpu it asks for a TPU, and complains.
if [ -n "${1:-}" ] && ! stamped .venv/.installed-aot; then
    echo "setup: installing libtpu for tests/parallel"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --target .venv/aot --upgrade -r requirements-aot.txt
    stamp .venv/.installed-aot requirements-aot.txt
fi
