#!/usr/bin/env python3
"""SmolLM2 in Python's MLX, op for op the model of examples/smollm2/model.ex: the reference for its
token ids and for its speed.

    smollm2.py MODEL.gguf

Reads requests from stdin, one JSON object a line, and answers each with a line:

    {"mode": "dequantized" | "quantized", "tokens": N, "prompts": [[id, ...], ...]}
    {"answers": [{"ids": [N ids], "first_ms": x, "token_ms": [N - 1 numbers]}, ...]}

Each prompt is continued greedily by N tokens, whatever they are: no token stops it. first_ms is the
time to the first token, token_ms that of each token after it.
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
        x = mx.expand_dims(self.embedding.rows(ids), 0)
        grown = []
        for i, layer in enumerate(self.layers):
            h = mx.fast.rms_norm(x, layer["attn_norm"], self.eps)
            q = self.rope(self.split(layer["attn_q"](h), length, self.heads), offset)
            k = self.rope(self.split(layer["attn_k"](h), length, self.kv_heads), offset)
            v = self.split(layer["attn_v"](h), length, self.kv_heads)
            if cache is not None:
                k = mx.concatenate([cache[i][0], k], axis=2)
                v = mx.concatenate([cache[i][1], v], axis=2)
            grown.append((k, v))
            attended = mx.fast.scaled_dot_product_attention(
                q, k, v, scale=self.head_dim**-0.5, mask="causal" if length > 1 else None
            )
            joined = attended.transpose(0, 2, 1, 3).reshape(1, length, self.heads * self.head_dim)
            x = x + layer["attn_output"](joined)
            h = mx.fast.rms_norm(x, layer["ffn_norm"], self.eps)
            gate = layer["ffn_gate"](h)
            x = x + layer["ffn_down"](gate * mx.sigmoid(gate) * layer["ffn_up"](h))
        last = mx.fast.rms_norm(x[:, length - 1 : length], self.norm, self.eps)
        return mx.argmax(self.embedding.logits(last), axis=-1).reshape(1), grown

    def split(self, x, length, heads):
        return x.reshape(1, length, heads, self.head_dim).transpose(0, 2, 1, 3)

    def rope(self, x, offset):
        return mx.fast.rope(
            x, self.head_dim, traditional=True, base=self.base, scale=1.0, offset=offset
        )


def answer(model, prompt, tokens):
    ids, times, cache, given = [], [], None, mx.array(prompt, mx.uint32)
    for _ in range(tokens):
        started = time.perf_counter()
        given, cache = model.next_token(given, cache)
        ids.append(given.item())
        times.append((time.perf_counter() - started) * 1e3)
    return {"ids": ids, "first_ms": times[0], "token_ms": times[1:]}


def main():
    mx.set_default_device(mx.cpu)
    models = {}
    for line in sys.stdin:
        request = json.loads(line)
        mode = request["mode"]
        if mode not in models:
            models[mode] = Model(sys.argv[1], mode)
        answers = [answer(models[mode], prompt, request["tokens"]) for prompt in request["prompts"]]
        print(json.dumps({"answers": answers}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
