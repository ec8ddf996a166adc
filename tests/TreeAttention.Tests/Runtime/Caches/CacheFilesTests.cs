using System;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Runtime.Files;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Ranks;
using TreeAttention.Testing.Tensors;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Runtime.Caches;

public sealed class CacheFilesTests : IDisposable
{
    private static readonly DecodeCase _decode = new("saved")
    {
        Before = [1100, 530],
        Padding = [3, 0],
        Type = ElementType.Float16,
        Rotary = new RotaryOptions(8),
        Options = new AttentionOptions { Causal = true },
    };

    private readonly string _directory = Directory.CreateTempSubdirectory().FullName;

    [Theory]
    [InlineData(3, 1)]
    [InlineData(1, 4)]
    [InlineData(2, 3)]
    public void A_saved_cache_goes_on_on_another_number_of_ranks(int before, int after)
    {
        CacheRanks.Run(before, context =>
        {
            using var cache = new ShardedKvCache(context, _decode.CacheOptions);
            _decode.Fill(cache, 500);
            CacheFiles.Save(context, cache, _directory, force: false);
        });

        CacheRanks.Run(after, context =>
        {
            using var cache = new ShardedKvCache(context, _decode.CacheOptions);
            CacheFiles.Load(context, cache, _directory);
            using var step = new DecodeStep(context, cache, _decode.DecodeOptions());
            (float[] output, float[] lse) = _decode.RunLast(step);

            VerificationReport report = _decode.Check(output, lse);
            Assert.True(report.Wrong == 0, report.WorstRow);
        });
    }

    [Theory]
    [InlineData(3, 1)]
    [InlineData(1, 4)]
    [InlineData(2, 3)]
    public void Forks_are_saved_once_and_share_their_pages_again_on_another_number_of_ranks(int before, int after)
    {
        var decode = new DecodeCase("forks") { Before = [1300, 1301, 1100], Padding = [2, 2, 2], Type = ElementType.BFloat16, Scales = null };
        CacheOptions options = decode.CacheOptions with { MaxLength = 1310, Layers = 2 };
        long page = 2L * 2 * 512 * (16 + 16) * 2;
        CacheRanks.Run(before, context =>
        {
            using var cache = new ShardedKvCache(context, options);
            cache.PadLeft(0, 2);
            for (int layer = 0; layer < 2; layer++)
            {
                cache.Append(layer, [0], decode.Keys(layer, 0, 1300), decode.Values(layer, 0, 1300));
            }

            cache.Fork(0, 1, 1300);
            cache.Fork(1, 2, 1100);
            for (int layer = 0; layer < 2; layer++)
            {
                cache.Append(layer, [1], decode.Keys(1, 1300, 1), decode.Values(1, 1300, 1));
            }

            CacheFiles.Save(context, cache, _directory, force: false);
        });
        long saved = Directory.GetFiles(_directory).Sum(file => new FileInfo(file).Length);

        CacheRanks.Run(after, context =>
        {
            // Of four pages and one more that an append takes, the busiest of 1, 3 and 4 ranks has 5, 4 and 3.
            using var cache = new ShardedKvCache(context, options with { MemoryBytes = after == 1 ? 5 * page : (7 - after) * page });
            CacheFiles.Load(context, cache, _directory);
            Assert.Equal(2, cache.LeftPaddingOf(2));
            Assert.Equal((cache.SlotOf(0, 0), cache.SlotOf(0, 600), cache.SlotOf(0, 1099)), (cache.SlotOf(1, 0), cache.SlotOf(1, 600), cache.SlotOf(2, 1099)));
            Assert.Equal(cache.SlotOf(0, 0), cache.SlotOf(2, 0));
            Assert.NotEqual((cache.SlotOf(0, 1024), 1300), (cache.SlotOf(1, 1024), cache.LengthOf(0, 1)));
            cache.Append(0, [2], decode.Keys(2, 1100, 1), decode.Values(2, 1100, 1));
            cache.Append(0, [0], decode.Keys(0, 1300, 1), decode.Values(0, 1300, 1));
            Assert.NotEqual(cache.SlotOf(0, 1099), cache.SlotOf(2, 1099));

            for (int layer = 0; layer < 2; layer++)
            {
                foreach ((int row, int position, int from) in ((int, int, int)[])[(0, 1299, layer), (1, 1299, layer), (1, 1300, 1), (2, 1099, layer), (2, 5, layer)])
                {
                    AssertStored(cache, layer, row, position, decode.Values(from, position, 1));
                }
            }

            AssertStored(cache, 0, 2, 1100, decode.Values(2, 1100, 1));
            AssertStored(cache, 0, 0, 1300, decode.Values(0, 1300, 1));
            AssertStored(cache, 0, 0, 1100, decode.Values(0, 1100, 1)); // the other row's token went to a page of its own
        });

        Assert.InRange(saved, 4 * page, (4 * page) + 20_000);
    }

    [Fact]
    public void Files_of_earlier_versions_in_which_every_page_has_contents_of_its_own_are_loaded()
    {
        var options = new CacheOptions { Rows = 2, KvHeads = 1, HeadDim = 1, ValueDim = 1, MaxLength = 600 };
        float[] numbers = [.. Enumerable.Range(0, 3 * 512).Select(i => (float)i)];
        Write(columns: 2, 1, 0, 0, 1, 0, 0); // row 1 comes first, and row 0 has two pages

        CacheRanks.Run(2, context =>
        {
            using var cache = new ShardedKvCache(context, options);
            CacheFiles.Load(context, cache, _directory);
            Assert.Equal((520, 3), (cache.LengthOf(0), cache.LengthOf(1)));
            AssertStored(cache, 0, 1, 2, [2]);
            AssertStored(cache, 0, 0, 519, [512 + 7]);
            AssertStored(cache, 0, 0, 11, [1024 + 11]);
        });

        Write(columns: 3, 1, 0, 0, 0, 1, -1, 0, 0, 2);
        Assert.Contains("page 1 of row 0 is said to be contents -1", LoadFault(options).Message, StringComparison.Ordinal);

        void Write(int columns, params int[] pages)
        {
            using var writer = new SafetensorsWriter(Path.Combine(_directory, "cache-00000-of-00001.safetensors"), force: true);
            writer.Declare("lengths", ElementType.Int32, 1, 2);
            writer.Declare("padding", ElementType.Int32, 2);
            writer.Declare("pages", ElementType.Int32, pages.Length / columns, columns);
            writer.Declare("layer.0.key", ElementType.Float32, 3, 512, 1, 1);
            writer.Declare("layer.0.value", ElementType.Float32, 3, 512, 1, 1);
            writer.Begin();
            foreach (int[] integers in (int[][])[[520, 3], [0, 0], pages])
            {
                writer.Write(MemoryMarshal.AsBytes<int>(integers));
            }

            writer.Write(MemoryMarshal.AsBytes<float>(numbers));
            writer.Write(MemoryMarshal.AsBytes<float>(numbers));
            writer.Commit();
        }
    }

    [Fact]
    public void A_save_without_one_of_its_files_and_a_save_of_another_model_are_refused()
    {
        CacheRanks.Run(3, context =>
        {
            using var cache = new ShardedKvCache(context, _decode.CacheOptions);
            _decode.Fill(cache, 1100);
            CacheFiles.Save(context, cache, _directory, force: false);
        });

        FaultException other = LoadFault(_decode.CacheOptions with { HeadDim = 8, Rotary = null });
        FaultException more = LoadFault(_decode.CacheOptions with { Rows = 3 });
        File.Delete(Path.Combine(_directory, "cache-00001-of-00003.safetensors"));
        FaultException missing = LoadFault(_decode.CacheOptions);

        Assert.Equal([FaultCode.BadInput, FaultCode.BadInput, FaultCode.MissingInput], [other.Code, more.Code, missing.Code]);
        Assert.Contains("layer.0.key is f16", other.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_save_is_not_overwritten_unless_that_is_said()
    {
        CacheRanks.Run(2, context =>
        {
            using var cache = new ShardedKvCache(context, _decode.CacheOptions);
            CacheFiles.Save(context, cache, _directory, force: false);

            FaultException fault = Assert.Throws<FaultException>(() => CacheFiles.Save(context, cache, _directory, force: false));
            CacheFiles.Save(context, cache, _directory, force: true);

            Assert.Equal(FaultCode.CannotCreate, fault.Code);
        });
    }

    [Fact]
    public void Files_of_two_saves_under_one_name_are_refused()
    {
        string first = Path.Combine(_directory, "cache-00000-of-00002.safetensors");
        CacheRanks.Run(2, context =>
        {
            using var cache = new ShardedKvCache(context, _decode.CacheOptions);
            _decode.Fill(cache, 1100);
            CacheFiles.Save(context, cache, _directory, force: false);
        });
        byte[] before = File.ReadAllBytes(first);
        CacheRanks.Run(2, context =>
        {
            using var cache = new ShardedKvCache(context, _decode.CacheOptions);
            _decode.Fill(cache, 1100);
            CacheFiles.Save(context, cache, _directory, force: true);
        });
        File.WriteAllBytes(first, before); // as if the second save had been killed before rank 0 came to its end

        FaultException fault = LoadFault(_decode.CacheOptions);

        Assert.Equal(FaultCode.BadInput, fault.Code);
        Assert.Contains("are of different saves", fault.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("lengths", -1)]
    [InlineData("padding", -1)]
    [InlineData("padding", 2000)]
    public void Lengths_that_no_cache_has_are_refused(string tensor, int number)
    {
        CacheRanks.Run(1, context =>
        {
            using var cache = new ShardedKvCache(context, _decode.CacheOptions);
            _decode.Fill(cache, 1100);
            CacheFiles.Save(context, cache, _directory, force: false);
        });
        string path = Directory.GetFiles(_directory).Single();
        byte[] bytes = File.ReadAllBytes(path);
        int at = bytes.AsSpan().IndexOf(MemoryMarshal.AsBytes<int>(tensor == "padding" ? _decode.Padding : _decode.Before));
        BitConverter.TryWriteBytes(bytes.AsSpan(at), number);
        File.WriteAllBytes(path, bytes);

        Assert.Contains("is said to have", LoadFault(_decode.CacheOptions).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Pages_of_16_tokens_in_any_order_are_imported()
    {
        var decode = new DecodeCase("imported") { Before = [100, 37], KvHeads = 2, Options = new AttentionOptions { Causal = true } };
        const int Size = 16;
        int[] table = [5, 0, 9, 2, 7, 1, 3, 4, 6, 8, 3, 3, 3, 3]; // [2 rows, 7 pages]; the second row uses three
        using HostTensor key = Paged(decode.KeyOf);
        using HostTensor value = Paged(decode.ValueOf);

        CacheRanks.Run(2, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions);
            var source = new PagedTokens(key.View, value.View, table, 7, cache.Options);
            cache.AppendShard(0, 0, 100, source);
            cache.AppendShard(0, 1, 37, source);
            cache.ShareLimits();
            using var step = new DecodeStep(context, cache, decode.DecodeOptions(ReductionKind.TwoAllReduce));
            (float[] output, float[] lse) = decode.RunLast(step);

            VerificationReport report = decode.Check(output, lse);
            Assert.True(report.Wrong == 0, report.WorstRow);
            Assert.Throws<ShapeMismatchException>(() => new PagedTokens(key.View, value.View, [10], 1, cache.Options));
        });

        HostTensor Paged(Func<int, float[]> rows)
        {
            double[] pages = new double[10 * Size * 2 * 16];
            for (int row = 0; row < 2; row++)
            {
                for (int position = 0; position < decode.Before[row]; position++)
                {
                    int page = table[(row * 7) + (position / Size)];
                    for (int i = 0; i < 32; i++)
                    {
                        pages[(((page * Size) + (position % Size)) * 32) + i] = rows(row)[(position * 32) + i];
                    }
                }
            }

            return new HostTensor("pages", ElementType.Float32, [10, Size, 2, 16], pages);
        }
    }

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    // Values as bf16 or f32 stores them; other ranks than the owner read nothing.
    private static void AssertStored(ShardedKvCache cache, int layer, int row, int position, ReadOnlySpan<float> expected)
    {
        float[] key = new float[cache.Options.KvHeads * cache.Options.HeadDim];
        float[] value = new float[expected.Length];
        byte[] stored = new byte[expected.Length * cache.Options.Type.SizeInBytes()];
        float[] rounded = new float[expected.Length];
        ElementConversion.FromFloat(expected, cache.Options.Type, stored);
        ElementConversion.ToFloat(stored, cache.Options.Type, rounded);
        Assert.True(!cache.TryRead(layer, row, position, key, value) || value.AsSpan().SequenceEqual(rounded), $"layer {layer}, row {row}, position {position}");
    }

    private FaultException LoadFault(CacheOptions options)
    {
        FaultException? fault = null;
        CacheRanks.Run(1, context =>
        {
            using var cache = new ShardedKvCache(context, options);
            fault = Assert.Throws<FaultException>(() => CacheFiles.Load(context, cache, _directory));
        });
        return fault!;
    }
}
