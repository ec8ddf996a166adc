using System;
using System.Globalization;
using System.Linq;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Cli.Decode;

/// <summary><c>treeattn decode</c> against NumPy, which shares nothing with it: scaled rotary frequencies, and f8e4m3 storage with scales.</summary>
public sealed class DecodeNumpyTests
{
    // Prints the largest error of output and lse, and that of an implementation which leaves rotary scaling and f8 scales out.
    private const string Script = """
        import sys
        import numpy as np

        def frequencies(dim, base, scaling):  # as Hugging Face's rope_type llama3 has it: by wavelengths
            inverse = base ** (-np.arange(0, dim, 2) / dim)
            if scaling is None:
                return inverse
            factor, low, high, original = scaling
            wavelength = 2 * np.pi / inverse
            smooth = (original / wavelength - low) / (high - low)
            between = (1 - smooth) * inverse / factor + smooth * inverse
            return np.where(wavelength > original / low, inverse / factor, np.where(wavelength < original / high, inverse, between))

        def turned(x, dim, inverse, interleaved):  # in float32, each operation rounded
            angle = np.arange(x.shape[1])[:, None] * inverse
            cos, sin = np.cos(angle).astype(np.float32)[None, :, None], np.sin(angle).astype(np.float32)[None, :, None]
            first, second = (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(0, dim // 2), slice(dim // 2, dim))
            out = x.copy()
            out[..., first] = x[..., first] * cos - x[..., second] * sin
            out[..., second] = x[..., second] * cos + x[..., first] * sin
            return out

        def stored(x, scales):  # f8e4m3: three bits behind the leading one, from 2^-6 on; ties to even
            if scales is None:
                return x.astype(float)
            scaled = x.astype(float) / scales[:, None].astype(float)
            exponent = np.maximum(np.frexp(scaled)[1] - 1, -6)
            step = 2.0 ** (exponent - 3)
            return np.rint(scaled / step) * step * scales[:, None]

        def attended(q, k, v):
            group = q.shape[2] // k.shape[2]
            k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
            scores = np.einsum("bihd,bjhd->bhij", q.astype(float), k) / np.sqrt(q.shape[3])
            scores = np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            total = weights.sum(-1)
            return np.einsum("bhij,bjhd->bihd", weights / total[..., None], v), np.log(total) + scores.max(-1)

        folder, dim, base, interleaved, scaling, f8 = sys.argv[1:7]
        load = lambda name: np.load(f"{folder}/{name}.npy")
        dim, base, interleaved = int(dim), float(base), interleaved == "True"
        scaling = None if scaling == "none" else [float(number) for number in scaling.split(",")]
        scales = (load("key-scale"), load("value-scale")) if f8 == "True" else (None, None)

        def errors(scaling, scales):
            inverse = frequencies(dim, base, scaling)
            query, key = (turned(load(name), dim, inverse, interleaved) for name in ("query", "key"))
            output, lse = attended(query, stored(key, scales[0]), stored(load("value"), scales[1]))
            return np.abs(output - load("output")).max(), np.abs(lse - load("lse")).max()

        print(*errors(scaling, scales), max(errors(None, (None, None))))
        """;

    [Theory]
    [InlineData("f32", false)]
    [InlineData("f32", true)]
    [InlineData("f8e4m3", false)]
    [InlineData("f8e4m3", true)]
    public void Scaled_frequencies_and_f8_scales_are_those_of_NumPy(string type, bool isInterleaved)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(2, 130, 130, 4, 2, 24, 8));
        files.Save("key-scale.npy", "<f4", [0.02, 0.008], 2);
        files.Save("value-scale.npy", "<f4", [0.0078125, 0.3], 2);
        string[] scales = type == "f8e4m3" ? ["--key-scale", files.At("key-scale.npy"), "--value-scale", files.At("value-scale.npy")] : [];
        string[] pairs = isInterleaved ? ["--rotary-interleaved"] : [];

        TreeattnProcess.Run(
            ["decode", .. tensors, "--context", "100", "--query-len", "3", "--causal", "--prefill", "ring", "--dtype", type, .. scales, "--rotary", "16", .. pairs,
            "--rotary-base", "500", "--rotary-scaling", "8,1,4,64", "--ranks", "3", "--output", files.At("output.npy"), "--lse", files.At("lse.npy")]).Exits(0);
        double[] errors = [.. Numpy.Run(Script, files.At(""), "16", "500", $"{isInterleaved}", "8,1,4,64", $"{type == "f8e4m3"}")
            .Split(' ').Select(number => double.Parse(number, CultureInfo.InvariantCulture))];

        Assert.InRange(Math.Max(errors[0], errors[1]), 1e-9, 2e-5); // values go up to 2, log-sum-exps to 10
        Assert.InRange(errors[2], 1e-2, 10);
    }
}
