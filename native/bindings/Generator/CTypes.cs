using System;
using System.Collections.Generic;
using System.Linq;
using System.Xml.Linq;

namespace TreeAttention.Bindings;

/// <summary>The declarations in castxml's XML, and C's types as C# writes them.</summary>
internal sealed class CTypes
{
    private readonly Dictionary<string, XElement> _byId;
    private readonly Dictionary<string, string> _typedefs = new(StringComparer.Ordinal);

    /// <summary>Indexes a document.</summary>
    public CTypes(XDocument document)
    {
        Root = document.Root!;
        _byId = Root.Elements().Where(element => element.Attribute("id") is not null).ToDictionary(element => Text(element, "id"));
        foreach (XElement typedef in Root.Elements("Typedef"))
        {
            XElement target = Bare(Text(typedef, "type"));
            if (target.Name == "Enumeration")
            {
                _typedefs.TryAdd(Text(target, "id"), Text(typedef, "name"));
            }
        }
    }

    /// <summary>The document's root: all declarations.</summary>
    public XElement Root { get; }

    /// <summary>Enumerations that were named, in the order in which they were first needed.</summary>
    public List<XElement> Enumerations { get; } = [];

    /// <summary>An attribute's text; empty when there is none.</summary>
    public static string Text(XElement element, string attribute) => element.Attribute(attribute)?.Value ?? "";

    /// <summary>The public name of an enumeration.</summary>
    public string NameOf(XElement enumeration) => _typedefs.GetValueOrDefault(Text(enumeration, "id"), Text(enumeration, "name"));

    /// <summary>A type as C# writes it.</summary>
    /// <exception cref="NotSupportedException">The type has no blittable form here: a structure by value, say.</exception>
    public string Write(string id)
    {
        XElement type = ById(id);
        switch (type.Name.LocalName)
        {
            case "CvQualifiedType" or "ElaboratedType":
                return Write(Text(type, "type"));
            case "Typedef" when Text(type, "name") == "size_t":
                return "nuint";
            case "Typedef":
                return Write(Text(type, "type"));
            case "FundamentalType":
                return WriteFundamental(Text(type, "name"));
            case "PointerType":
                return Bare(Text(type, "type")).Name == "Struct" ? "nint" : Write(Text(type, "type")) + "*"; // an opaque handle
            case "Enumeration":
                Need(type);
                return NameOf(type);
            default:
                throw new NotSupportedException($"{type.Name.LocalName} {Text(type, "name")} is a type that this generator does not write.");
        }
    }

    private static string WriteFundamental(string name) => name switch
    {
        "void" => "void",
        "char" => "sbyte", // as ClangSharp does
        "unsigned char" => "byte",
        "int" => "int",
        "unsigned int" => "uint",
        "long int" or "long long int" => "long",
        "long unsigned int" or "long long unsigned int" => "ulong",
        "float" => "float",
        _ => throw new NotSupportedException($"{name} is a type that this generator does not write."),
    };

    // Identifiers of qualified types end in c, v or r.
    private XElement ById(string id) => _byId.TryGetValue(id, out XElement? element) ? element : _byId[id.TrimEnd('c', 'v', 'r')];

    private XElement Bare(string id)
    {
        XElement type = ById(id);
        while (type.Name.LocalName is "CvQualifiedType" or "ElaboratedType" or "Typedef")
        {
            type = ById(Text(type, "type"));
        }

        return type;
    }

    private void Need(XElement enumeration)
    {
        if (!Enumerations.Contains(enumeration))
        {
            Enumerations.Add(enumeration);
        }
    }
}
