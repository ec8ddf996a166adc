using System.Collections.Generic;
using System.Collections.Immutable;
using System.Linq;
using System.Reflection.Metadata;

namespace TreeAttention.Tests.Architecture;

/// <summary>Names of the outermost types that a signature, a member or a token names: <c>TreeAttention.Distributed.Layout.ShardPlan</c>, arity cut off.</summary>
internal sealed class TypeNames(MetadataReader metadata) : ISignatureTypeProvider<IEnumerable<string>, object?>
{
    private static readonly IEnumerable<string> _none = [];

    /// <summary>The type around all others that holds this one.</summary>
    public static string Outermost(MetadataReader metadata, TypeDefinitionHandle handle)
    {
        TypeDefinition type = metadata.GetTypeDefinition(handle);
        while (!type.GetDeclaringType().IsNil)
        {
            type = metadata.GetTypeDefinition(type.GetDeclaringType());
        }

        return Name(metadata.GetString(type.Namespace), metadata.GetString(type.Name));
    }

    /// <summary>Adds the types that a base, an interface or a cast names.</summary>
    public void AddType(ISet<string> used, EntityHandle handle)
    {
        if (!handle.IsNil)
        {
            used.UnionWith(handle.Kind switch
            {
                HandleKind.TypeDefinition => GetTypeFromDefinition(metadata, (TypeDefinitionHandle)handle, 0),
                HandleKind.TypeReference => GetTypeFromReference(metadata, (TypeReferenceHandle)handle, 0),
                HandleKind.TypeSpecification => metadata.GetTypeSpecification((TypeSpecificationHandle)handle).DecodeSignature(this, null),
                _ => _none,
            });
        }
    }

    /// <summary>Adds the types of a method's parameters and result.</summary>
    public static void AddSignature(ISet<string> used, MethodSignature<IEnumerable<string>> signature)
    {
        used.UnionWith(signature.ReturnType);
        used.UnionWith(signature.ParameterTypes.SelectMany(type => type));
    }

    /// <summary>Adds the type that owns what a token of the code names, and the types in its signature.</summary>
    public void AddMember(ISet<string> used, EntityHandle token)
    {
        switch (token.Kind)
        {
            case HandleKind.MethodDefinition:
                AddType(used, metadata.GetMethodDefinition((MethodDefinitionHandle)token).GetDeclaringType());
                break;
            case HandleKind.FieldDefinition:
                AddType(used, metadata.GetFieldDefinition((FieldDefinitionHandle)token).GetDeclaringType());
                break;
            case HandleKind.MemberReference:
                AddType(used, metadata.GetMemberReference((MemberReferenceHandle)token).Parent);
                break;
            case HandleKind.MethodSpecification:
                MethodSpecification method = metadata.GetMethodSpecification((MethodSpecificationHandle)token);
                AddMember(used, method.Method);
                used.UnionWith(method.DecodeSignature(this, null).SelectMany(type => type));
                break;
            default:
                AddType(used, token);
                break;
        }
    }

    public IEnumerable<string> GetTypeFromDefinition(MetadataReader reader, TypeDefinitionHandle handle, byte rawTypeKind) => [Outermost(reader, handle)];

    public IEnumerable<string> GetTypeFromReference(MetadataReader reader, TypeReferenceHandle handle, byte rawTypeKind)
    {
        TypeReference type = reader.GetTypeReference(handle);
        while (type.ResolutionScope is { IsNil: false, Kind: HandleKind.TypeReference } scope)
        {
            type = reader.GetTypeReference((TypeReferenceHandle)scope);
        }

        return [Name(reader.GetString(type.Namespace), reader.GetString(type.Name))];
    }

    public IEnumerable<string> GetTypeFromSpecification(MetadataReader reader, object? genericContext, TypeSpecificationHandle handle, byte rawTypeKind) =>
        reader.GetTypeSpecification(handle).DecodeSignature(this, genericContext);

    public IEnumerable<string> GetArrayType(IEnumerable<string> elementType, ArrayShape shape) => elementType;

    public IEnumerable<string> GetByReferenceType(IEnumerable<string> elementType) => elementType;

    public IEnumerable<string> GetFunctionPointerType(MethodSignature<IEnumerable<string>> signature) =>
        signature.ReturnType.Concat(signature.ParameterTypes.SelectMany(type => type));

    public IEnumerable<string> GetGenericInstantiation(IEnumerable<string> genericType, ImmutableArray<IEnumerable<string>> typeArguments) =>
        genericType.Concat(typeArguments.SelectMany(type => type));

    public IEnumerable<string> GetGenericMethodParameter(object? genericContext, int index) => _none;

    public IEnumerable<string> GetGenericTypeParameter(object? genericContext, int index) => _none;

    public IEnumerable<string> GetModifiedType(IEnumerable<string> modifier, IEnumerable<string> unmodifiedType, bool isRequired) => unmodifiedType;

    public IEnumerable<string> GetPinnedType(IEnumerable<string> elementType) => elementType;

    public IEnumerable<string> GetPointerType(IEnumerable<string> elementType) => elementType;

    public IEnumerable<string> GetPrimitiveType(PrimitiveTypeCode typeCode) => _none;

    public IEnumerable<string> GetSZArrayType(IEnumerable<string> elementType) => elementType;

    private static string Name(string space, string name) => $"{space}.{name.Split('`')[0]}";
}
