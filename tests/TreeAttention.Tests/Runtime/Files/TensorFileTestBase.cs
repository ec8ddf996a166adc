using System;
using System.IO;
using Microsoft.Win32.SafeHandles;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Runtime.Files;
using Xunit;

namespace TreeAttention.Tests.Runtime.Files;

/// <summary>Tests of tensor files: a directory of their own, and what all of them ask of a reader.</summary>
public abstract class TensorFileTestBase : IDisposable
{
    protected string Folder { get; } = Directory.CreateTempSubdirectory("treeattn-test-").FullName;

    public void Dispose()
    {
        Directory.Delete(Folder, recursive: true);
        GC.SuppressFinalize(this);
    }

    protected string At(string name) => Path.Join(Folder, name);

    protected string Save(byte[] bytes, string name)
    {
        File.WriteAllBytes(At(name), bytes);
        return At(name);
    }

    /// <summary>Writes the bytes over a file's own, without the cost of creating it anew for each of many mutants.</summary>
    protected string Overwrite(ReadOnlySpan<byte> bytes, string name)
    {
        using SafeFileHandle file = File.OpenHandle(At(name), FileMode.OpenOrCreate, FileAccess.Write);
        if (RandomAccess.GetLength(file) != bytes.Length)
        {
            RandomAccess.SetLength(file, bytes.Length);
        }

        RandomAccess.Write(file, bytes, 0);
        return At(name);
    }

    protected static FaultException Refused(string spec, FaultCode code = FaultCode.BadInput)
    {
        FaultException fault = Assert.Throws<FaultException>(() => TensorFile.Open(spec, "key"));
        Assert.Equal(code, fault.Code);
        Assert.Contains("key", fault.Message, StringComparison.Ordinal);
        return fault;
    }

    protected static void RefusedWith(string spec, params string[] words)
    {
        FaultException fault = Refused(spec);
        foreach (string word in words)
        {
            Assert.Contains(word, fault.Message, StringComparison.Ordinal);
        }
    }

    /// <summary>Opens what may be broken: refused with 65 (false), or a tensor whose every element is read (true).</summary>
    protected static bool ReadsOrRefuses(string spec, long fileLength, string context)
    {
        try
        {
            using var file = TensorFile.Open(spec, "key");
            TensorView view = file.View;
            long bytes = 0;
            RowMajorReader.Read(view, (elements, _) => bytes += Sum(elements) >= 0 ? elements.Length : 0);
            Assert.Equal(view.Count * view.Type.SizeInBytes(), bytes);
            Assert.InRange(bytes, 0, fileLength);
            return true;
        }
        catch (FaultException fault)
        {
            Assert.True(fault.Code == FaultCode.BadInput, $"{context}: {fault.Code}: {fault.Message}");
            return false;
        }
        catch (Exception error) when (error is not Xunit.Sdk.IAssertionException)
        {
            throw new InvalidOperationException(context, error);
        }
    }

    protected static float[] Elements(TensorView view)
    {
        float[] values = new float[view.Count];
        RowMajorReader.Read(view, (elements, first) =>
        {
            int count = elements.Length / view.Type.SizeInBytes();
            ElementConversion.ToFloat(elements, view.Type, values.AsSpan((int)first, count));
        });
        return values;
    }

    private static long Sum(ReadOnlySpan<byte> bytes)
    {
        long sum = 0;
        foreach (byte one in bytes)
        {
            sum += one;
        }

        return sum;
    }
}
