#!/usr/bin/env python3
"""all-MiniLM-L6-v2 in Python's MLX, op for op the model of examples/minilm/model.ex: the reference for its speed.
(That for its numbers is test/fixtures/minilm.py.)

    minilm.py FOLDER

FOLDER has model.safetensors and config.json. Reads requests from stdin, one JSON object a line. The first
gives the batches, rows of ids and masks that are filled up to one length in each batch:

    {"batches": [{"ids": [[id, ...], ...], "mask": [[1, ..., 0], ...]}, ...]}
    {"embeddings": [[x, ...], ...]}          of the first batch

and each after it asks for all of them, batch by batch, with or without mx.compile:

    {"compiled": true | false}
    {"ms": x}                                until the last embedding is on the host
"""

import json
import math
import sys
import time

import mlx.core as mx


class Model:
    def __init__(self, folder):
        self.w = mx.load(f"{folder}/model.safetensors")
        with open(f"{folder}/config.json") as file:
            config = json.load(file)
        self.layers = config["num_hidden_layers"]
        self.heads = config["num_attention_heads"]
        self.eps = config["layer_norm_eps"]
        self.compiled = mx.compile(self)

    def __call__(self, ids, mask):
        batch, length = ids.shape
        at = "embeddings"
        words, positions, types = (
            self.w[f"{at}.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        x = self.norm(mx.take(words, ids, axis=0) + positions[:length] + types[0], at)
        seen = mask.reshape(batch, 1, 1, length)
        for i in range(self.layers):
            at = f"encoder.layer.{i}"
            q, k, v = (
                self.split(self.dense(x, f"{at}.attention.self.{part}"))
                for part in ("query", "key", "value")
            )
            scale = q.shape[-1] ** -0.5
            attended = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=seen)
            attended = attended.transpose(0, 2, 1, 3).reshape(batch, length, -1)
            attended = self.dense(attended, f"{at}.attention.output.dense")
            x = self.norm(x + attended, f"{at}.attention.output")
            h = self.dense(x, f"{at}.intermediate.dense")
            h = h * (1 + mx.erf(h / math.sqrt(2))) / 2
            x = self.norm(x + self.dense(h, f"{at}.output.dense"), f"{at}.output")
        mask = mx.expand_dims(mask, -1).astype(mx.float32)
        mean = (x * mask).sum(1) / mask.sum(1)
        return mean / mx.sqrt((mean * mean).sum(-1, keepdims=True))

    def dense(self, x, name):
        return mx.addmm(self.w[f"{name}.bias"], x, self.w[f"{name}.weight"].T)

    def norm(self, x, name):
        at = f"{name}.LayerNorm"
        return mx.fast.layer_norm(x, self.w[f"{at}.weight"], self.w[f"{at}.bias"], self.eps)

    def split(self, x):
        batch, length, _width = x.shape
        return x.reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)


def main():
    mx.set_default_device(mx.cpu)
    model = Model(sys.argv[1])
    request = json.loads(sys.stdin.readline())
    batches = [
        (mx.array(batch["ids"], mx.int32), mx.array(batch["mask"], mx.bool_))
        for batch in request["batches"]
    ]
    mx.eval(batches)
    print(json.dumps({"embeddings": model(*batches[0]).tolist()}), flush=True)
    for line in sys.stdin:
        embed = model.compiled if json.loads(line)["compiled"] else model
        started = time.perf_counter()
        for batch in batches:
            memoryview(embed(*batch))
        print(json.dumps({"ms": (time.perf_counter() - started) * 1e3}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
