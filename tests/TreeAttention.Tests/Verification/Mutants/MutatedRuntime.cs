using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.Loader;
using Microsoft.CodeAnalysis;
using TreeAttention.Tests.Architecture;

namespace TreeAttention.Tests.Verification.Mutants;

/// <summary>The runtime with all mutants planted in its source, compiled once and loaded beside the real one, with whatever uses it.</summary>
/// <remarks>A switch in the compiled assembly says which mutant is at work, so that a trial costs neither a compilation nor cold code.</remarks>
internal sealed class MutatedRuntime : AssemblyLoadContext
{
    private const string Runtime = "TreeAttention.Distributed";

    private readonly Assembly _runtime;
    private readonly FieldInfo _switch;
    private readonly MethodInfo _trial;

    /// <summary>Compiles and loads.</summary>
    /// <exception cref="InvalidOperationException">A mutant's expression is not in the source once, or what stands in its place is no C#.</exception>
    public MutatedRuntime(IReadOnlyList<Mutant> mutants)
    {
        using var image = new MemoryStream();
        string[] errors = CSharpSource.Compile(Runtime, OutputKind.DynamicallyLinkedLibrary, Plant(mutants), [], image);
        if (errors.Length > 0)
        {
            throw new InvalidOperationException($"The runtime does not compile with its mutants: {string.Join('\n', errors)}");
        }

        image.Position = 0;
        _runtime = LoadFromStream(image);
        _switch = _runtime.GetType($"{Runtime}.Planted")!.GetField("Mutant", BindingFlags.Static | BindingFlags.NonPublic)!;
        Type trial = LoadFromAssemblyPath(typeof(VerifyTrial).Assembly.Location).GetType(typeof(VerifyTrial).FullName!)!;
        _trial = trial.GetMethod(nameof(VerifyTrial.Run))!;
    }

    /// <summary>Cases that failed in trials of this runtime so far.</summary>
    public HashSet<int> Failed { get; } = [];

    /// <summary>Runs verify's cases with one mutant at work, until one fails; with none at work, the cases that failed with one.</summary>
    /// <param name="mutant">The mutant's number, from 1; 0 is none.</param>
    /// <returns>The case that failed; null when none did.</returns>
    public int? FirstFailure(int mutant)
    {
        _switch.SetValue(null, mutant);
        int? failed = (int?)_trial.Invoke(null, [mutant == 0 ? Failed.ToArray() : null]);
        Failed.UnionWith(mutant != 0 && failed is { } number ? [number] : []);
        return failed;
    }

    /// <inheritdoc/>
    protected override Assembly? Load(AssemblyName assemblyName)
    {
        string name = assemblyName.Name!;
        if (name == Runtime)
        {
            return _runtime;
        }

        bool isOurs = name == "treeattn" || name.StartsWith("TreeAttention.", StringComparison.Ordinal);
        return isOurs ? LoadFromAssemblyPath(BuiltAssemblies.PathOf(name)) : null;
    }

    private static IEnumerable<CSharpSource> Plant(IReadOnlyList<Mutant> mutants)
    {
        string project = Path.Combine("src", Runtime);
        foreach (string path in RepositoryText.FilesBelow(project, ".cs"))
        {
            string file = Path.GetRelativePath(project, path);
            yield return new CSharpSource(file, Mutant.Plant(file, File.ReadAllText(Path.Combine(RepositoryText.Root, path)), mutants));
        }

        yield return new CSharpSource("Planted.cs", Mutant.Switch);
        foreach (InternalsVisibleToAttribute friend in Assembly.Load(Runtime).GetCustomAttributes<InternalsVisibleToAttribute>())
        {
            yield return new CSharpSource(
                "Friends.cs", $"[assembly: System.Runtime.CompilerServices.InternalsVisibleTo(\"{friend.AssemblyName}\")]");
        }
    }
}
