using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Reflection.Metadata;
using System.Reflection.PortableExecutable;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Verification;

/// <summary>What judges the runtime shares nothing with it but data: read from the metadata of the built assembly.</summary>
public sealed class IndependenceTests
{
    /// <summary>Options, sizes and tensors as data; the bytes of a tensor and the memory of a copy; and what a number becomes when it is stored, which has tests over every bit pattern of its own.</summary>
    private static readonly string[] _shared =
    [
        "TreeAttention.AttentionOptions", "TreeAttention.AttentionShape", "TreeAttention.ElementType", "TreeAttention.ElementTypes",
        "TreeAttention.Llama3Scaling", "TreeAttention.LogarithmBase", "TreeAttention.RotaryOptions", "TreeAttention.TensorView",
        "TreeAttention.KeyValueScales",
        "TreeAttention.Distributed.Numerics.ElementConversion", "TreeAttention.Distributed.Numerics.HostMemory",
        "TreeAttention.Distributed.Numerics.MemoryAccount", "TreeAttention.Distributed.Numerics.Region",
        "TreeAttention.Distributed.Numerics.RowStorage", "TreeAttention.Distributed.Numerics.StorageType",
        "TreeAttention.Distributed.Numerics.TensorBytes",
    ];

    private static readonly string[] _dataAlone = ["AttentionOptions", "AttentionShape", "Llama3Scaling", "RotaryOptions"];

    [Fact]
    public void Verification_names_no_type_of_the_runtime_but_plain_data()
    {
        using PEReader assembly = Open();
        MetadataReader metadata = assembly.GetMetadataReader();
        string[] used = [.. metadata.TypeReferences.Select(handle => FullName(metadata, metadata.GetTypeReference(handle)))
            .Where(name => name.StartsWith("TreeAttention.", StringComparison.Ordinal))];

        Assert.Empty(used.Except(_shared));
        Assert.Empty(_shared.Except(used)); // what is no longer used is no longer allowed
    }

    [Fact]
    public void Of_options_and_sizes_it_reads_properties_and_calls_no_rule()
    {
        using PEReader assembly = Open();
        MetadataReader metadata = assembly.GetMetadataReader();
        List<string> called = [];
        foreach (MemberReferenceHandle handle in metadata.MemberReferences)
        {
            MemberReference member = metadata.GetMemberReference(handle);
            string name = metadata.GetString(member.Name);
            bool isData = name is ".ctor" or "<Clone>$" || name.StartsWith("get_", StringComparison.Ordinal)
                || name.StartsWith("set_", StringComparison.Ordinal);
            if (member.Parent.Kind == HandleKind.TypeReference && !isData)
            {
                TypeReference type = metadata.GetTypeReference((TypeReferenceHandle)member.Parent);
                called.Add($"{metadata.GetString(type.Name)}.{name}");
            }
        }

        Assert.DoesNotContain(called, method => _dataAlone.Contains(method.Split('.')[0]) && !method.EndsWith(".ToString", StringComparison.Ordinal));
        Assert.Contains(called, method => method.StartsWith("ElementConversion.", StringComparison.Ordinal));
    }

    private static PEReader Open() => new(File.OpenRead(typeof(ReferenceAttention).Assembly.Location));

    private static string FullName(MetadataReader metadata, TypeReference type) => type.ResolutionScope.Kind == HandleKind.TypeReference
        ? FullName(metadata, metadata.GetTypeReference((TypeReferenceHandle)type.ResolutionScope))
        : $"{metadata.GetString(type.Namespace)}.{metadata.GetString(type.Name)}";
}
