"""What bench/program.exs measures, in Python's MLX on a CPU stream. Reads the names of measurements, one
a line, takes each once and prints its microseconds.
"""

import sys
import time

import mlx.core as mx

mx.set_default_device(mx.cpu)
OPS = 1_000
ITERATIONS = 1_000
x = mx.array([0.5, 0.25, 0.125, 1.0])
one, limit, half = mx.array(1), mx.array(ITERATIONS), mx.array(0.5)
mx.eval(x, one, limit, half)


def chain():
    y = x
    for _ in range(OPS // 2):
        y = mx.multiply(mx.add(y, x), half)
    mx.eval(y)


def loop():
    """State and condition are evaluated together: the fastest loop that Python has."""
    count, y = mx.array(0), x
    condition = mx.less(count, limit)
    mx.eval(condition)
    while condition.item():
        count, y = mx.add(count, one), mx.multiply(mx.add(y, x), half)
        condition = mx.less(count, limit)
        mx.eval(count, y, condition)


def one_op():
    mx.eval(mx.add(x, x))


fused = mx.compile(lambda y, x: decode_like(y, x))


def decode_like(y, x):
    for _ in range(50):
        y = mx.multiply(mx.add(mx.sin(y), x), half)
        y = mx.matmul(y, weight)
    return y


weight, wide = mx.full((64, 64), 0.01), mx.full((1, 64), 0.5)
mx.eval(weight, wide)
MEASURED = {
    "chain": (20, chain),
    "loop": (2, loop),
    "one_op": (1_000, one_op),
    "blocks": (20, lambda: mx.eval(decode_like(wide, wide))),
    "blocks_fused": (20, lambda: mx.eval(fused(wide, wide))),
}

for line in sys.stdin:
    count, work = MEASURED[line.strip()]
    work()
    start = time.perf_counter()
    for _ in range(count):
        work()
    print((time.perf_counter() - start) / count * 1e6, flush=True)
