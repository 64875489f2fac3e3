"""What bench/native.exs measures, in Python's MLX on a CPU stream. Prints a JSON object.

    native.py ops      microseconds of one op built, and of one built and evaluated
    native.py matmul   GFLOP/s of an f32 product of 1024
    native.py openblas the same product by OpenBLAS itself, on all cores, without MLX
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 7
SIZE = 1024


def best(count, work):
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            work()
        times.append((time.perf_counter() - start) / count)
    return min(times) * 1e6


def gflops(microseconds):
    return 2 * SIZE**3 / microseconds / 1e3


def ops():
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    x = mx.array([1.0, 2.0])
    mx.eval(x)
    return {
        "build": best(100_000, lambda: mx.add(x, x)),
        "build_eval": best(5_000, lambda: mx.eval(mx.add(x, x))),
    }


def matmul():
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    a, b = mx.random.normal((SIZE, SIZE)), mx.random.normal((SIZE, SIZE))
    mx.eval(a, b)
    return {"gflops": gflops(best(1, lambda: mx.eval(a @ b)))}


def openblas():
    import numpy as np

    fetch = Path(__file__).resolve().parents[2] / "native" / "fetch.py"
    wheel = subprocess.check_output([sys.executable, str(fetch), "scipy-openblas32"], text=True)
    library = ctypes.CDLL(wheel.strip() + "/scipy_openblas32/lib/libscipy_openblas.so")
    library.scipy_openblas_set_num_threads(os.cpu_count())
    a, b = (np.random.rand(SIZE, SIZE).astype(np.float32) for _ in range(2))
    c = np.zeros((SIZE, SIZE), np.float32)
    pointer = lambda array: array.ctypes.data_as(ctypes.c_void_p)
    one, zero = ctypes.c_float(1), ctypes.c_float(0)

    def multiply():
        library.scipy_cblas_sgemm(
            101, 111, 111, SIZE, SIZE, SIZE, one, pointer(a), SIZE, pointer(b), SIZE, zero,
            pointer(c), SIZE,
        )

    return {"gflops": gflops(best(10, multiply))}


if __name__ == "__main__":
    print(json.dumps({"ops": ops, "matmul": matmul, "openblas": openblas}[sys.argv[1]]()))
