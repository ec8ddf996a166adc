using System;
using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Text;
using System.Threading;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Devices.Cuda.Kernels;

/// <summary>Compiled programs by the hash of all that decides what they become: in this process, then on disk.</summary>
/// <remarks>
/// A file is written beside its place and renamed, so that no reader sees half of it, and carries its own digest: one that is
/// damaged is compiled and written anew. A folder that cannot be written to costs the next process a compilation, no more.
/// </remarks>
internal sealed class KernelCache(string? folder, KernelCompiler compiler, string compilerIdentity)
{
    private const int DigestBytes = 16;
    private static readonly byte[] _magic = "TATKRN02"u8.ToArray();
    private static readonly ConcurrentDictionary<string, Lazy<CompiledProgram>> _inProcess = new(StringComparer.Ordinal);

    /// <summary>The compiled program; compiled now when nobody has before.</summary>
    internal CompiledProgram Get(KernelProgram program)
    {
        string key = KeyOf(program);
        string identity = $"{folder}|{key}";
        return _inProcess.GetOrAdd(
            identity,
            _ => new Lazy<CompiledProgram>(() => ReadOrCompile(program, key), LazyThreadSafetyMode.ExecutionAndPublication)).Value;
    }

    /// <summary>Compiles anew what the driver would not load, whatever is kept.</summary>
    internal CompiledProgram Renew(KernelProgram program)
    {
        string key = KeyOf(program);
        CompiledProgram compiled = CompileAndKeep(program, key);
        _inProcess[$"{folder}|{key}"] = new Lazy<CompiledProgram>(compiled);
        return compiled;
    }

    /// <summary>File of a program; null when none are kept.</summary>
    internal string? PathOf(KernelProgram program) => folder is null ? null : Path.Combine(folder, KeyOf(program) + ".kernel");

    /// <summary>Forgets what this process has, so that the disk is asked again; for tests.</summary>
    internal static void ForgetInProcess() => _inProcess.Clear();

    private static byte[] DigestOf(byte[] body)
    {
        byte[] digest = new byte[DigestBytes];
        BinaryPrimitives.WriteUInt128LittleEndian(digest, Fingerprint.Of(body));
        return digest;
    }

    private string KeyOf(KernelProgram program)
    {
        IEnumerable<string> parts =
        [
            compilerIdentity, program.File, KernelSources.Source(program.File),
            .. KernelSources.Headers.OrderBy(header => header.Key, StringComparer.Ordinal).SelectMany(header => new[] { header.Key, header.Value }),
            .. compiler.OptionsFor(program), .. program.Expressions,
        ];
        var fingerprint = new Fingerprint();
        foreach (string part in parts)
        {
            byte[] bytes = Encoding.UTF8.GetBytes(part);
            fingerprint.Add(Encoding.UTF8.GetBytes(bytes.Length.ToString(CultureInfo.InvariantCulture) + ":"));
            fingerprint.Add(bytes);
        }

        return fingerprint.Value().ToString("x32", CultureInfo.InvariantCulture);
    }

    private CompiledProgram ReadOrCompile(KernelProgram program, string key) => TryRead(program, key) ?? CompileAndKeep(program, key);

    private CompiledProgram CompileAndKeep(KernelProgram program, string key)
    {
        CompiledProgram compiled = compiler.Compile(program);
        TryWrite(compiled, key);
        return compiled;
    }

    private CompiledProgram? TryRead(KernelProgram program, string key)
    {
        if (folder is null)
        {
            return null;
        }

        try
        {
            using var reader = new BinaryReader(new MemoryStream(File.ReadAllBytes(Path.Combine(folder, key + ".kernel"))), Encoding.UTF8);
            byte[] magic = reader.ReadBytes(_magic.Length);
            byte[] digest = reader.ReadBytes(DigestBytes);
            byte[] body = reader.ReadBytes((int)(reader.BaseStream.Length - reader.BaseStream.Position));
            if (!magic.AsSpan().SequenceEqual(_magic) || !DigestOf(body).AsSpan().SequenceEqual(digest))
            {
                return null;
            }

            using var content = new BinaryReader(new MemoryStream(body), Encoding.UTF8);
            string[] names = [.. program.Expressions.Select(_ => content.ReadString())];
            return new CompiledProgram(content.ReadBytes(content.ReadInt32()), names);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    private void TryWrite(CompiledProgram compiled, string key)
    {
        if (folder is null)
        {
            return;
        }

        using var body = new MemoryStream();
        using (var writer = new BinaryWriter(body, Encoding.UTF8, leaveOpen: true))
        {
            foreach (string name in compiled.Names)
            {
                writer.Write(name);
            }

            writer.Write(compiled.Image.Length);
            writer.Write(compiled.Image);
        }

        byte[] bytes = body.ToArray();
        string place = Path.Combine(folder, key + ".kernel");
        string beside = $"{place}.{Environment.ProcessId}.{Guid.NewGuid():N}";
        try
        {
            Directory.CreateDirectory(folder);
            File.WriteAllBytes(beside, [.. _magic, .. DigestOf(bytes), .. bytes]);
            File.Move(beside, place, overwrite: true);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            // Where the folder could not even be made there is nothing to remove, and File.Delete would say so.
            if (File.Exists(beside))
            {
                File.Delete(beside);
            }
        }
    }
}
