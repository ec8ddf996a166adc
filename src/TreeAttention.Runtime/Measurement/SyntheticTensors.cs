using System;
using System.Runtime.InteropServices;
using System.Threading.Tasks;
using TreeAttention.Distributed.Layout;

namespace TreeAttention.Runtime.Measurement;

/// <summary>Queries, keys and values that are a function of seed, position, head and dimension: every rank makes its own part, and all agree.</summary>
/// <remarks>
/// Elements are uniform with mean 0 and variance 1. The tensors are reserved whole but only the positions that are filled take
/// memory, so a rank of a long context holds no more than its shard.
/// </remarks>
internal sealed unsafe class SyntheticTensors : IDisposable, ITokenSource
{
    private const float HalfWidth = 1.7320508f; // uniform on ±√3 has variance 1

    private readonly int _seed;
    private readonly AttentionShape _shape;
    private readonly int _firstKvHead;
    private readonly nint[] _memory;

    /// <summary>Reserves the tensors and fills the queries.</summary>
    public SyntheticTensors(AttentionShape shape, int seed)
        : this(shape, seed, 0)
    {
    }

    private SyntheticTensors(AttentionShape shape, int seed, int firstKvHead)
    {
        _seed = seed;
        _shape = shape;
        _firstKvHead = firstKvHead;
        Query = Reserve("query", shape.QueryLength, shape.QueryHeads, shape.HeadDim, out nint query);
        Key = Reserve("key", shape.KeyLength, shape.KvHeads, shape.HeadDim, out nint key);
        Value = Reserve("value", shape.KeyLength, shape.KvHeads, shape.ValueDim, out nint value);
        _memory = [query, key, value];
        for (int i = 0; i < shape.QueryLength; i++)
        {
            FillPosition(Query, 1, i, firstKvHead * shape.GroupSize);
        }
    }

    /// <summary>[batch, query_len, query_heads, head_dim] float32</summary>
    public TensorView Query { get; }

    /// <summary>[batch, key_len, kv_heads, head_dim] float32; only filled positions hold numbers.</summary>
    public TensorView Key { get; }

    /// <summary>[batch, key_len, kv_heads, value_dim] float32; only filled positions hold numbers.</summary>
    public TensorView Value { get; }

    /// <summary>The same numbers for one KV head and its query heads alone, filled whole: what a check needs.</summary>
    public static SyntheticTensors OneHead(AttentionShape shape, int seed, int kvHead)
    {
        var alone = new SyntheticTensors(shape with { KvHeads = 1, QueryHeads = shape.GroupSize }, seed, kvHead);
        for (int position = 0; position < shape.KeyLength; position++)
        {
            alone.FillKey(position);
        }

        return alone;
    }

    /// <summary>Fills the keys and values of a shard's positions.</summary>
    public void Fill(ShardPlan plan)
    {
        _ = Parallel.For(0, plan.Pages.Count, index =>
        {
            KeyPage page = plan.Pages[index];
            for (int i = 0; page.Batch == 0 && i < page.Span.Count; i++)
            {
                FillKey(page.Span.PositionAt(i));
            }
        });
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        for (int i = 0; i < _memory.Length; i++)
        {
            NativeMemory.Free((void*)_memory[i]);
            _memory[i] = 0;
        }
    }

    /// <summary>Fills the keys and values of one position.</summary>
    public void FillKey(int position)
    {
        FillPosition(Key, 2, position, _firstKvHead);
        FillPosition(Value, 3, position, _firstKvHead);
    }

    /// <inheritdoc/>
    public void Read(int row, int position, Span<float> key, Span<float> value)
    {
        ReadRows(key, _shape.HeadDim, 2, row, position);
        ReadRows(value, _shape.ValueDim, 3, row, position);
    }

    private void ReadRows(Span<float> into, int dim, int which, int batch, int position)
    {
        for (int head = 0; head < into.Length / dim; head++)
        {
            FillRow(into.Slice(head * dim, dim), which, batch, position, _firstKvHead + head);
        }
    }

    /// <summary>The queries of one position of a batch row.</summary>
    /// <param name="row">Batch row.</param>
    /// <param name="position">Any position, also past the queries that the tensors hold.</param>
    /// <param name="query">[query_heads, head_dim] to be filled.</param>
    public void ReadQuery(int row, int position, Span<float> query)
    {
        for (int head = 0; head < _shape.QueryHeads; head++)
        {
            FillRow(query.Slice(head * _shape.HeadDim, _shape.HeadDim), 1, row, position, (_firstKvHead * _shape.GroupSize) + head);
        }
    }

    // Large zeroed allocations come from the system untouched: no page exists before it is written.
    private TensorView Reserve(string name, int length, int heads, int dim, out nint address)
    {
        long elements = (long)_shape.Batch * length * heads * dim;
        address = (nint)NativeMemory.AllocZeroed((nuint)Math.Max(1, elements), sizeof(float));
        return new TensorView(name, address, ElementType.Float32, [_shape.Batch, length, heads, dim]);
    }

    private void FillPosition(TensorView tensor, int which, int position, int firstHead)
    {
        int heads = (int)tensor.Shape[2];
        int dim = (int)tensor.Shape[3];
        for (int batch = 0; batch < _shape.Batch; batch++)
        {
            for (int head = 0; head < heads; head++)
            {
                long offset = tensor.OffsetOf([batch, position, head]);
                FillRow(new Span<float>((float*)tensor.Address + offset, dim), which, batch, position, firstHead + head);
            }
        }
    }

    // SplitMix64 (Steele, Lea, Flood 2014), started at a hash of the row; two elements from each 64 bits.
    private void FillRow(Span<float> row, int which, int batch, int position, int head)
    {
        ulong state = Mix(((ulong)(uint)_seed << 32) | (uint)which);
        state = Mix(state ^ (((ulong)(uint)batch << 32) | (uint)head));
        state = Mix(state ^ (uint)position);
        for (int i = 0; i < row.Length; i += 2)
        {
            state += 0x9E3779B97F4A7C15;
            ulong bits = Mix(state);
            row[i] = (int)bits * (HalfWidth / 2147483648f);
            if (i + 1 < row.Length)
            {
                row[i + 1] = (int)(bits >> 32) * (HalfWidth / 2147483648f);
            }
        }
    }

    private static ulong Mix(ulong value)
    {
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
        return value ^ (value >> 31);
    }
}
