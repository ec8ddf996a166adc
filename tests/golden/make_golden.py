"""Writes golden.json: what the NumPy reference gives for some sixty small calls that between them use every option.

    python3 make_golden.py PATH/attention_reference.py > golden.json

Queries, keys and values are not stored: both sides make them from `numbers` (GoldenCase.cs has its twin). All are multiples
of 1/1024, so they and every option are exact in float32; results are float64, base64 of little-endian bytes.

Packed sequences, left padding, token trees and chunks are no options of the NumPy reference: a packed sequence is a call of its
own, a padded row one over the keys behind the padding, a node of a tree the last query of the causal call over context and path,
and a query of a chunk the last one of the causal call over the chunk up to it.
"""

import base64
import importlib.util
import json
import sys

import numpy as np


def numbers(seed, shape):
    """Pseudo-random multiples of 1/1024 in [-2, 2)."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) * 2654435761 + seed * 40503
    x = x.astype(np.uint32)
    x ^= x >> np.uint32(16)
    x = (x.astype(np.uint64) * 0x45D9F3B).astype(np.uint32)
    x ^= x >> np.uint32(16)
    return (((x & np.uint32(4095)).astype(np.float64) - 2048) / 1024).reshape(shape)


def encode(array):
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f8").tobytes()).decode()


def bits(seed, shape):
    return numbers(seed, shape) > -1


def bias(seed, shape):
    values = numbers(seed, shape)
    return np.where(values < -1.5, -np.inf, values)


SLOPES = [0.5, 0.25, 0.125, 0.0625]
SINKS = [0.5, -1.0, 3.0, -0.25]
BASE = dict(batch=2, query_len=3, key_len=9, query_heads=4, kv_heads=2, head_dim=5, value_dim=3)
TREE = dict(dfs_start=[[0, 1, 2], [1, 1, 0]], dfs_end=[[3, 3, 2, 1, 1, 0, 3, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3, 0]])

CASES = [
    ("plain", {}, {}),
    ("one query", dict(query_len=1), {}),
    ("one key", dict(key_len=1), {}),
    ("no key", dict(key_len=0), {}),
    ("no key with sinks", dict(key_len=0), dict(sinks=SINKS)),
    ("multi-head", dict(kv_heads=4), {}),
    ("multi-query", dict(kv_heads=1), {}),
    ("wide values", dict(head_dim=3, value_dim=17), {}),
    ("wide keys", dict(head_dim=33, value_dim=1), {}),
    ("scale", {}, dict(scale=0.75)),
    ("scale 0 gives the mean", {}, dict(scale=0.0)),
    ("negative scale", {}, dict(scale=-1.5)),
    ("large scale", {}, dict(scale=4096.0)),
    ("causal", {}, dict(causal=True)),
    ("causal, more queries than keys", dict(query_len=7, key_len=4), dict(causal=True)),
    ("causal, as many queries as keys", dict(query_len=6, key_len=6), dict(causal=True)),
    ("window", {}, dict(window=[2, 1])),
    ("window of one key", {}, dict(window=[0, 0])),
    ("left window", {}, dict(window=[3, -1])),
    ("right window", dict(query_len=8, key_len=5), dict(window=[-1, 0])),
    ("causal window", {}, dict(causal=True, window=[4, 2])),
    ("softcap", {}, dict(softcap=1.5, scale=2.0)),
    ("alibi by head", {}, dict(alibi=SLOPES)),
    ("alibi by batch and head", {}, dict(alibi=SLOPES + SLOPES[::-1], causal=True)),
    ("sinks", {}, dict(sinks=SINKS)),
    ("sinks that take everything or nothing", {}, dict(sinks=[2.0 ** 100, -(2.0 ** 100), 700.0, -700.0])),
    ("ragged keys", {}, dict(key_lengths=[9, 4])),
    ("ragged keys, one empty", {}, dict(key_lengths=[0, 7], causal=True)),
    ("ragged keys, one empty, sinks", {}, dict(key_lengths=[0, 7], sinks=SINKS)),
    ("ragged queries", {}, dict(query_lengths=[1, 3], causal=True)),
    ("ragged queries, one empty, sinks", {}, dict(query_lengths=[0, 2], sinks=SINKS)),
    ("ragged both, window, alibi", {}, dict(key_lengths=[5, 8], query_lengths=[3, 2], window=[3, 1], alibi=SLOPES)),
    ("ragged keys shorter than queries", dict(query_len=6), dict(key_lengths=[2, 9], causal=True)),
    ("depth-first tree", {}, TREE),
    ("depth-first tree, ragged", {}, dict(key_lengths=[9, 6], query_lengths=[2, 3], **TREE)),
    ("tail mask", {}, dict(tail_mask=4)),
    ("tail mask longer than the keys", {}, dict(tail_mask=12)),
    ("tail mask, ragged, fewer keys than tail", {}, dict(tail_mask=5, key_lengths=[3, 9], causal=True)),
    ("tail bias shared", {}, dict(tail_bias=[1, 4])),
    ("tail bias by batch", {}, dict(tail_bias=[2, 5], key_lengths=[4, 9])),
    ("tail bias after softcap", {}, dict(tail_bias=[1, 9], softcap=0.5, scale=3.0)),
    ("everything", dict(query_len=4, key_len=13, query_heads=4, kv_heads=1), dict(
        scale=0.5, causal=True, window=[9, 3], softcap=2.0, alibi=SLOPES, sinks=SINKS, key_lengths=[13, 8],
        query_lengths=[4, 3], tail_mask=6, tail_bias=[2, 3])),
    ("left padding", {}, dict(leftpad=[2, 5])),
    ("left padding, causal window, alibi", dict(query_len=5), dict(leftpad=[3, 0], causal=True, window=[4, -1], alibi=SLOPES)),
    ("left padding, ragged keys, one all padding, sinks", {}, dict(leftpad=[6, 2], key_lengths=[6, 8], sinks=SINKS)),
    ("left padding, tail mask over it", {}, dict(leftpad=[7, 1], tail_mask=4)),
    ("packed", dict(batch=1, query_len=6, key_len=11), dict(cu_q=[0, 2, 5, 6], cu_k=[0, 4, 8, 11])),
    ("packed, causal, alibi by sequence", dict(batch=1, query_len=6, key_len=11), dict(
        cu_q=[0, 3, 6], cu_k=[0, 4, 11], causal=True, alibi=SLOPES + SLOPES[::-1])),
    ("packed, window, one without keys, one without queries", dict(batch=1, query_len=5, key_len=9), dict(
        cu_q=[0, 1, 4, 4, 5], cu_k=[0, 0, 5, 8, 9], window=[2, 0], sinks=SINKS)),
    ("packed, more queries than keys, tails", dict(batch=1, query_len=7, key_len=8), dict(
        cu_q=[0, 4, 7], cu_k=[0, 2, 8], causal=True, tail_mask=3, tail_bias=[1, 2])),
    ("token tree", dict(query_len=6, key_len=10), dict(parents=[-1, 0, 0, 1, 1, 2])),
    ("token tree, causal, alibi by depth", dict(query_len=6, key_len=10), dict(
        parents=[-1, 0, 1, 0, 3, 3], causal=True, alibi=SLOPES)),
    ("token tree, window by depth, sinks", dict(query_len=7, key_len=12), dict(
        parents=[-1, 0, 0, 1, 2, 3, 4], window=[2, 1], sinks=SINKS, softcap=1.5)),
    ("token tree without context", dict(batch=1, query_len=5, key_len=5), dict(parents=[-1, 0, 0, 1, 3], causal=True, alibi=SLOPES)),
    ("chunks", dict(query_len=6, key_len=13), dict(local_chunk=4)),
    ("chunks, window, alibi, sinks", dict(query_len=9, key_len=9), dict(local_chunk=5, window=[2, -1], alibi=SLOPES, sinks=SINKS)),
    ("chunks, more queries than keys", dict(query_len=7, key_len=4), dict(local_chunk=2)),
    ("chunks, ragged", dict(query_len=5, key_len=12), dict(local_chunk=3, key_lengths=[12, 7], query_lengths=[3, 5])),
    ("chunks behind left padding", dict(query_len=5, key_len=12), dict(local_chunk=4, leftpad=[3, 1])),
    ("chunks of packed sequences", dict(batch=1, query_len=8, key_len=15), dict(local_chunk=4, cu_q=[0, 5, 8], cu_k=[0, 6, 15])),
    ("lse to base 2", {}, dict(lse_base=2, causal=True, sinks=SINKS)),
    ("lse to base 2, no key", dict(key_len=0), dict(lse_base=2)),
]


def packed(reference, q, k, v, cu_q, cu_k, alibi_slopes=None, **options):
    """Each packed sequence alone, put together along the packed axis."""
    outs, lses = [], []
    for s in range(len(cu_q) - 1):
        queries, keys = slice(cu_q[s], cu_q[s + 1]), slice(cu_k[s], cu_k[s + 1])
        own = {name: value[:, queries] if name in ("tail_mask", "tail_bias") else value for name, value in options.items()}
        if alibi_slopes is not None:
            own["alibi_slopes"] = alibi_slopes if alibi_slopes.ndim == 1 else alibi_slopes[s]
        out, lse = attend(reference, q[:, queries], k[:, keys], v[:, keys], own)
        outs.append(out)
        lses.append(lse)
    return np.concatenate(outs, axis=1), np.concatenate(lses, axis=2)


def padded(reference, q, k, v, leftpad, kv_lengths=None, tail_mask=None, **options):
    """Each batch row over the keys behind its padding."""
    rows = []
    for b, first in enumerate(leftpad):
        keys = slice(first, k.shape[1] if kv_lengths is None else max(first, kv_lengths[b]))
        own = options if tail_mask is None else dict(options, tail_mask=tail_mask[b:b + 1])
        rows.append(attend(reference, q[b:b + 1], k[b:b + 1, keys], v[b:b + 1, keys], own))
    return np.concatenate([out for out, _ in rows]), np.concatenate([lse for _, lse in rows])


def tree(reference, q, k, v, parents, **options):
    """Each node as the last query of the causal call over the context and its path."""
    outs, lses = [], []
    context = k.shape[1] - len(parents)
    for node in range(len(parents)):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        keys = list(range(context)) + [context + seen for seen in path]
        out, lse = reference.attention(q[:, node:node + 1], k[:, keys], v[:, keys], **options)
        outs.append(out)
        lses.append(lse)
    return np.concatenate(outs, axis=1), np.concatenate(lses, axis=2)


def chunked(reference, q, k, v, local_chunk, kv_lengths=None, query_lengths=None, **options):
    """Each query as the last one of the causal call over the keys of its chunk up to it."""
    (batch, queries, heads, _), value_dim = q.shape, v.shape[3]
    outs, lses = np.zeros((batch, queries, heads, value_dim)), np.full((batch, heads, queries), -np.inf)
    for b in range(batch):
        own_keys = k.shape[1] if kv_lengths is None else kv_lengths[b]
        own_queries = queries if query_lengths is None else query_lengths[b]
        for i in range(own_queries):
            position = own_keys - own_queries + i
            keys = slice(max(0, position // local_chunk * local_chunk), max(0, position + 1))
            out, lse = reference.attention(q[b:b + 1, i:i + 1], k[b:b + 1, keys], v[b:b + 1, keys], causal=True, **options)
            outs[b, i], lses[b, :, i] = out[0, 0], lse[0, :, 0]
    return outs, lses


def based(reference, q, k, v, lse_base, **options):
    out, lse = attend(reference, q, k, v, options)
    return out, lse / np.log(lse_base)


def attend(reference, q, k, v, options):
    ways = dict(lse_base=based, cu_q=packed, leftpad=padded, parents=tree, local_chunk=chunked)
    way = next((ways[option] for option in ways if option in options), None)
    return reference.attention(q, k, v, **options) if way is None else way(reference, q, k, v, **options)


def run(reference, index, name, shape, options):
    sizes = {**BASE, **shape}
    batch, query_len = sizes["batch"], sizes["query_len"]
    q = numbers(3 * index, (batch, query_len, sizes["query_heads"], sizes["head_dim"]))
    k = numbers(3 * index + 1, (batch, sizes["key_len"], sizes["kv_heads"], sizes["head_dim"]))
    v = numbers(3 * index + 2, (batch, sizes["key_len"], sizes["kv_heads"], sizes["value_dim"]))
    given, written = dict(options), dict(options)
    rename = dict(alibi="alibi_slopes", key_lengths="kv_lengths", dfs_start="dfs_start_q", dfs_end="dfs_end_k")
    if "tail_mask" in given:
        given["tail_mask"] = bits(1000 + index, (batch, query_len, options["tail_mask"]))
    if "tail_bias" in given:
        rows, length = options["tail_bias"]
        given["tail_bias"] = bias(2000 + index, (rows, query_len, length))
    if "alibi" in given:
        given["alibi"] = np.reshape(given["alibi"], (-1, sizes["query_heads"])).squeeze()
    for old in ("dfs_start", "dfs_end"):
        if old in given:
            given[old] = np.array(given[old])
            written[old] = given[old].ravel().tolist()
    out, lse = attend(reference, q, k, v, {rename.get(key, key): value for key, value in given.items()})
    return dict(name=name, index=index, **sizes, **written, output=encode(out), lse=encode(lse))


def main():
    spec = importlib.util.spec_from_file_location("attention_reference", sys.argv[1])
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    rows = [json.dumps(run(reference, index, *case)) for index, case in enumerate(CASES)]
    print("[\n" + ",\n".join(rows) + "\n]")


if __name__ == "__main__":
    main()
