using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Runtime.Files;
using TreeAttention.Testing.Tensors;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Testing.Processes;

/// <summary>A folder of input files for the program, and what it should make of them.</summary>
internal sealed class CliFiles : IDisposable
{
    private readonly List<IDisposable> _open = [];
    private readonly string _folder = Directory.CreateTempSubdirectory("treeattn-cli-").FullName;

    /// <summary>Path of a file in the folder.</summary>
    public string At(string name) => Path.Join(_folder, name);

    /// <summary>Names of the files in the folder, hidden ones too.</summary>
    public string[] Names => [.. Directory.GetFiles(_folder).Select(path => Path.GetFileName(path))];

    /// <summary>Random queries, keys and values in this type, as .npy in BSHD order.</summary>
    public string[] Tensors(AttentionShape shape, string descr = "<f4", bool headMajor = false)
    {
        Normal("query", descr, headMajor, 1, shape.Batch, shape.QueryLength, shape.QueryHeads, shape.HeadDim);
        Normal("key", descr, headMajor, 2, shape.Batch, shape.KeyLength, shape.KvHeads, shape.HeadDim);
        Normal("value", descr, headMajor, 3, shape.Batch, shape.KeyLength, shape.KvHeads, shape.ValueDim);
        return ["--query", At("query.npy"), "--key", At("key.npy"), "--value", At("value.npy")];
    }

    /// <summary>Writes a .npy of floats, converted to the type.</summary>
    public string Save(string name, string descr, double[] values, params long[] shape)
    {
        byte[] data = [.. values.SelectMany(value => descr switch
        {
            "<f2" => BitConverter.GetBytes((Half)value),
            "<f4" => BitConverter.GetBytes((float)value),
            "<f8" => BitConverter.GetBytes(value),
            "<i4" => BitConverter.GetBytes((int)value),
            "<i8" => BitConverter.GetBytes((long)value),
            "|b1" => [value != 0 ? (byte)1 : (byte)0],
            _ => throw new ArgumentException(descr),
        })];
        string tuple = $"({string.Concat(shape.Select(length => string.Create(CultureInfo.InvariantCulture, $"{length}, ")))})";
        File.WriteAllBytes(At(name), TensorFileBytes.Npy(descr, false, tuple, data));
        return At(name);
    }

    /// <summary>Random numbers for an option file.</summary>
    public string Random(string name, string descr, Func<Random, double> draw, params long[] shape)
    {
        var random = new Random(name.Length);
        return Save(name, descr, [.. Enumerable.Range(0, (int)shape.Aggregate(1L, (a, b) => a * b)).Select(_ => draw(random))], shape);
    }

    /// <summary>Replaces one element of a float32 tensor.</summary>
    public void Poison(string name, long index, float element)
    {
        byte[] bytes = File.ReadAllBytes(At(name));
        int header = Array.IndexOf(bytes, (byte)'\n') + 1;
        MemoryMarshal.Write(bytes.AsSpan(header + (int)(index * sizeof(float))), element);
        File.WriteAllBytes(At(name), bytes);
    }

    /// <summary>Opens a tensor; bhsd files are seen as BSHD.</summary>
    public TensorView Open(string spec, bool headMajor = false)
    {
        var file = TensorFile.Open(spec.StartsWith('/') ? spec : At(spec), "tensor");
        _open.Add(file);
        return headMajor ? file.View.SwapAxes(1, 2) : file.View;
    }

    /// <summary>Elements of a written file, row-major, after asserting its type and shape.</summary>
    public float[] Read(string name, params long[] shape)
    {
        TensorView view = Open(name);
        Assert.Equal(ElementType.Float32, view.Type);
        Assert.Equal(shape, view.Shape);
        float[] values = new float[view.Count];
        new ReadOnlySpan<float>(view.Count == 0 ? [] : Copy(view)).CopyTo(values);
        return values;
    }

    /// <summary>Asserts that output.npy and lse.npy hold what float64 says, to 1e-5 of each row's largest value or the given bound.</summary>
    public void AssertRight(
        AttentionShape shape, AttentionOptions options, bool headMajor = false, double bound = 1e-5, TensorView? value = null)
    {
        var problem = new AttentionProblem(shape, options);
        TensorView query = Open("query.npy", headMajor);
        TensorView key = Open("key.npy", headMajor);
        value ??= Open("value.npy", headMajor);
        float[] output = headMajor
            ? Read("output.npy", shape.Batch, shape.QueryHeads, shape.QueryLength, shape.ValueDim)
            : Read("output.npy", shape.Batch, shape.QueryLength, shape.QueryHeads, shape.ValueDim);
        float[] lse = Read("lse.npy", shape.Batch, shape.QueryHeads, shape.QueryLength);
        double[] expected = new double[shape.ValueDim];
        for (int row = 0; row < lse.Length; row++)
        {
            (int batch, int head, int i) =
                (row / (shape.QueryHeads * shape.QueryLength), row / shape.QueryLength % shape.QueryHeads, row % shape.QueryLength);
            ReferenceAttention.Row(
                new ReferenceCall(problem.Shape, problem.Options, query, key, value), batch, head, i, expected, out double expectedLse);
            int outputRow = headMajor ? row : (((batch * shape.QueryLength) + i) * shape.QueryHeads) + head;
            Span<float> actual = output.AsSpan(outputRow * shape.ValueDim, shape.ValueDim);
            double largest = Math.Max(1e-3, expected.Max(Math.Abs));
            for (int dim = 0; dim < actual.Length; dim++)
            {
                Assert.True(
                    Math.Abs(actual[dim] - expected[dim]) <= bound * largest,
                    $"batch {batch}, head {head}, query {i}, dim {dim}: {actual[dim]}, not {expected[dim]}");
            }

            bool lseIsRight = lse[row] == expectedLse || Math.Abs(lse[row] - expectedLse) <= bound * Math.Max(1, Math.Abs(expectedLse));
            Assert.True(lseIsRight, $"lse of batch {batch}, head {head}, query {i}: {lse[row]}, not {expectedLse}");
        }
    }

    public void Dispose()
    {
        _open.ForEach(file => file.Dispose());
        Directory.Delete(_folder, recursive: true);
    }

    private static float[] Copy(TensorView view)
    {
        float[] values = new float[view.Count];
        RowMajorReader.Read(view, (elements, first) => MemoryMarshal.Cast<byte, float>(elements).CopyTo(values.AsSpan((int)first)));
        return values;
    }

    private void Normal(string name, string descr, bool headMajor, int seed, int batch, int length, int heads, int dim)
    {
        long[] shape = headMajor ? [batch, heads, length, dim] : [batch, length, heads, dim];
        var random = new Random(seed);
        Save(name + ".npy", descr, [.. Enumerable.Range(0, batch * length * heads * dim).Select(_ => (4 * random.NextDouble()) - 2)], shape);
    }
}
