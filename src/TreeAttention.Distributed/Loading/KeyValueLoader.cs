using System;

namespace TreeAttention.Distributed;

/// <summary>Repacks one rank's keys and values from tensors into the pages of a device, and measures them on the way.</summary>
/// <remarks>
/// Only the rows of the shard are read, so that of a mapped file only its own part is ever touched. The message about a bad
/// element depends on the tensors and the plan alone: keys before values, then ascending batch row, position, head, dimension.
/// </remarks>
public static class KeyValueLoader
{
    /// <summary>Loads a shard.</summary>
    /// <param name="device">Allocates the contents; whoever gets the shard frees them.</param>
    /// <param name="plan">Pages, storage type (f32, f16, bf16 or f8e4m3) and scales.</param>
    /// <param name="key">
    /// [batch, key_len, kv_heads, head_dim], the whole tensor, any strides, any floating-point type. A tensor of f8e4m3 with
    /// scales of its own has those of the plan.
    /// </param>
    /// <param name="value">[batch, key_len, kv_heads, value_dim]; not looked at when the values lie in the keys.</param>
    /// <param name="policy">What happens to NaN and infinities. A finite element too large for the storage type is always a fault.</param>
    /// <exception cref="ShapeMismatchException">A tensor does not have the shape of the plan.</exception>
    /// <exception cref="FaultException">An element that must not be stored (65), out of memory (71), no such storage type (69).</exception>
    public static KeyValueShard Load(IDevice device, ShardPlan plan, TensorView key, TensorView value, NonFinitePolicy policy)
    {
        if (plan.Type is not (ElementType.Float32 or ElementType.Float16 or ElementType.BFloat16 or ElementType.Float8E4M3))
        {
            throw new FaultException(
                FaultCode.Unavailable, $"Keys and values cannot be stored as {plan.Type.ShortName()}. Use --dtype f32, f16, bf16 or f8e4m3.");
        }

        AttentionShape shape = plan.Shape;
        var keys = new PageWriter(key, plan, shape.HeadDim, policy, plan.KeyScaleOf);
        PageWriter? values = plan.ValuesInKeys ? null : new PageWriter(value, plan, shape.ValueDim, policy, plan.ValueScaleOf);
        Region contents = device.Allocate(plan.Bytes, plan.Type);
        try
        {
            PageLimits[] limits = WritePages(device, plan, contents, keys, shape.HeadDim, page => page.KeyOffset);
            PageLimits[] valueLimits = values is not null
                ? WritePages(device, plan, contents, values, shape.ValueDim, page => page.ValueOffset)
                : limits;
            for (int i = 0; i < limits.Length; i++)
            {
                limits[i] = limits[i] with { LargestValue = valueLimits[i].LargestValue };
            }

            return new KeyValueShard(plan, contents, limits);
        }
        catch
        {
            device.Free(contents);
            throw;
        }
    }

    private static PageLimits[] WritePages(
        IDevice device, ShardPlan plan, Region contents, PageWriter writer, int dim, Func<KeyPage, long> offsetOf)
    {
        int heads = plan.Shape.KvHeads;
        int measured = plan.ValuesInKeys ? plan.Shape.ValueDim : dim;
        var limits = new PageLimits[plan.Pages.Count * heads];
        using HostMemory? staging = device.Place == MemoryPlace.Device
            ? new HostMemory((long)heads * PageSpan.Keys * dim * plan.Type.SizeInBytes(), plan.Type)
            : null;
        for (int i = 0; i < plan.Pages.Count; i++)
        {
            KeyPage page = plan.Pages[i];
            long count = writer.ElementsOf(page);
            Region target = contents.Slice(offsetOf(page), count);
            Region written = staging?.Region.Slice(0, count) ?? target;
            writer.Write(page, written.AsSpan<byte>(), measured, limits.AsSpan(i * heads, heads));
            if (staging is not null)
            {
                // The next page reuses the staging memory, so its bytes must have left.
                device.Copy(written, target);
                device.Synchronize();
            }
        }

        return limits;
    }
}
