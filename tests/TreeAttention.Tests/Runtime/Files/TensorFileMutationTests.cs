using System;
using System.Collections.Generic;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Runtime.Files;

public class TensorFileMutationTests : TensorFileTestBase
{
    // A longer hunt sets this; the seed is in every failure.
    private static readonly int _mutants =
        int.TryParse(Environment.GetEnvironmentVariable("TREEATTN_TEST_MUTANTS"), out int mutants) ? mutants : 20_000;

    private static readonly byte[][] _fragments =
    [
        [.. "9223372036854775807"u8], [.. "-1"u8], [.. "0"u8], [.. "1e9"u8], [.. "{"u8], [.. "}"u8], [.. "["u8], [.. "]"u8], [.. "("u8], [.. ")"u8],
        [.. "\""u8], [.. "'"u8], [.. "\\u0061"u8], [.. "\\ud800"u8], [.. ","u8], [.. ":"u8], [.. "'shape'"u8], [.. "\"shape\""u8],
        [.. "F64"u8], [.. "<f8"u8], [.. "|O"u8], [0xFF], [0x00], [0xC3, 0x28], [0xFF, 0xFF, 0xFF, 0xFF], [0, 0, 0, 0, 0, 0, 0, 0x80],
    ];

    [Theory]
    [InlineData("npy")]
    [InlineData("safetensors")]
    public void Mutants_are_read_inside_their_file_or_refused(string format)
    {
        byte[] whole = format == "npy"
            ? TensorFileBytes.Npy("<f4", true, "(2, 3)", TensorFileBytes.Floats(1, 2, 3, 4, 5, 6), 2)
            : TensorFileBytes.Safetensors(
                """{"__metadata__":{"a":"b"},"k":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"v":{"dtype":"F16","shape":[2,1],"data_offsets":[8,12]}}""",
                new byte[12]);
        string spec = format == "npy" ? "m.npy" : "m.safetensors";
        int read = 0;

        for (int seed = 0; seed < _mutants; seed++)
        {
            byte[] mutant = Mutate(whole, new Random(seed));
            string path = Overwrite(mutant, spec);
            read += ReadsOrRefuses(format == "npy" ? path : path + ":v", mutant.Length, $"{format}, seed {seed}") ? 1 : 0;
        }

        // Both ends matter: were all refused, the mutants would test nothing behind the first check.
        Assert.InRange(read, _mutants / 200, _mutants / 2);
    }

    private static byte[] Mutate(byte[] whole, Random random)
    {
        List<byte> bytes = [.. whole];
        for (int changes = random.Next(1, 4); changes > 0; changes--)
        {
            int at = random.Next(bytes.Count);
            byte[] fragment = _fragments[random.Next(_fragments.Length)];
            switch (random.Next(6))
            {
                case 0:
                    bytes[at] ^= (byte)(1 << random.Next(8));
                    break;
                case 1:
                    bytes[at] = (byte)random.Next(256);
                    break;
                case 2:
                    bytes.RemoveRange(at, Math.Min(random.Next(1, 9), bytes.Count - at));
                    break;
                case 3:
                    bytes.InsertRange(at, fragment);
                    break;
                case 4:
                    bytes.RemoveRange(at, Math.Min(fragment.Length, bytes.Count - at));
                    bytes.InsertRange(at, fragment);
                    break;
                default:
                    bytes.InsertRange(at, bytes.GetRange(at, Math.Min(random.Next(1, 33), bytes.Count - at)));
                    break;
            }

            if (bytes.Count == 0)
            {
                return [];
            }
        }

        return [.. bytes];
    }
}
