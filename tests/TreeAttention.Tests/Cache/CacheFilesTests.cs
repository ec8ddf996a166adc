using System;
using System.IO;
using TreeAttention.Distributed;
using TreeAttention.Runtime;
using Xunit;

namespace TreeAttention.Tests;

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
            cache.ShareLimits(context.Control);
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
