using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Tests.Verification.Mutants;

/// <summary>
/// Mutants of what says which key a query sees and what is added to its score: each rule off by one, ignored, or by local positions.
/// </summary>
/// <remarks>"precise:" are mutants of the rules in double, which rows with large scores take.</remarks>
internal static class MaskMutants
{
    private const string Mask = "Semantics/AttentionMask.cs";

    /// <summary>All of them.</summary>
    public static IReadOnlyList<Mutant> All { get; } =
        [.. Lengths(), .. Order(), .. Windows(), .. Chunks(), .. Packing(), .. Alibi(), .. DepthFirst(), .. Tails(), .. Trees(), .. Positions()];

    private static IEnumerable<Mutant> Lengths() =>
    [
        .. At(Mask, "_options.KeyLengths?[batch] ?? _shape.KeyLength",
            ("key lengths ignored", "_shape.KeyLength"),
            ("key lengths one short", "_options.KeyLengths?[batch] - 1 ?? _shape.KeyLength"),
            ("key lengths of row 0 for all", "_options.KeyLengths?[0] ?? _shape.KeyLength")),
        .. At(Mask, "QueryLengths?[batch] ?? _shape.QueryLength",
            ("query lengths ignored", "_shape.QueryLength"),
            ("query lengths one short", "QueryLengths?[batch] - 1 ?? _shape.QueryLength"),
            ("query lengths of row 0 for all", "QueryLengths?[0] ?? _shape.QueryLength")),
        .. At(Mask, "i >= QueryLength(batch)",
            ("the last query of a row sees nothing", "i >= QueryLength(batch) - 1")),
        .. At("Partials/PartialMerge.cs", "indices[place] < problem.Mask.QueryLength(batch)",
            ("absent queries have sinks", "true"),
            ("absence by local index", "place < problem.Mask.QueryLength(batch)")),
        .. At(Mask, "_options.KeyStarts?[batch] ?? 0",
            ("left padding ignored", "0"),
            ("left padding one short", "(_options.KeyStarts?[batch] ?? 1) - 1"),
            ("left padding one long", "(_options.KeyStarts?[batch] ?? -1) + 1"),
            ("left padding of row 0 for all", "_options.KeyStarts?[0] ?? 0")),
        .. At(Mask, "new KeyInterval((int)Math.Max(place.First, first), (int)Math.Max(0, end))",
            ("a window reaches into left padding",
                "new KeyInterval((int)Math.Max(_options.WindowLeft >= 0 ? 0 : place.First, first), (int)Math.Max(0, end))")),
    ];

    private static IEnumerable<Mutant> Order() =>
    [
        .. At(Mask, "_options.IsCausal || _options.DfsStart is not null",
            ("causal ignored", "_options.DfsStart is not null"),
            ("depth-first sees later keys", "_options.IsCausal")),
        .. At(Mask, "Math.Min(end, (long)place.Position + 1)",
            ("causal sees one key more", "Math.Min(end, (long)place.Position + 2)"),
            ("causal sees one key less", "Math.Min(end, (long)place.Position)"),
            ("causal by local index", "Math.Min(end, (long)i + 1)")),
        .. At(Mask, "end - QueryLength(batch) + DepthOf(batch, i)",
            ("queries aligned with the first key", "DepthOf(batch, i)"),
            ("queries one place late", "end - QueryLength(batch) + DepthOf(batch, i) + 1"),
            ("queries one place early", "end - QueryLength(batch) + DepthOf(batch, i) - 1"),
            ("aligned with the tensor's last key", "_shape.KeyLength - QueryLength(batch) + DepthOf(batch, i)"),
            ("aligned with the tensor's last query", "end - _shape.QueryLength + DepthOf(batch, i)")),
    ];

    private static IEnumerable<Mutant> Windows() =>
    [
        .. At(Mask, "_options.WindowLeft >= 0 ? (long)place.Position - _options.WindowLeft : place.First",
            ("window left ignored", "(long)place.First"),
            ("window left one more", "_options.WindowLeft >= 0 ? (long)place.Position - _options.WindowLeft - 1 : place.First"),
            ("window left one less", "_options.WindowLeft >= 0 ? (long)place.Position - _options.WindowLeft + 1 : place.First"),
            ("window left of 0 means none", "_options.WindowLeft > 0 ? (long)place.Position - _options.WindowLeft : place.First"),
            ("window left by local index", "_options.WindowLeft >= 0 ? (long)i - _options.WindowLeft : place.First")),
        .. At(Mask, "Math.Min(end, (long)place.Position + _options.WindowRight + 1)",
            ("window right ignored", "end"),
            ("window right one more", "Math.Min(end, (long)place.Position + _options.WindowRight + 2)"),
            ("window right one less", "Math.Min(end, (long)place.Position + _options.WindowRight)"),
            ("window right of 0 means none",
                "_options.WindowRight == 0 ? end : Math.Min(end, (long)place.Position + _options.WindowRight + 1)"),
            ("window right by local index", "Math.Min(end, (long)i + _options.WindowRight + 1)")),
    ];

    private static IEnumerable<Mutant> Chunks() =>
    [
        .. At("Semantics/AttentionOptions.cs", "Causal || LocalChunk > 0",
            ("chunks do not imply causal", "Causal")),
        .. At(Mask, "Math.Max(first, place.Position - BehindChunkStart(place))",
            ("chunks ignored", "first"),
            ("chunks begin one key late", "Math.Max(first, place.Position - BehindChunkStart(place) + 1)"),
            ("chunks begin one key early", "Math.Max(first, place.Position - BehindChunkStart(place) - 1)"),
            ("chunks by local index", "Math.Max(first, i - (i % _options.LocalChunk))")),
        .. At(Mask, "((long)place.Position - place.First) % _options.LocalChunk",
            ("chunks one key longer", "((long)place.Position - place.First) % (_options.LocalChunk + 1)"),
            ("chunks count from the first place of the row", "(long)place.Position % _options.LocalChunk"),
            ("chunks count from the last key", "((long)place.Position - place.End) % _options.LocalChunk")),
        .. At(Mask, "_options.LocalChunk <= 0 || behind <= BehindChunkStart(PlaceOf(batch, i))",
            ("chunks by depth ignored", "true"),
            ("chunks by depth one less", "_options.LocalChunk <= 0 || behind < BehindChunkStart(PlaceOf(batch, i))"),
            ("chunks by depth one more", "_options.LocalChunk <= 0 || behind <= BehindChunkStart(PlaceOf(batch, i)) + 1")),
        .. At("Partials/PartialMerge.cs", "logSumExp / LogarithmOfTwo",
            ("base of the log-sum-exp ignored", "logSumExp"),
            ("base of the log-sum-exp the other way round", "logSumExp * LogarithmOfTwo")),
    ];

    private static IEnumerable<Mutant> Packing() =>
    [
        .. At(Mask, "QueryPlace.OfPacked(queries, keys, shape.QueryLength)",
            ("packed sequences ignored", "null")),
        .. At(Mask, Packed("keyBounds[sequence]", "keyBounds[sequence + 1]", "keyBounds[sequence + 1] - fromLast", "sequence"),
            ("packed queries aligned with the first key",
                Packed("keyBounds[sequence]", "keyBounds[sequence + 1]", "keyBounds[sequence] + i - queryBounds[sequence]", "sequence")),
            ("packed queries one place late",
                Packed("keyBounds[sequence]", "keyBounds[sequence + 1]", "keyBounds[sequence + 1] - fromLast + 1", "sequence")),
            ("packed queries one place early",
                Packed("keyBounds[sequence]", "keyBounds[sequence + 1]", "keyBounds[sequence + 1] - fromLast - 1", "sequence")),
            ("packed positions local to the sequence",
                Packed("keyBounds[sequence]", "keyBounds[sequence + 1]", "keyBounds[sequence + 1] - keyBounds[sequence] - fromLast", "sequence")),
            ("packed sequences see those before them",
                Packed("0", "keyBounds[sequence + 1]", "keyBounds[sequence + 1] - fromLast", "sequence")),
            ("packed sequences see those after them",
                Packed("keyBounds[sequence]", "keyBounds[^1]", "keyBounds[sequence + 1] - fromLast", "sequence")),
            ("packed sequences lack their first key",
                Packed("keyBounds[sequence] + 1", "keyBounds[sequence + 1]", "keyBounds[sequence + 1] - fromLast", "sequence")),
            ("packed sequences have one another's slopes",
                Packed("keyBounds[sequence]", "keyBounds[sequence + 1]", "keyBounds[sequence + 1] - fromLast", "0"))),
    ];

    private static string Packed(string first, string end, string position, string sequence) =>
        $"new QueryPlace({first}, {end}, {position}, {sequence})";

    private static IEnumerable<Mutant> Alibi() =>
    [
        .. At(Mask, "_options.AlibiSlopes is not null || _options.TailBias is not null",
            ("ALiBi ignored", "_options.TailBias is not null"),
            ("tail bias ignored", "_options.AlibiSlopes is not null")),
        .. At(Mask, "Math.Abs((float)(place.Position - key))",
            ("ALiBi signed", "(float)(place.Position - key)"),
            ("ALiBi one place further", "Math.Abs((float)(place.Position - key + 1))"),
            ("ALiBi by local index of the query", "Math.Abs((float)(i - key))"),
            ("ALiBi by local index of the key", "Math.Abs((float)(place.Position - n))")),
        .. At(Mask, "hasDepths ? KeyPosition(batch, positions[n]) : positions[n]",
            ("ALiBi by place, not by depth", "positions[n]")),
        .. At(Mask, "slopes.Length == _shape.QueryHeads ? slopes[head] : slopes[(place.Sequence * _shape.QueryHeads) + head]",
            ("ALiBi slopes of row 0 for all", "slopes[head]")),
        .. At(Mask, "Math.Abs((long)place.Position - KeyPosition(batch, j))",
            ("precise: ALiBi signed", "(long)place.Position - KeyPosition(batch, j)"),
            ("precise: ALiBi one place further", "Math.Abs((long)place.Position - KeyPosition(batch, j) + 1)"),
            ("precise: ALiBi by place, not by depth", "Math.Abs((long)place.Position - j)")),
    ];

    private static IEnumerable<Mutant> DepthFirst() =>
    [
        .. At(Mask, "start > ends[positions[n]]",
            ("depth-first ignored", "false"),
            ("depth-first hides the last descendant", "start >= ends[positions[n]]"),
            ("depth-first by local index", "start > ends[n]")),
        .. At(Mask, "DfsStart(batch, i) > DfsEnd(batch)[j]",
            ("precise: depth-first ignored", "false"),
            ("precise: depth-first hides the last descendant", "DfsStart(batch, i) >= DfsEnd(batch)[j]")),
        .. At(Mask, "_options.DfsStart![(batch * _shape.QueryLength) + i]",
            ("depth-first starts of row 0 for all", "_options.DfsStart![i]")),
        .. At(Mask, "_options.DfsEnd.AsSpan(batch * _shape.KeyLength, _shape.KeyLength)",
            ("depth-first ends of row 0 for all", "_options.DfsEnd.AsSpan(0, _shape.KeyLength)")),
        .. At(Mask, "first <= last && start > peaks[first]",
            ("a first block with one visible key is skipped", "first <= last && start >= peaks[first]")),
        .. At(Mask, "last >= first && start > peaks[last]",
            ("a last block with one visible key is skipped", "last >= first && start >= peaks[last]")),
        .. At(Mask, "TensorPrimitives.Max<int>(ends.AsSpan((i / _blocks * shape.KeyLength) + first, count))",
            ("a block is judged by its first key", "ends[(i / _blocks * shape.KeyLength) + first]"),
            ("blocks of row 0 for all", "TensorPrimitives.Max<int>(ends.AsSpan(first, count))")),
    ];

    private static IEnumerable<Mutant> Tails() =>
    [
        .. At(Mask, "_options.DfsStart is not null || _options.TailMask is not null || HasDepthRules",
            ("tail mask alone ignored", "_options.DfsStart is not null || HasDepthRules"),
            ("depth-first alone ignored", "_options.TailMask is not null || HasDepthRules")),
        .. At(Mask, "_options.TailMaskLength - PlaceOf(batch, i).End",
            ("tail mask one key late", "_options.TailMaskLength - PlaceOf(batch, i).End - 1"),
            ("tail mask one key early", "_options.TailMaskLength - PlaceOf(batch, i).End + 1"),
            ("tail mask of the tensor's last keys", "_options.TailMaskLength - _shape.KeyLength")),
        .. At(Mask, "row[positions[n] + origin] ? scores[n] : float.NegativeInfinity",
            ("tail mask ignored", "scores[n]"),
            ("tail mask inverted", "!row[positions[n] + origin] ? scores[n] : float.NegativeInfinity")),
        .. At(Mask, "column < 0 || TailMaskRow(batch, i)[column]",
            ("precise: tail mask ignored", "true"),
            ("precise: tail mask without its first key", "column <= 0 || TailMaskRow(batch, i)[column]")),
        .. At(Mask, "((batch * _shape.QueryLength) + i) * _options.TailMaskLength",
            ("tail mask of row 0 for all", "i * _options.TailMaskLength")),
        .. At(Mask, "_options.TailBiasLength - place.End",
            ("tail bias one key late", "_options.TailBiasLength - place.End - 1"),
            ("tail bias of the tensor's last keys", "_options.TailBiasLength - _shape.KeyLength")),
        .. At(Mask, "column < 0 ? 0 : TailBiasRow(batch, i)[column]",
            ("precise: tail bias ignored", "0")),
        .. At(Mask, "shared ? i : (batch * _shape.QueryLength) + i",
            ("tail bias of row 0 for all", "i")),
        .. At(Mask, "positions[first] + origin < 0",
            ("tails without their first key", "positions[first] + origin <= 0")),
        .. At(Mask, "positions[end - 1] + origin >= length",
            ("tails without their last key", "positions[end - 1] + origin >= length - 1")),
    ];

    private static IEnumerable<Mutant> Trees() =>
    [
        .. At(Mask, "_options.QueryDepths is not null && (_options.IsCausal || _options.WindowLeft >= 0 || _options.WindowRight >= 0)",
            ("depths ignored by causal", "_options.QueryDepths is not null && (_options.WindowLeft >= 0 || _options.WindowRight >= 0)"),
            ("depths ignored by a window left", "_options.QueryDepths is not null && (_options.IsCausal || _options.WindowRight >= 0)"),
            ("depths ignored by a window right", "_options.QueryDepths is not null && (_options.IsCausal || _options.WindowLeft >= 0)")),
        .. At(Mask, "depths.Length == _shape.QueryLength ? depths[i] : depths[(batch * _shape.QueryLength) + i]",
            ("depths of row 0 for all", "depths[i]"),
            ("nodes stand in a row", "i")),
        .. At(Mask, "Math.Max(place.First, Math.Min(first, Shift(batch)))",
            ("a window hides keys of the tree by place", "Math.Max(place.First, first)"),
            ("no window before the tree", "place.First")),
        .. At(Mask, "query < 0 ? j : Shift(batch) + DepthOf(batch, query)",
            ("precise: keys of the tree by place", "j")),
        .. At(Mask, "_options.QueryDepths is not null && query >= 0 && query < QueryLength(batch)",
            ("the root is no node", "_options.QueryDepths is not null && query > 0 && query < QueryLength(batch)"),
            ("the last node is none", "_options.QueryDepths is not null && query >= 0 && query < QueryLength(batch) - 1")),
        .. At(Mask, "!_options.IsCausal || behind >= 0",
            ("causal hides the node itself", "!_options.IsCausal || behind > 0"),
            ("causal by depth ignored", "true")),
        .. At(Mask, "_options.WindowLeft < 0 || behind <= _options.WindowLeft",
            ("window left by depth ignored", "true"),
            ("window left by depth one less", "_options.WindowLeft < 0 || behind < _options.WindowLeft"),
            ("window left by depth one more", "_options.WindowLeft < 0 || behind <= _options.WindowLeft + 1")),
        .. At(Mask, "_options.WindowRight < 0 || -behind <= _options.WindowRight",
            ("window right by depth ignored", "true"),
            ("window right by depth one less", "_options.WindowRight < 0 || -behind < _options.WindowRight")),
    ];

    private static IEnumerable<Mutant> Positions() =>
    [
        .. At("Layout/KeyRun.cs", "Run.CountBelow(positions.First) - Offset",
            ("intervals begin at local indices", "positions.First - Offset"),
            ("intervals begin one key late", "Run.CountBelow(positions.First) - Offset + 1")),
        .. At("Layout/KeyRun.cs", "Run.CountBelow(positions.End) - Offset",
            ("intervals end at local indices", "positions.End - Offset"),
            ("intervals end one key early", "Run.CountBelow(positions.End) - Offset - 1")),
        .. At("Layout/KeyRun.cs", "Math.Min(Block, distance % Stride)",
            ("a key too many counted inside a block", "Math.Min(Block, (distance % Stride) + 1)")),
        .. At("Loading/QueryLoader.cs", "new QueryBlock(block, indices)",
            ("queries know their local index alone", "new QueryBlock(block, [.. System.Linq.Enumerable.Range(0, indices.Length)])")),
    ];

    private static IEnumerable<Mutant> At(string file, string expression, params (string Name, string Instead)[] mutants) =>
        mutants.Select(mutant => new Mutant(mutant.Name, file, expression, mutant.Instead));
}
