#!/usr/bin/env bash
# Runs a Python script with MLX of the version that Emily uses, in a virtual environment in the
# cache, which the first run makes; on Linux over the BLAS that Emily uses (see blas_shim.c).
#   python.sh SCRIPT [ARGUMENT...]
#   PLAIN_BLAS=1 python.sh ...     with the BLAS that the wheel of MLX brings
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${EMILY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/emily}/bench
stamp=$(cat "$here/requirements.txt" "$here/blas_shim.c" | cksum | cut -d ' ' -f 1)
venv=$cache/venv-$stamp

if [ ! -e "$venv/ready" ]; then
  mkdir -p "$cache"
  {
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    if [ "$(uname -s)" = Linux ]; then
      lib=$(python3 "$here/../../native/fetch.py" scipy-openblas32)/scipy_openblas32/lib
      "${CC:-cc}" -shared -fPIC -O2 -o "$venv/blas_shim.so" "$here/blas_shim.c" \
        -L "$lib" -lscipy_openblas -Wl,-rpath,"$lib"
    fi
    touch "$venv/ready"
  } >&2
fi

if [ -z "${PLAIN_BLAS:-}" ] && [ -e "$venv/blas_shim.so" ]; then
  export LD_PRELOAD=$venv/blas_shim.so
fi
exec "$venv/bin/python" "$@"
