using System.Reflection;

namespace TreeAttention.Cli.Arguments;

/// <summary>The version of this build: number and, where built from a checkout, commit.</summary>
internal static class ProductVersion
{
    /// <summary>As <c>0.1.0+1a2b3c4</c>.</summary>
    public static string Text { get; } =
        typeof(ProductVersion).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()!.InformationalVersion;
}
