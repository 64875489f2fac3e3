"""What bench/backend.exs measures, in Python's MLX on a CPU stream.

    backend.py small   prints a JSON object: for each op on small tensors the microseconds to build it,
                       and to build and evaluate it
    backend.py large CACHE   answers every line, the name of a case below, with the milliseconds that
                       one evaluation of it took; CACHE is the limit of MLX's cache in bytes,
                       or default
"""

import json
import sys
import time

import mlx.core as mx

ROUNDS = 7


def best(count, work):
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            work()
        times.append((time.perf_counter() - start) / count)
    return min(times) * 1e6


def small():
    x = mx.array([[1.0, 2.0], [3.0, 4.0]])
    chosen = mx.array([[1, 0], [0, 1]], mx.uint8)
    mx.eval(x, chosen)
    ops = {
        "add": lambda: mx.add(x, x),
        "less": lambda: mx.less(x, x).astype(mx.uint8),
        "sum": lambda: mx.sum(x),
        "dot": lambda: mx.matmul(x, x),
        "select": lambda: mx.where(chosen, x, x),
        "slice": lambda: x[0:1, 0:2],
    }
    return {
        name: {"build": best(20_000, op), "evaluate": best(2_000, lambda: mx.eval(op()))}
        for name, op in ops.items()
    }


def softmax(x):
    e = mx.exp(x - mx.max(x, axis=-1, keepdims=True))
    return e / mx.sum(e, axis=-1, keepdims=True)


def conv_channels_first(x, kernel):
    x, kernel = x.transpose(0, 2, 3, 1), kernel.transpose(0, 2, 3, 1)
    return mx.conv2d(x, kernel, padding=1).transpose(0, 3, 1, 2)


def cases():
    normal = mx.random.normal
    image, kernel = normal((8, 64, 64, 32)), normal((32, 3, 3, 32))
    image_first, kernel_first = normal((8, 32, 64, 64)), normal((32, 32, 3, 3))
    square, rows, line = normal((1024, 1024)), normal((1000, 4000)), normal((1_000_000,))
    table, indices = normal((100_000, 64)), mx.random.randint(0, 100_000, (50_000,))
    mx.eval(image, kernel, image_first, kernel_first, square, rows, line, table, indices)
    return {
        "conv": lambda: mx.conv2d(image, kernel, padding=1),
        "conv_first": lambda: conv_channels_first(image_first, kernel_first),
        "dot": lambda: square @ square,
        "softmax": lambda: softmax(rows),
        "softmax_fused": lambda: mx.softmax(rows, axis=-1),
        "sort": lambda: mx.sort(line),
        "sort_rows": lambda: mx.sort(rows, axis=-1),
        "take": lambda: mx.take(table, indices, axis=0),
    }


def large(cache_limit):
    if cache_limit != "default":
        mx.set_cache_limit(int(cache_limit))
    known = cases()
    mx.clear_cache()
    for line in sys.stdin:
        start = time.perf_counter()
        mx.eval(known[line.strip()]())
        print((time.perf_counter() - start) * 1e3, flush=True)


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    if sys.argv[1:] == ["small"]:
        print(json.dumps(small()))
    elif len(sys.argv) == 3 and sys.argv[1] == "large":
        large(sys.argv[2])
    else:
        sys.exit(__doc__)
