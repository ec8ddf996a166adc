using System;
using System.Collections.Generic;
using System.Globalization;
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
            if (target.Name == "Enumeration" || target.Name == "Struct")
            {
                _typedefs.TryAdd(Text(target, "id"), Text(typedef, "name"));
            }
        }
    }

    /// <summary>The document's root: all declarations.</summary>
    public XElement Root { get; }

    /// <summary>Enumerations that were named, in the order in which they were first needed.</summary>
    public List<XElement> Enumerations { get; } = [];

    /// <summary>Structures that were named and whose fields are known, in the order in which they were first needed.</summary>
    public List<XElement> Structures { get; } = [];

    /// <summary>An attribute's text; empty when there is none.</summary>
    public static string Text(XElement element, string attribute) => element.Attribute(attribute)?.Value ?? "";

    /// <summary>The line of the header, counted from 1, on which a declaration stands.</summary>
    public static int LineOf(XElement element) => int.Parse(Text(element, "line"), CultureInfo.InvariantCulture);

    /// <summary>The public name of an enumeration or a structure.</summary>
    public string NameOf(XElement type) => _typedefs.GetValueOrDefault(Text(type, "id"), Text(type, "name"));

    /// <summary>The fields of a structure, in order: name, type, how many elements an array has (0: it is none), and the line of the header.</summary>
    public IEnumerable<(string Name, string Type, int Length, int Line)> FieldsOf(XElement structure)
    {
        foreach (string id in Text(structure, "members").Split(' '))
        {
            XElement member = ById(id);
            if (member.Name == "Field")
            {
                XElement type = ById(Text(member, "type"));
                bool isArray = type.Name == "ArrayType";
                int length = isArray ? int.Parse(Text(type, "max"), CultureInfo.InvariantCulture) + 1 : 0;
                yield return (Text(member, "name"), Write(isArray ? Text(type, "type") : Text(member, "type")), length, LineOf(member));
            }
        }
    }

    /// <summary>A type as C# writes it.</summary>
    /// <exception cref="NotSupportedException">The type has no blittable form here: a union, say.</exception>
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
                return IsOpaque(Bare(Text(type, "type"))) ? "nint" : Write(Text(type, "type")) + "*"; // an opaque handle
            case "Enumeration":
                Need(type, Enumerations);
                return NameOf(type);
            case "Struct":
                Need(type, Structures);
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
        "double" => "double",
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

    private static bool IsOpaque(XElement type) => type.Name == "Struct" && Text(type, "incomplete") == "1";

    private static void Need(XElement type, List<XElement> needed)
    {
        if (!needed.Contains(type))
        {
            needed.Add(type);
        }
    }
}
