#!/usr/bin/env python3
"""SmolLM2 in Python's MLX, op for op the model of examples/smollm2/model.ex and, with a cache of a fixed
length, that of examples/smollm2_nx/model.ex: the reference for their token ids and for their speed.

    smollm2.py MODEL.gguf

Reads requests from stdin, one JSON object a line, and answers each with a line:

    {"mode": "dequantized" | "quantized", "tokens": N, "prompts": [[id, ...], ...],
     "positions": P, "compiled": true | false}
    {"answers": [{"ids": [N ids], "first_ms": x, "token_ms": [N - 1 numbers], "cpu_ms": x}, ...]}

Each prompt is continued greedily by N tokens, whatever they are: no token stops it. first_ms is the
time to the first token, token_ms that of each token after it, and cpu_ms the processor time of these.

Without "positions" the cache grows with every token. With it the cache has room for P of them and all
steps have the same shapes, and with "compiled" a step is one function of mx.compile.
"""

import json
import sys
import time

import mlx.core as mx

GROUP = 32


class Dense:
    """A weight in f32, transposed once so that a product reads it in the order it lies in."""

    def __init__(self, weights, name):
        self.matrix = mx.contiguous(dequantize(*packed(weights, name)).T)

    def __call__(self, x):
        return x @ self.matrix


class Packed:
    """A weight as the file has it, 4 or 8 bits an element, with scales and biases in f32."""

    def __init__(self, weights, name):
        self.weight, self.scales, self.biases, self.bits = packed(weights, name)

    def __call__(self, x):
        return mx.quantized_matmul(
            x, self.weight, self.scales, self.biases,
            transpose=True, group_size=GROUP, bits=self.bits,
        )


class DenseEmbedding:
    def __init__(self, weights, name):
        self.table = dequantize(*packed(weights, name))

    def rows(self, ids):
        return mx.take(self.table, ids, axis=0)

    def logits(self, x):
        return x @ self.table.T


class PackedEmbedding(Packed):
    def rows(self, ids):
        parts = (mx.take(part, ids, axis=0) for part in (self.weight, self.scales, self.biases))
        return dequantize(*parts, self.bits)

    def logits(self, x):
        return self(x)


def packed(weights, name):
    weight = weights[f"{name}.weight"]
    scales = weights[f"{name}.scales"].astype(mx.float32)
    biases = weights[f"{name}.biases"].astype(mx.float32)
    bits = weight.shape[1] * 32 // (scales.shape[1] * GROUP)
    return weight, scales, biases, bits


def dequantize(weight, scales, biases, bits):
    return mx.dequantize(weight, scales, biases, group_size=GROUP, bits=bits)


class Model:
    def __init__(self, path, mode):
        weights, metadata = mx.load(path, return_metadata=True)
        get = lambda key: metadata[f"llama.{key}"].item()
        self.compiled = None
        self.heads = get("attention.head_count")
        self.kv_heads = get("attention.head_count_kv")
        self.head_dim = get("rope.dimension_count")
        self.eps = get("attention.layer_norm_rms_epsilon")
        self.base = get("rope.freq_base")
        linear, embedding = {
            "dequantized": (Dense, DenseEmbedding),
            "quantized": (Packed, PackedEmbedding),
        }[mode]
        products = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
        self.embedding = embedding(weights, "token_embd")
        self.norm = weights["output_norm.weight"]
        self.layers = [
            {name: linear(weights, f"blk.{i}.{name}") for name in products}
            | {name: weights[f"blk.{i}.{name}.weight"] for name in ("attn_norm", "ffn_norm")}
            for i in range(get("block_count"))
        ]

    def next_token(self, ids, cache):
        """The token after ids, a u32 tensor {length}, and the cache with their keys and values."""
        length = ids.shape[0]
        offset = 0 if cache is None else cache[0][0].shape[2]

        def attend(i, q, k, v):
            q, k = self.rope(q, offset), self.rope(k, offset)
            if cache is not None:
                k = mx.concatenate([cache[i][0], k], axis=2)
                v = mx.concatenate([cache[i][1], v], axis=2)
            return self.attention(q, k, v, "causal" if length > 1 else None), (k, v)

        return self.forward(ids, attend)

    def next_token_at(self, ids, offset, cache):
        """The token after ids, a u32 tensor {1}, which goes to position offset, an s32 scalar, of the
        cache; and the cache with its keys and values."""
        positions = cache[0][0].shape[2]
        seen = (mx.arange(positions) <= offset).reshape(1, 1, 1, positions)
        start = offset.reshape(1)

        def attend(i, q, k, v):
            q, k = self.rope(q, offset), self.rope(k, offset)
            keys = mx.slice_update(cache[i][0], k, start, (2,))
            values = mx.slice_update(cache[i][1], v, start, (2,))
            return self.attention(q, keys, values, seen), (keys, values)

        return self.forward(ids, attend)

    def step(self):
        """next_token_at, compiled: once, for all answers of one cache's length."""
        if self.compiled is None:
            self.compiled = mx.compile(self.next_token_at)
        return self.compiled

    def attention(self, q, k, v, mask):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5, mask=mask)

    def forward(self, ids, attend):
        length = ids.shape[0]
        x = mx.expand_dims(self.embedding.rows(ids), 0)
        cache = []
        for i, layer in enumerate(self.layers):
            h = mx.fast.rms_norm(x, layer["attn_norm"], self.eps)
            q = self.split(layer["attn_q"](h), length, self.heads)
            k = self.split(layer["attn_k"](h), length, self.kv_heads)
            v = self.split(layer["attn_v"](h), length, self.kv_heads)
            attended, cached = attend(i, q, k, v)
            cache.append(cached)
            joined = attended.transpose(0, 2, 1, 3).reshape(1, length, self.heads * self.head_dim)
            x = x + layer["attn_output"](joined)
            h = mx.fast.rms_norm(x, layer["ffn_norm"], self.eps)
            gate = layer["ffn_gate"](h)
            x = x + layer["ffn_down"](gate * mx.sigmoid(gate) * layer["ffn_up"](h))
        last = mx.fast.rms_norm(x[:, length - 1 : length], self.norm, self.eps)
        return mx.argmax(self.embedding.logits(last), axis=-1).reshape(1), cache

    def split(self, x, length, heads):
        return x.reshape(1, length, heads, self.head_dim).transpose(0, 2, 1, 3)

    def rope(self, x, offset):
        return mx.fast.rope(
            x, self.head_dim, traditional=True, base=self.base, scale=1.0, offset=offset
        )


def answer(model, prompt, tokens, positions, compiled):
    ids, times, cpu = [], [], []

    def timed(step, *given):
        started = time.perf_counter()
        token, cache = step(*given)
        ids.append(token.item())
        times.append((time.perf_counter() - started) * 1e3)
        cpu.append(time.process_time() * 1e3)
        return token, cache

    if positions is None:
        token, cache = timed(model.next_token, mx.array(prompt, mx.uint32), None)
        for _ in range(tokens - 1):
            token, cache = timed(model.next_token, token, cache)
    else:
        token, cache = timed(lambda: prefilled(model, prompt, positions))
        step = model.step() if compiled else model.next_token_at
        for offset in range(len(prompt), len(prompt) + tokens - 1):
            token, cache = timed(step, token, mx.array(offset), cache)
    return {
        "ids": ids, "first_ms": times[0], "token_ms": times[1:], "cpu_ms": cpu[-1] - cpu[0],
    }


def prefilled(model, prompt, positions):
    """The first token, and a cache with room for so many positions."""
    token, cache = model.next_token(mx.array(prompt, mx.uint32), None)
    room = [(0, 0), (0, 0), (0, positions - len(prompt)), (0, 0)]
    cache = [tuple(mx.pad(x, room) for x in layer) for layer in cache]
    mx.eval(token, cache)
    return token, cache


def main():
    mx.set_default_device(mx.cpu)
    models = {}
    for line in sys.stdin:
        request = json.loads(line)
        mode = request["mode"]
        if mode not in models:
            models[mode] = Model(sys.argv[1], mode)
        how = request["tokens"], request.get("positions"), request.get("compiled", False)
        answers = [answer(models[mode], prompt, *how) for prompt in request["prompts"]]
        print(json.dumps({"answers": answers}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
