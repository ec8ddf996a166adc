using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using System.Text.Json;
using TreeAttention.Testing.Tensors;

namespace TreeAttention.Testing.Cases;

/// <summary>One call and what the NumPy reference gave for it: a line of tests/golden/golden.json, which make_golden.py wrote.</summary>
internal sealed class GoldenCase(JsonElement json) : IDisposable
{
    private readonly List<HostTensor> _tensors = [];

    public string Name => json.GetProperty("name").GetString()!;

    public AttentionShape Shape => new(
        Int("batch"), Int("query_len"), Int("key_len"), Int("query_heads"), Int("kv_heads"), Int("head_dim"), Int("value_dim"));

    /// <summary>[batch, query_len, query_heads, value_dim]</summary>
    public double[] Output => Doubles("output");

    /// <summary>[batch, query_heads, query_len]</summary>
    public double[] LogSumExp => Doubles("lse");

    public AttentionOptions Options
    {
        get
        {
            int queries = Shape.Batch * Shape.QueryLength;
            int tail = json.TryGetProperty("tail_mask", out JsonElement mask) ? mask.GetInt32() : 0;
            int[] bias = Ints("tail_bias") ?? [0, 0];
            int[] window = Ints("window") ?? [-1, -1];
            int[]? parents = Ints("parents");
            return new AttentionOptions
            {
                Scale = json.TryGetProperty("scale", out JsonElement scale) ? scale.GetSingle() : null,
                Causal = json.TryGetProperty("causal", out JsonElement causal) && causal.GetBoolean(),
                WindowLeft = window[0],
                WindowRight = window[1],
                LocalChunk = json.TryGetProperty("local_chunk", out JsonElement chunk) ? chunk.GetInt32() : 0,
                LseBase = json.TryGetProperty("lse_base", out _) ? LogarithmBase.Two : LogarithmBase.Natural,
                Softcap = json.TryGetProperty("softcap", out JsonElement softcap) ? softcap.GetSingle() : 0,
                AlibiSlopes = Floats("alibi"),
                Sinks = Floats("sinks"),
                KeyLengths = Ints("key_lengths"),
                QueryLengths = Ints("query_lengths"),
                DfsStart = Ints("dfs_start"),
                DfsEnd = Ints("dfs_end"),
                KeyStarts = Ints("leftpad"),
                PackedQueries = Ints("cu_q"),
                PackedKeys = Ints("cu_k"),
                QueryDepths = parents is null ? null : [.. parents.Select((_, node) => PathTo(parents, node).Count() - 1)],
                TailMask = tail > 0 ? [.. Numbers(1000 + Int("index"), queries * tail).Select(number => number > -1)]
                    : parents is null ? null : TreeMask(parents),
                TailMaskLength = parents?.Length ?? tail,
                TailBias = bias[0] > 0 ? [.. Numbers(2000 + Int("index"), bias[0] * Shape.QueryLength * bias[1]).Select(Bias)] : null,
                TailBiasLength = bias[1],
            };
        }
    }

    public static IEnumerable<GoldenCase> All()
    {
        string? folder = AppContext.BaseDirectory;
        while (folder is not null && !File.Exists(Path.Combine(folder, "tests", "golden", "golden.json")))
        {
            folder = Path.GetDirectoryName(folder);
        }

        string text = File.ReadAllText(Path.Combine(folder!, "tests", "golden", "golden.json"));
        using var document = JsonDocument.Parse(text);
        return [.. document.RootElement.EnumerateArray().Select(element => new GoldenCase(element.Clone()))];
    }

    public TensorView Query() => Tensor("query", 0, Shape.QueryLength, Shape.QueryHeads, Shape.HeadDim);

    public TensorView Key() => Tensor("key", 1, Shape.KeyLength, Shape.KvHeads, Shape.HeadDim);

    public TensorView Value() => Tensor("value", 2, Shape.KeyLength, Shape.KvHeads, Shape.ValueDim);

    public void Dispose() => _tensors.ForEach(tensor => tensor.Dispose());

    private static float Bias(double number) => number < -1.5 ? float.NegativeInfinity : (float)number;

    // [batch, nodes, nodes]: a node sees itself and its ancestors.
    private bool[] TreeMask(int[] parents) =>
    [
        .. from batch in Enumerable.Range(0, Shape.Batch)
           from node in Enumerable.Range(0, parents.Length)
           from seen in Enumerable.Range(0, parents.Length)
           select PathTo(parents, node).Contains(seen),
    ];

    private static IEnumerable<int> PathTo(int[] parents, int node) =>
        node < 0 ? [] : PathTo(parents, parents[node]).Append(node);

    // The twin of `numbers` in make_golden.py.
    private static double[] Numbers(int seed, int count)
    {
        double[] numbers = new double[count];
        for (int i = 0; i < count; i++)
        {
            uint x = unchecked((uint)((i * 2654435761L) + (seed * 40503L)));
            x ^= x >> 16;
            x = unchecked(x * 0x45D9F3B);
            x ^= x >> 16;
            numbers[i] = ((int)(x & 4095) - 2048) / 1024.0;
        }

        return numbers;
    }

    private TensorView Tensor(string name, int which, int length, int heads, int dim)
    {
        double[] numbers = Numbers((3 * Int("index")) + which, Shape.Batch * length * heads * dim);
        var tensor = new HostTensor(name, ElementType.Float32, [Shape.Batch, length, heads, dim], numbers);
        _tensors.Add(tensor);
        return tensor.View;
    }

    private int Int(string name) => json.GetProperty(name).GetInt32();

    private int[]? Ints(string name) =>
        json.TryGetProperty(name, out JsonElement array) ? [.. array.EnumerateArray().Select(number => number.GetInt32())] : null;

    private float[]? Floats(string name) =>
        json.TryGetProperty(name, out JsonElement array) ? [.. array.EnumerateArray().Select(number => number.GetSingle())] : null;

    private double[] Doubles(string name) =>
        MemoryMarshal.Cast<byte, double>(json.GetProperty(name).GetBytesFromBase64()).ToArray();
}
