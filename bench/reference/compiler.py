"""What bench/compiler.exs measures, in Python's MLX on a stream of the CPU, or of the GPU: `compiler.py [gpu]`.

Answers every line, a JSON object `{"case": name, ...}`, with a JSON object `{"ms": [...]}`: the
milliseconds of each repetition.

    decode     one token at a time of a Llama-shaped model: layers, width, cache, type ("f32" or
               "bf16"), count, lane ("plain" or "compile")
    identity   evaluating an array that is evaluated, so many times
    chain      1,000 chained operations on small arrays, built and evaluated
    loop       1,000 iterations, each evaluated
"""

import json
import sys
import time

import mlx.core as mx

mx.set_default_device(mx.gpu if sys.argv[1:] == ["gpu"] else mx.cpu)

HEAD = 64
VOCABULARY = 2048


def timed(count, work):
    times = []
    for _ in range(count):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return times


class Llama:
    """The model of bench/compiler.exs; weights are constant, which costs as much as others."""

    def __init__(self, layers, width, cache, dtype):
        def weight(*shape):
            return mx.full(shape, 1.0 / shape[-1], dtype)

        hidden = width * 11 // 4
        self.width, self.length, self.heads = width, cache, width // HEAD
        self.embedding = weight(VOCABULARY, width)
        self.layers = [
            {
                "norm1": mx.ones((width,), dtype),
                "norm2": mx.ones((width,), dtype),
                **{name: weight(width, width) for name in ("q", "k", "v", "o")},
                "gate": weight(width, hidden),
                "up": weight(width, hidden),
                "down": weight(hidden, width),
            }
            for _ in range(layers)
        ]
        self.norm = mx.ones((width,), dtype)
        self.head = weight(width, VOCABULARY)
        empty = (1, self.heads, cache, HEAD)
        self.cache = [(mx.zeros(empty, dtype), mx.zeros(empty, dtype)) for _ in range(layers)]
        mx.eval(self.embedding, self.layers, self.norm, self.head, self.cache)

    def attend(self, layer, x, offset, cache, mask):
        def project(name):
            y = (x @ layer[name]).reshape(1, 1, self.heads, HEAD)
            return y.transpose(0, 2, 1, 3)

        def rope(y):
            return mx.fast.rope(
                y, HEAD, traditional=False, base=10000.0, scale=1.0, offset=offset
            )

        start = mx.stack([mx.array(0), mx.array(0), offset, mx.array(0)])
        axes = (0, 1, 2, 3)
        keys = mx.slice_update(cache[0], rope(project("k")), start, axes)
        values = mx.slice_update(cache[1], project("v"), start, axes)
        y = mx.fast.scaled_dot_product_attention(
            rope(project("q")), keys, values, scale=HEAD**-0.5, mask=mask
        )
        return y.transpose(0, 2, 1, 3).reshape(1, self.width) @ layer["o"], (keys, values)

    def step(self, token, offset, cache):
        x = self.embedding[token]
        mask = mx.where(mx.arange(self.length) <= offset, 0.0, -1e9).reshape(1, 1, 1, -1)
        mask = mask.astype(x.dtype)
        kept = []
        for layer, old in zip(self.layers, cache):
            y, new = self.attend(layer, mx.fast.rms_norm(x, layer["norm1"], 1e-6), offset, old, mask)
            kept.append(new)
            x = x + y
            y = mx.fast.rms_norm(x, layer["norm2"], 1e-6)
            gate = y @ layer["gate"]
            x = x + (gate * mx.sigmoid(gate) * (y @ layer["up"])) @ layer["down"]
        logits = mx.fast.rms_norm(x, self.norm, 1e-6) @ self.head
        return mx.argmax(logits, axis=-1), kept


MODELS = {}


def decode(layers, width, cache, type, count, lane):
    key = (layers, width, cache, type, lane)
    if key not in MODELS:
        dtype = {"f32": mx.float32, "bf16": mx.bfloat16}[type]
        model = Llama(layers, width, cache, dtype)
        MODELS[key] = model, mx.compile(model.step) if lane == "compile" else model.step
    model, step = MODELS[key]
    state = {"token": mx.array([1]), "offset": 0, "cache": model.cache}

    def one():
        offset = mx.array(state["offset"])
        token, kept = step(state["token"], offset, state["cache"])
        mx.eval(token, kept)
        state.update(token=token, offset=(state["offset"] + 1) % cache, cache=kept)

    return timed(count, one)


def identity(count, length):
    x = mx.array(1.0)
    mx.eval(x)

    def work():
        for _ in range(length):
            mx.eval(x)

    return timed(count, work)


def chain(count, length):
    x = mx.array([1.0, 2.0])

    def work():
        y = x
        for _ in range(length // 2):
            y = mx.tanh(y + x)
        mx.eval(y)

    return timed(count, work)


def loop(count, length):
    limit = mx.array(length)

    def work():
        i = mx.array(0)
        while (i < limit).item():
            i = i + 1
            mx.eval(i)

    return timed(count, work)


CASES = {"decode": decode, "identity": identity, "chain": chain, "loop": loop}

for line in sys.stdin:
    request = json.loads(line)
    case = CASES[request.pop("case")]
    print(json.dumps({"ms": case(**request)}), flush=True)
