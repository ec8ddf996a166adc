"""The numbers that treeattn bench makes for itself, made again here: SplitMix64 started at a hash of seed, tensor, batch row,
head and position, so that both sides attend to the same queries, keys and values and no file is needed.

Written once for NumPy and PyTorch: int64 arrays wrap in both, and a logical shift is an arithmetic one with a mask.
"""

SEED = 20261121
QUERY, KEY, VALUE = 1, 2, 3
GOLDEN = 0x9E3779B97F4A7C15
WORD = (1 << 64) - 1
SCALE = 1.7320508 / 2147483648.0  # uniform on +-sqrt(3): variance 1


def signed(word):
    word &= WORD
    return word - (1 << 64) if word >> 63 else word


def mix(value):
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
    return value ^ (value >> 31)


def mix_array(value):
    def shifted(array, by):
        return (array >> by) & ((1 << (64 - by)) - 1)

    value = (value ^ shifted(value, 30)) * signed(0xBF58476D1CE4E5B9)
    value = (value ^ shifted(value, 27)) * signed(0x94D049BB133111EB)
    return value ^ shifted(value, 31)


def numbers(xp, which, batch, heads, first, count, dim, seed=SEED, **place):
    """Positions first to first + count of a tensor as fp32 [batch, heads, count, dim]; xp is numpy or torch, place its device."""
    start = mix((seed << 32) | which)
    rows = [[signed(mix(start ^ ((b << 32) | h))) for h in range(heads)] for b in range(batch)]
    make = xp.asarray if xp.__name__ == "numpy" else xp.tensor
    state = make(rows, dtype=xp.int64, **place)[:, :, None, None]
    state = mix_array(state ^ xp.arange(first, first + count, dtype=xp.int64, **place)[None, None, :, None])
    steps = make([signed(GOLDEN * (i + 1)) for i in range((dim + 1) // 2)], dtype=xp.int64, **place)
    bits = mix_array(state + steps)
    pairs = xp.stack([(bits << 32) >> 32, bits >> 32], -1).reshape(batch, heads, count, -1)[..., :dim]
    as_fp32 = pairs.astype(xp.float32) if xp.__name__ == "numpy" else pairs.to(xp.float32)
    return as_fp32 * make(SCALE, dtype=xp.float32, **place)
