#!/usr/bin/env python3
"""Writes native/kernels/probes.golden: what each kernel of probes.cu must answer, computed from the definitions of the
instructions (PTX ISA: cvt.rn, ex2, shfl, vote, ldmatrix, mma.m16n8k16, cp.async, fma) in exact arithmetic, without the
kernels and without their emulation. With --check it writes nothing and fails where the committed file differs.
"""

import math
import struct
import sys
from fractions import Fraction
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent.parent / "kernels" / "probes.golden"
NAN = 0x7FC00000


def scrambled(i):
    i = (i ^ i >> 16) * 0x7FEB352D & 0xFFFFFFFF
    i = (i ^ i >> 15) * 0x846CA68B & 0xFFFFFFFF
    return i ^ i >> 16


def float_of(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits_of(x):
    """The fp32 bits of a float that fp32 holds."""
    return NAN if math.isnan(x) else struct.unpack("<I", struct.pack("<f", x))[0]


def rounded(x, mantissa, least, most):
    """A Fraction at the nearest value with so many mantissa bits and exponents, ties to even; an infinity where there is no room."""
    if x == 0:
        return 0.0
    magnitude = abs(x)
    exponent = max(least, math.frexp(float(magnitude))[1] - 1)
    step = Fraction(2) ** (exponent - mantissa)
    value = round(magnitude / step) * step  # Python rounds halves to even
    value = math.inf if value >= Fraction(2) ** (most + 1) else float(value)
    return math.copysign(value, x)


def to_fp32(x):
    return rounded(x, 23, -126, 127)


def half_bits(x):
    x = Fraction(x)
    return struct.unpack("<H", struct.pack("<e", rounded(x, 10, -14, 15)))[0]


def brain_bits(x):
    return bits_of(rounded(Fraction(x), 7, -126, 127)) >> 16


def half_to_float(pattern):
    return bits_of(struct.unpack("<e", struct.pack("<H", pattern))[0])


def brain_to_float(pattern):
    return bits_of(float_of(pattern << 16))


def eight_to_float(pattern):
    """The value of an OCP E4M3 pattern: sign, exponent of bias 7, fraction; no infinity."""
    exponent, fraction = pattern >> 3 & 15, pattern & 7
    magnitude = math.ldexp(fraction if exponent == 0 else 8 + fraction, max(exponent, 1) - 10)
    return math.nan if pattern & 127 == 127 else math.copysign(magnitude, -1 if pattern & 128 else 1)


def eight_to_integer(pattern):
    """The value of an int8 pattern; -128 stands for NaN."""
    return math.nan if pattern == 128 else float(pattern - 256 if pattern > 128 else pattern)


def widened(number_of, instead):
    def half(i, byte):
        pattern = (i + 64 * byte) & 255
        value = number_of(pattern)
        value = number_of(pattern + instead) if math.isnan(value) else value
        return struct.unpack("<H", struct.pack("<e", value))[0]

    pairs = [(0, 1), (2, 3), (0, 2), (1, 3)]
    return [half(i, low) | half(i, high) << 16 for i in range(256) for low, high in pairs]


def number_to_round(kept, i):
    noise = scrambled(i)
    tie = (noise & 0x7FFFFF) >> (23 - kept) << (23 - kept) | 1 << (22 - kept)
    mantissa = noise & 0x7FFFFF if i < 128 else tie
    return float_of(noise & 0x80000000 | (101 + i % 44) << 23 | mantissa)


def packs(to_bits, kept):
    numbers = [number_to_round(kept, i) for i in range(256)]
    return [to_bits(numbers[i]) | to_bits(numbers[255 - i]) << 16 for i in range(256)]


def powers():
    exponents = [(i - 128) / 4 for i in range(248)] + [-126.0, -127.0, -150.0, 127.0, 128.0, -math.inf, 2.0**-140, 0.0]
    words = []
    for x in exponents:
        value = math.inf if x >= 128 else 2.0**x
        words.append(bits_of(0.0 if value < 2.0**-126 else to_fp32(Fraction(value)) if value < math.inf else value))
    return words


def warps():
    words = []
    for thread in range(64):
        lane = thread % 32
        words += [
            lane ^ 17,
            lane // 16 * 16 + 5,
            sum(1 << i for i in range(32) if i % 3 == 0),
            lane ^ 1 if lane < 16 else sum(1 << i for i in range(16, 32) if i % 2),
            1,
            0,
            scrambled(thread ^ 1),
            scrambled(thread ^ 16),
        ]
    return words


def matrices():
    rows = [scrambled(i) & 0xFFFF for i in range(256)]  # matrix i / 64, row i / 8 % 8, column i % 8
    words = []
    for lane in range(32):
        major, minor = lane // 4, lane % 4 * 2
        at = lambda matrix, row, column: rows[matrix * 64 + row * 8 + column]
        words += [at(m, major, minor) | at(m, major, minor + 1) << 16 for m in range(4)]
        words += [at(m, minor, major) | at(m, minor + 1, major) << 16 for m in range(4)]
    return words


def products():
    number = lambda i: (scrambled(i) >> 27) - 16
    words = []
    for row in range(16):
        for column in range(8):
            total = number(2000 + row * 8 + column)
            total += sum(number(row * 16 + k) * number(1000 + k * 8 + column) for k in range(16))
            words.append(bits_of(float(total)))
    return words


def copies():
    source = [scrambled(i) for i in range(256)]
    valid = lambda copy: copy % 3 != 0 if copy < 32 else (copy - 32) % 5 != 0
    return [source[i] if valid(i // 4) else 0 for i in range(256)]


def roundings():
    words = []
    for thread in range(64):
        x = float_of(0x3F800000 | scrambled(thread) >> 9)
        y = float_of(0x3F800000 | scrambled(thread + 64) >> 9)
        exact = Fraction(x) * Fraction(y)
        words += [0, bits_of(to_fp32(exact - Fraction(to_fp32(exact))))]
    return words


PROBES = [
    # name, threads, shared bytes, relative tolerance, words
    ("probe_to_float<bfloat16>", 128, 0, 0, [brain_to_float(i * 257) for i in range(256)]),
    ("probe_to_float<float16>", 128, 0, 0, [half_to_float(i * 257) for i in range(256)]),
    ("probe_to_float<float8_e4m3>", 128, 0, 0, [bits_of(eight_to_float(i)) for i in range(256)]),
    ("probe_to_float<int8>", 128, 0, 0, [bits_of(eight_to_integer(i)) for i in range(256)]),
    ("probe_widen", 128, 0, 0, widened(eight_to_float, -1)),
    ("probe_widen_int8", 128, 0, 0, widened(eight_to_integer, 1)),
    ("probe_pack<bfloat16>", 128, 0, 0, packs(brain_bits, 7)),
    ("probe_pack<float16>", 128, 0, 0, packs(half_bits, 10)),
    ("probe_exp2", 128, 0, 2.0**-21, powers()),
    ("probe_warp", 64, 0, 0, warps()),
    ("probe_load_matrix", 32, 512, 0, matrices()),
    ("probe_multiply_add<bfloat16>", 32, 0, 0, products()),
    ("probe_multiply_add<float16>", 32, 0, 0, products()),
    ("probe_copy_async", 32, 1024, 0, copies()),
    ("probe_rounding", 64, 0, 0, roundings()),
    ("probe_barrier", 128, 512, 0, [scrambled(127 - i) for i in range(128)]),
]


def text():
    lines = [
        "# What the kernels of probes.cu answer; written by native/tests/make_probes_golden.py.",
        "# name threads shared_bytes relative_tolerance words, then the words",
    ]
    for name, threads, shared, tolerance, words in PROBES:
        lines.append(f"{name} {threads} {shared} {tolerance:g} {len(words)}")
        lines += [" ".join(f"{word:08x}" for word in words[i : i + 16]) for i in range(0, len(words), 16)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if GOLDEN.read_text() == text() else f"{GOLDEN} is not what this script writes")
    GOLDEN.write_text(text())
