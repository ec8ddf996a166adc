using System.Collections.Generic;
using System.IO;
using System.Linq;
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;

namespace TreeAttention.Tests.Architecture;

/// <summary>C# that a test compiles.</summary>
/// <param name="File">What messages of the compiler call it.</param>
/// <param name="Text">The code.</param>
internal sealed record CSharpSource(string File, string Text)
{
    /// <summary>Compiles sources to an assembly, optimised, with nullable types, as the projects are.</summary>
    /// <param name="assembly">Its name.</param>
    /// <param name="kind">A library or a program.</param>
    /// <param name="sources">Its sources.</param>
    /// <param name="references">Assemblies of ours that they use; the framework and packages are there anyway.</param>
    /// <param name="image">Receives the assembly.</param>
    /// <returns>The errors, with file and line; none when it compiles.</returns>
    public static string[] Compile(
        string assembly, OutputKind kind, IEnumerable<CSharpSource> sources, IEnumerable<string> references, Stream image)
    {
        var options = new CSharpCompilationOptions(
            kind, optimizationLevel: OptimizationLevel.Release, allowUnsafe: true, nullableContextOptions: NullableContextOptions.Enable);
        var compilation = CSharpCompilation.Create(
            assembly,
            sources.Select(source => source.Parse()),
            BuiltAssemblies.OfOthers.Concat(references).Select(path => MetadataReference.CreateFromFile(path)),
            options);
        return [.. compilation.Emit(image).Diagnostics.Where(found => found.Severity == DiagnosticSeverity.Error).Select(found => $"{found}")];
    }

    private SyntaxTree Parse() => CSharpSyntaxTree.ParseText(Text, new CSharpParseOptions(LanguageVersion.Latest, DocumentationMode.None), File);
}
