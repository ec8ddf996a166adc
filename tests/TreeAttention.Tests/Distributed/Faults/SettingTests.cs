using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Text.RegularExpressions;
using TreeAttention.Devices.Cpu;
using TreeAttention.Distributed.Faults;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Processes;
using TreeAttention.Tests.Architecture;
using Xunit;

namespace TreeAttention.Tests.Distributed.Faults;

/// <summary>Messages of the library name what its callers have; the command line has a flag for each of these names.</summary>
public sealed class SettingTests
{
    private const string List = "TreeAttention.Distributed/Faults/Setting.cs";

    private static readonly string _sources = Path.Combine(EmulatedCuda.Root, "src");

    private static readonly string[] _commands = ["attend", "decode", "bench", "verify"];

    // Flags of other programs: containers, the build script, NVRTC.
    private static readonly string[] _flagsOfOthers = ["--shm-size=1g", "scripts/build.sh --all", "--gpu-architecture=", "--std=c++17", "--fmad=false"];

    // What callers give in an argument or by the order of a tensor's axes, not in a property.
    private static readonly string[] _plainWords = ["the order of the axes", "force: true", "replicated query placement", "sharded query placement"];

    [Fact]
    public void No_text_below_the_command_line_holds_a_flag()
    {
        string[] found = [.. LinesBelow("TreeAttention.Cli").Where(line => HasFlag(line.Text)).Select(line => $"{line.File}: {line.Text.Trim()}")];

        Assert.Empty(found);
    }

    [Theory]
    [InlineData("throw new FaultException(code, \"Run with --device cpu.\");", true)]
    [InlineData("string option = $\"--{name}-scale\";", true)]
    [InlineData("/// <summary>What --nan says.</summary>", true)]
    [InlineData("string hint = \"Containers: --shm-size=1g.\";", false)]
    [InlineData("rows *= shape[\"axes\"][--outer];", false)]
    [InlineData("for (; count > 0; --count) // downwards", false)]
    public void A_flag_in_a_text_or_a_comment_is_seen_and_a_decrement_is_none(string line, bool hasFlag) => Assert.Equal(hasFlag, HasFlag(line));

    [Fact]
    public void A_setting_stands_in_braces_of_a_text_that_is_filled_in()
    {
        string[] found = [.. LinesBelow("TreeAttention.Cli")
            .Where(line => Regex.Matches(line.Text, @"""[^""]*\{Setting\.").Any(match => match.Index == 0 || line.Text[match.Index - 1] != '$'))
            .Select(line => $"{line.File}: {line.Text.Trim()}")];

        Assert.Empty(found);
    }

    [Fact]
    public void Every_setting_is_a_member_that_callers_of_the_library_have()
    {
        Dictionary<string, Type> face = FaceOf(typeof(FaultException), typeof(CpuDevice), typeof(AttentionGroup));

        foreach (Setting setting in Setting.All.Where(setting => !_plainWords.Contains(setting.Name)))
        {
            MatchCollection members = Regex.Matches(setting.Name, @"([A-Z]\w+)\.(\w+)");
            Assert.True(members.Count > 0, $"'{setting.Name}' names no member.");
            foreach (Match member in members)
            {
                Assert.True(face.TryGetValue(member.Groups[1].Value, out Type? type), $"'{setting.Name}' names no public type.");
                Assert.True(type.GetMember(member.Groups[2].Value).Length > 0, $"'{setting.Name}' names no public member.");
            }
        }
    }

    [Fact]
    public void Every_setting_is_named_by_some_message()
    {
        string sources = string.Concat(LinesBelow("TreeAttention.Cli").Where(line => line.File != List).Select(line => line.Text));
        IEnumerable<string> properties = typeof(Setting)
            .GetProperties(BindingFlags.Public | BindingFlags.Static)
            .Where(property => property.PropertyType == typeof(Setting))
            .Select(property => property.Name);

        string[] unused = [.. properties.Where(name => !Regex.IsMatch(sources, $@"\bSetting\.{name}\b"))];

        Assert.Empty(unused);
    }

    [Fact]
    public void Every_flag_that_stands_for_a_setting_is_an_option_of_the_command_line()
    {
        string[] flags = [.. FlagTable.Flags.Values.SelectMany(text => Regex.Matches(text, @"--[a-z-]+").Select(match => match.Value)).Distinct()];
        HashSet<string> options = [.. _commands.SelectMany(OptionsOf)];

        Assert.Equal(Setting.All.Count, FlagTable.Flags.Count);
        Assert.All(flags, flag => Assert.Contains(flag, options));
    }

    [Fact]
    public void Names_that_leave_a_setting_out_are_refused()
    {
        var names = Setting.All.Skip(1).ToDictionary(setting => setting, setting => setting.Name);

        ArgumentException refusal = Assert.Throws<ArgumentException>(() => Setting.UseNames(names));

        Assert.Contains(Setting.All[0].Name, refusal.Message, StringComparison.Ordinal);
    }

    private static bool HasFlag(string line)
    {
        string rest = _flagsOfOthers.Aggregate(line, (text, flag) => text.Replace(flag, "", StringComparison.Ordinal));
        return Regex.Matches(rest, @"(?<![-\w])--[a-z{]").Any(match => IsInText(rest[..match.Index]));
    }

    // Behind an odd number of quotes, or in a comment.
    private static bool IsInText(string before) =>
        before.Count(character => character == '"') % 2 != 0 || before.Contains("//", StringComparison.Ordinal);

    private static IEnumerable<(string File, string Text)> LinesBelow(string top) =>
        Directory.EnumerateFiles(_sources, "*.cs", SearchOption.AllDirectories)
            .Select(path => (Path: path, File: Path.GetRelativePath(_sources, path)))
            .Where(source => !source.File.StartsWith(top + "/", StringComparison.Ordinal))
            .SelectMany(source => File.ReadLines(source.Path).Select(text => (source.File, text)));

    private static Dictionary<string, Type> FaceOf(params Type[] ofAssemblies) => ofAssemblies
        .SelectMany(type => type.Assembly.GetExportedTypes())
        .Where(type => !type.IsNested)
        .ToDictionary(type => type.Name);

    private static IEnumerable<string> OptionsOf(string command)
    {
        using var process = TreeattnProcess.Start([command, "--help"]);
        return [.. Regex.Matches(process.Wait().Exits(0).Output, @"^ +(--[a-z-]+)", RegexOptions.Multiline).Select(match => match.Groups[1].Value)];
    }
}
