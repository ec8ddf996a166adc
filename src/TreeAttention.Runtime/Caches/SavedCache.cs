using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Layout;
using TreeAttention.Runtime.Files;

namespace TreeAttention.Runtime.Caches;

/// <summary>The files of one saved cache, mapped: what each row has, and where each of its pages is.</summary>
internal sealed class SavedCache : IDisposable
{
    private const int Columns = 3;       // row, page, contents
    private const int ColumnsBefore = 2; // without contents: each entry has its own
    private const int SaveNumbers = 4;

    private readonly CacheOptions _options;
    private readonly List<IDisposable> _files = [];
    private readonly Dictionary<(int Row, int Page), (int File, int Index)> _pages = [];
    private readonly TensorTokens[,] _tokens; // [layers, files]
    private readonly int[] _lengths;
    private readonly int[] _padding;

    /// <summary>Opens all files of a save.</summary>
    /// <exception cref="FaultException">There is no save or one of its files is missing (66), or it does not fit the options (65).</exception>
    public SavedCache(string directory, string prefix, CacheOptions options)
    {
        _options = options;
        string[] paths = PathsIn(directory, prefix);
        _tokens = new TensorTokens[options.Layers, paths.Length];
        try
        {
            _lengths = Integers(paths[0], "lengths", options.Layers, options.Rows);
            _padding = Integers(paths[0], "padding", options.Rows);
            RequireLengths(paths[0]);
            RequireOneSave(paths);
            for (int file = 0; file < paths.Length; file++)
            {
                Open(paths[file], file);
            }
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>Tokens of a row that a layer has.</summary>
    public int LengthOf(int layer, int row) => _lengths[(layer * _options.Rows) + row];

    /// <summary>Left padding of a row.</summary>
    public int PaddingOf(int row) => _padding[row];

    /// <summary>All rows, the longest first: of rows that share the page they end in, that one has all of its tokens.</summary>
    public IEnumerable<int> RowsByLength => Enumerable.Range(0, _options.Rows).OrderByDescending(ShortestOf);

    /// <summary>With which of some rows a row begins, and how many tokens they have in common; none of them with 0.</summary>
    /// <remarks>Forks share pages from the first on, so the row with the most has them all.</remarks>
    public (int Row, int Tokens) SharedWith(int row, IReadOnlyList<int> others)
    {
        (int Row, int Tokens) best = (-1, 0);
        foreach (int other in others)
        {
            int page = 0;
            while (_pages.TryGetValue((row, page), out (int File, int Index) mine) && _pages.TryGetValue((other, page), out (int File, int Index) theirs)
                && mine == theirs)
            {
                page++;
            }

            int tokens = (int)Math.Min((long)page * PageSpan.Keys, Math.Min(ShortestOf(row), ShortestOf(other)));
            best = tokens > best.Tokens ? (other, tokens) : best;
        }

        return best;
    }

    /// <summary>The tokens of a layer.</summary>
    public ITokenSource TokensOf(int layer) => new LayerTokens(this, layer);

    /// <inheritdoc/>
    public void Dispose() => _files.ForEach(file => file.Dispose());

    private int ShortestOf(int row) => Enumerable.Range(0, _options.Layers).Min(layer => LengthOf(layer, row));

    private static string[] PathsIn(string directory, string prefix)
    {
        string[] paths = Directory.Exists(directory) ? [.. Directory.GetFiles(directory, prefix + "*.safetensors").Order(StringComparer.Ordinal)] : [];
        string last = paths.Length == 0 ? "" : Path.GetFileNameWithoutExtension(paths[^1]);
        if (paths.Length == 0 || !last.EndsWith($"-of-{paths.Length:D5}", StringComparison.Ordinal) || !last.StartsWith($"{prefix}{paths.Length - 1:D5}", StringComparison.Ordinal))
        {
            throw new FaultException(
                FaultCode.MissingInput,
                $"{directory} holds {paths.Length} files {prefix}*.safetensors, which are not those of one saved cache: every rank's file must be there, "
                + "named by its rank and the number of ranks, and no other.");
        }

        return paths;
    }

    private void RequireLengths(string path)
    {
        for (int index = 0; index < _lengths.Length; index++)
        {
            (int layer, int row) = (index / _options.Rows, index % _options.Rows);
            if (_lengths[index] < 0 || _padding[row] < 0 || _padding[row] > ShortestOf(row))
            {
                throw new FaultException(
                    FaultCode.BadInput,
                    $"{path}: row {row} of layer {layer} is said to have {_lengths[index]} tokens, {_padding[row]} of them padding: tokens are not "
                    + "negative, and padding is part of them. Save the cache again.");
            }
        }
    }

    // A save that was killed between two ranks leaves files of two saves under the names of one.
    private static void RequireOneSave(string[] paths)
    {
        string first = SaveOf(paths[0]);
        if (Array.Find(paths, path => SaveOf(path) != first) is { } other)
        {
            throw new FaultException(
                FaultCode.BadInput,
                $"{paths[0]} and {other} are of different saves: the later one did not come to its end. Load another save; this one cannot be mended.");
        }
    }

    private static string SaveOf(string path)
    {
        using var file = new MappedFile(path, new TensorFileFaults(CacheFiles.SaveId, path));
        return !SafetensorsHeader.Holds(file, CacheFiles.SaveId, new TensorFileFaults(CacheFiles.SaveId, path))
            ? ""
            : string.Join(' ', Integers(path, CacheFiles.SaveId, SaveNumbers));
    }

    private void Open(string path, int file)
    {
        var opened = new MappedFile(path, new TensorFileFaults("cache", path));
        _files.Add(opened);
        TensorView pages = TensorFile.ViewOf(opened, path, "pages");
        int columns = pages.Rank == 2 && pages.Shape[1] == ColumnsBefore ? ColumnsBefore : Columns;
        int[] numbers = Integers(path, "pages", pages.Shape[0], columns);
        int contents = 0;
        for (int entry = 0; entry < numbers.Length / columns; entry++)
        {
            ReadOnlySpan<int> place = numbers.AsSpan(entry * columns, columns);
            int index = columns == ColumnsBefore ? entry : place[2];
            if (index < 0 || index >= numbers.Length / columns)
            {
                throw new FaultException(
                    FaultCode.BadInput, $"{path}: page {place[1]} of row {place[0]} is said to be contents {index}, outside 0 to {(numbers.Length / columns) - 1}.");
            }

            _pages[(place[0], place[1])] = (file, index);
            contents = Math.Max(contents, index + 1);
        }

        KeyValueScales? scales = CacheFiles.ScalesOf(_options);
        for (int layer = 0; layer < _options.Layers; layer++)
        {
            TensorView key = Tokens(opened, path, $"layer.{layer}.key", contents, _options.HeadDim, scales?.Key);
            TensorView? value = _options.ValuesInKeys
                ? null
                : Tokens(opened, path, $"layer.{layer}.value", contents, _options.ValueDim, scales?.Value);
            _tokens[layer, file] = new TensorTokens(key, value, _options);
        }

        if (scales is not null)
        {
            RequireScales(path, CacheFiles.KeyScales, scales.Key);
            RequireScales(path, CacheFiles.ValueScales, _options.ValuesInKeys ? scales.Key : scales.Value);
        }
    }

    private static void RequireScales(string path, string name, float[] expected)
    {
        (float[] saved, _) = OptionTensor.Floats($"{path}:{name}", name);
        if (!saved.AsSpan().SequenceEqual(expected))
        {
            throw new FaultException(
                FaultCode.BadInput,
                FormattableString.Invariant($"{path}: {name} are [{string.Join(", ", saved)}], but this cache has [{string.Join(", ", expected)}]. ")
                + "Load it into a cache of the scales that it was saved with.");
        }
    }

    private TensorView Tokens(MappedFile file, string path, string name, long pages, int dim, float[]? scales)
    {
        TensorView view = TensorFile.ViewOf(file, path, name);
        long[] expected = [pages, PageSpan.Keys, _options.KvHeads, dim];
        if (view.Type != _options.Type || !view.Shape.AsSpan().SequenceEqual(expected))
        {
            throw new FaultException(
                FaultCode.BadInput,
                $"{path}: {name} is {view.Type.ShortName()} {view.ShapeText}, but this cache needs {_options.Type.ShortName()} [{string.Join(", ", expected)}]. "
                + "Load a save of the same model and storage type.");
        }

        return scales is null ? view : view.WithHeadScales(scales);
    }

    private static int[] Integers(string path, string name, params long[] shape)
    {
        using var file = TensorFile.Open($"{path}:{name}", name);
        if (file.View.Type != ElementType.Int32 || !file.View.Shape.AsSpan().SequenceEqual(shape))
        {
            throw new FaultException(
                FaultCode.BadInput,
                $"{path}: {name} is {file.View.Type.ShortName()} {file.View.ShapeText}, but this cache needs i32 [{string.Join(", ", shape)}]. Load it into "
                + "a cache of the same layers and rows.");
        }

        int[] integers = new int[file.View.Count];
        RowMajorReader.Read(file.View, (elements, first) => elements.CopyTo(MemoryMarshal.AsBytes(integers.AsSpan((int)first))));
        return integers;
    }

    /// <summary>One layer's tokens, whichever file they are in.</summary>
    private sealed class LayerTokens(SavedCache saved, int layer) : ITokenSource
    {
        public bool IsRotated => true;

        public void Read(int row, int position, Span<float> key, Span<float> value)
        {
            if (!saved._pages.TryGetValue((row, position / PageSpan.Keys), out (int File, int Index) place))
            {
                throw new FaultException(
                    FaultCode.BadInput, $"The saved cache has no page {position / PageSpan.Keys} of row {row}, though the row reaches it.");
            }

            saved._tokens[layer, place.File].Read(place.Index, position % PageSpan.Keys, key, value);
        }
    }
}
