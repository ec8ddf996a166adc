using System;
using System.Collections.Generic;
using System.Linq;
using System.Linq.Expressions;
using System.Reflection;

namespace TreeAttention.Testing.Face;

/// <summary>A method or constructor of the public face as a delegate over boxed arguments; spans are given as arrays.</summary>
internal sealed class FaceCall
{
    private readonly Func<object?, object?[], object?> _call;

    private FaceCall(MethodBase method)
    {
        Method = method;
        ParameterInfo[] parameters = method.GetParameters();
        Parameters = parameters;
        _call = Compile(method, parameters);
    }

    public MethodBase Method { get; }

    public IReadOnlyList<ParameterInfo> Parameters { get; }

    public string Name =>
        $"{Method.DeclaringType!.Name}.{Method.Name}({string.Join(", ", Parameters.Select(parameter => $"{parameter.ParameterType.Name} {parameter.Name}"))})";

    /// <summary>The public methods that a type declares, without those that records and objects have by themselves.</summary>
    public static IEnumerable<FaceCall> MethodsOf(Type type) => type
        .GetMethods(BindingFlags.Public | BindingFlags.Instance | BindingFlags.Static | BindingFlags.DeclaredOnly)
        .Where(method => !method.IsSpecialName && !method.Name.Contains('<', StringComparison.Ordinal)
            && method.Name is not (nameof(ToString) or nameof(Equals) or nameof(GetHashCode) or "Deconstruct"))
        .Select(method => method.IsGenericMethodDefinition ? method.MakeGenericMethod(typeof(int)) : method)
        .Select(method => new FaceCall(method));

    /// <summary>The public constructors of a type.</summary>
    public static IEnumerable<FaceCall> ConstructorsOf(Type type) =>
        type.IsAbstract ? [] : type.GetConstructors(BindingFlags.Public | BindingFlags.Instance).Select(constructor => new FaceCall(constructor));

    /// <summary>The type of array that stands for a span; null for other types.</summary>
    public static Type? ArrayFor(Type type) =>
        type.IsGenericType && (type.GetGenericTypeDefinition() == typeof(ReadOnlySpan<>) || type.GetGenericTypeDefinition() == typeof(Span<>))
            ? type.GetGenericArguments()[0].MakeArrayType()
            : null;

    /// <summary>Calls, and lets through what the member itself throws.</summary>
    public object? Invoke(object? target, object?[] arguments) => _call(target, arguments);

    private static Func<object?, object?[], object?> Compile(MethodBase method, ParameterInfo[] parameters)
    {
        ParameterExpression target = Expression.Parameter(typeof(object));
        ParameterExpression arguments = Expression.Parameter(typeof(object[]));
        Expression[] values = [.. parameters.Select((parameter, i) => Take(Expression.ArrayIndex(arguments, Expression.Constant(i)), parameter.ParameterType))];
        Expression call = method switch
        {
            ConstructorInfo constructor => Expression.New(constructor, values),
            MethodInfo { IsStatic: true } instance => Expression.Call(instance, values),
            _ => Expression.Call(Expression.Convert(target, method.DeclaringType!), (MethodInfo)method, values),
        };
        Expression body = call.Type == typeof(void) || call.Type.IsByRefLike
            ? Expression.Block(call, Expression.Constant(null))
            : Expression.Convert(call, typeof(object));
        return Expression.Lambda<Func<object?, object?[], object?>>(body, target, arguments).Compile();
    }

    private static Expression Take(Expression boxed, Type type) => ArrayFor(type) is { } array
        ? Expression.Call(type.GetMethod("op_Implicit", [array])!, Expression.Convert(boxed, array))
        : Expression.Convert(boxed, type);
}
