using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Reflection.Emit;
using System.Reflection.Metadata;
using System.Reflection.Metadata.Ecma335;
using System.Reflection.PortableExecutable;
using System.Text.RegularExpressions;

namespace TreeAttention.Tests.Architecture;

/// <summary>One file or room of src using another, and a pair of types that shows it.</summary>
internal sealed record CodeEdge(string From, string To, string User, string Used)
{
    public override string ToString() => $"{From} -> {To} ({User} uses {Used})";
}

/// <summary>The rooms of src, the types in them, and who uses whom: read from the sources (which type lies where) and the built assemblies (signatures and code).</summary>
/// <remarks>A constant and a nameof leave no trace in an assembly; what is used for these alone is not seen.</remarks>
internal sealed partial class CodeMap
{
    private static readonly Dictionary<short, OperandType> _operands = typeof(OpCodes).GetFields()
        .Select(field => (OpCode)field.GetValue(null)!).ToDictionary(code => code.Value, code => code.OperandType);

    private readonly Dictionary<string, string> _fileOfType = [];
    private readonly Dictionary<(string From, string To), CodeEdge> _fileEdges = [];

    private CodeMap()
    {
        Root = Path.Combine(RepositoryText.Root, "src");
        Files = [.. Directory.EnumerateFiles(Root, "*.cs", SearchOption.AllDirectories)
            .Select(file => Path.GetRelativePath(Root, file)).Where(file => !file.Split('/').Any(part => part is "obj" or "bin")).Order(StringComparer.Ordinal)];
        foreach (string file in Files)
        {
            string text = File.ReadAllText(Path.Combine(Root, file));
            string name = SpaceDeclaration().Match(text).Groups[1].Value;
            foreach (Match type in TypeDeclaration().Matches(text))
            {
                _fileOfType.TryAdd($"{name}.{type.Groups[1].Value}", file);
            }
        }

        foreach (string assembly in Assemblies())
        {
            Read(assembly);
        }
    }

    /// <summary>The map of this checkout.</summary>
    public static CodeMap Current { get; } = new();

    /// <summary>The folder src.</summary>
    public string Root { get; }

    /// <summary>Every C# file of src, relative to it.</summary>
    public IReadOnlyList<string> Files { get; }

    /// <summary>Every room with a file in it: <c>Distributed/Cache</c>; the first part is the project without its prefix.</summary>
    public IReadOnlyList<string> Rooms => [.. Files.Select(RoomOf).Distinct().Order(StringComparer.Ordinal)];

    /// <summary>Rooms that use another, an example each.</summary>
    public IReadOnlyList<CodeEdge> RoomEdges =>
        [.. _fileEdges.Values.Select(edge => edge with { From = RoomOf(edge.From), To = RoomOf(edge.To) }).Where(edge => edge.From != edge.To)
            .GroupBy(edge => (edge.From, edge.To)).Select(group => group.First()).OrderBy(edge => edge.From, StringComparer.Ordinal)];

    /// <summary>Lines of each file, in the order of <see cref="Files"/>.</summary>
    public IReadOnlyList<int> Lengths => [.. Files.Select(file => File.ReadLines(Path.Combine(Root, file)).Count())];

    /// <summary>Public top-level types of the package's assemblies, by full name.</summary>
    public static IReadOnlyList<string> PublicTypes =>
        [.. Assemblies().Where(path => !path.Contains("treeattn.dll", StringComparison.Ordinal) && !path.Contains("Verification", StringComparison.Ordinal))
            .SelectMany(PublicTypesOf).Order(StringComparer.Ordinal)];

    /// <summary>Sets of rooms that use each other in a circle: each set sorted, none when the rooms form floors.</summary>
    public static IReadOnlyList<IReadOnlyList<string>> Cycles(IReadOnlyList<CodeEdge> edges)
    {
        ILookup<string, string> next = edges.ToLookup(edge => edge.From, edge => edge.To);
        var reached = edges.Select(edge => edge.From).Distinct().ToDictionary(room => room, room => Reach(next, room));
        return [.. reached.Where(entry => entry.Value.Contains(entry.Key))
            .GroupBy(entry => string.Join(' ', entry.Value.Where(other => reached.TryGetValue(other, out HashSet<string>? back) && back.Contains(entry.Key)).Order(StringComparer.Ordinal)))
            .Select(group => (IReadOnlyList<string>)group.Key.Split(' '))];
    }

    private static HashSet<string> Reach(ILookup<string, string> next, string from)
    {
        HashSet<string> seen = [];
        var open = new Stack<string>(next[from]);
        while (open.TryPop(out string? room))
        {
            if (seen.Add(room))
            {
                foreach (string other in next[room])
                {
                    open.Push(other);
                }
            }
        }

        return seen;
    }

    private static string RoomOf(string file) => Path.GetDirectoryName(file)!["TreeAttention.".Length..];

    private static IEnumerable<string> Assemblies()
    {
        string[] names = ["Interop", "Distributed", "Verification", "Communication", "Devices", "Runtime"];
        return [.. names.Select(name => BuiltAssemblies.PathOf($"TreeAttention.{name}")), BuiltAssemblies.Program];
    }

    private static List<string> PublicTypesOf(string path)
    {
        using var file = new PEReader(File.OpenRead(path));
        MetadataReader metadata = file.GetMetadataReader();
        return [.. metadata.TypeDefinitions.Select(metadata.GetTypeDefinition)
            .Where(type => (type.Attributes & System.Reflection.TypeAttributes.VisibilityMask) == System.Reflection.TypeAttributes.Public)
            .Select(type => $"{metadata.GetString(type.Namespace)}.{metadata.GetString(type.Name)}")];
    }

    private void Read(string path)
    {
        using var file = new PEReader(File.OpenRead(path));
        MetadataReader metadata = file.GetMetadataReader();
        var names = new TypeNames(metadata);
        foreach (TypeDefinitionHandle handle in metadata.TypeDefinitions)
        {
            string user = TypeNames.Outermost(metadata, handle);
            if (_fileOfType.ContainsKey(user))
            {
                foreach (string used in UsedBy(file, metadata, names, metadata.GetTypeDefinition(handle)))
                {
                    Add(user, used);
                }
            }
        }
    }

    private void Add(string user, string used)
    {
        if (_fileOfType.TryGetValue(used, out string? to) && _fileOfType[user] is var from && from != to)
        {
            _fileEdges.TryAdd((from, to), new CodeEdge(from, to, user, used));
        }
    }

    private static HashSet<string> UsedBy(PEReader file, MetadataReader metadata, TypeNames names, TypeDefinition type)
    {
        HashSet<string> used = [];
        names.AddType(used, type.BaseType);
        foreach (InterfaceImplementationHandle handle in type.GetInterfaceImplementations())
        {
            names.AddType(used, metadata.GetInterfaceImplementation(handle).Interface);
        }

        foreach (FieldDefinitionHandle handle in type.GetFields())
        {
            used.UnionWith(metadata.GetFieldDefinition(handle).DecodeSignature(names, null));
        }

        foreach (MethodDefinitionHandle handle in type.GetMethods())
        {
            MethodDefinition method = metadata.GetMethodDefinition(handle);
            TypeNames.AddSignature(used, method.DecodeSignature(names, null));
            if (method.RelativeVirtualAddress != 0)
            {
                MethodBodyBlock body = file.GetMethodBody(method.RelativeVirtualAddress);
                if (!body.LocalSignature.IsNil)
                {
                    used.UnionWith(metadata.GetStandaloneSignature(body.LocalSignature).DecodeLocalSignature(names, null).SelectMany(local => local));
                }

                foreach (EntityHandle token in Tokens(body.GetILReader()))
                {
                    names.AddMember(used, token);
                }
            }
        }

        return used;
    }

    private static List<EntityHandle> Tokens(BlobReader code)
    {
        List<EntityHandle> tokens = [];
        while (code.RemainingBytes > 0)
        {
            short value = code.ReadByte();
            value = value == 0xFE ? (short)((0xFE << 8) | code.ReadByte()) : value;
            switch (_operands[value])
            {
                case OperandType.InlineField or OperandType.InlineMethod or OperandType.InlineTok or OperandType.InlineType:
                    tokens.Add(MetadataTokens.EntityHandle(code.ReadInt32()));
                    break;
                case OperandType.InlineSwitch:
                    int targets = code.ReadInt32();
                    code.Offset += targets * 4;
                    break;
                case OperandType.InlineI8 or OperandType.InlineR:
                    code.Offset += 8;
                    break;
                case OperandType.InlineVar:
                    code.Offset += 2;
                    break;
                case OperandType.ShortInlineBrTarget or OperandType.ShortInlineI or OperandType.ShortInlineVar:
                    code.Offset++;
                    break;
                case OperandType.InlineNone:
                    break;
                default:
                    code.Offset += 4;
                    break;
            }
        }

        return tokens;
    }

    [GeneratedRegex(@"^namespace ([\w.]+);", RegexOptions.Multiline)]
    private static partial Regex SpaceDeclaration();

    [GeneratedRegex(@"^(?:public|internal|file)[ \w]*?\b(?:class|struct|interface|enum|record(?: struct| class)?|delegate [\w<>\[\]?*]+) (\w+)", RegexOptions.Multiline)]
    private static partial Regex TypeDeclaration();
}
