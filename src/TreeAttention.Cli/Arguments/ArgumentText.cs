using System;
using System.Collections.Generic;
using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using System.Linq;

namespace TreeAttention.Cli.Arguments;

/// <summary>How the text of one argument becomes a value, whatever the locale; what is not one is an error of the command line.</summary>
internal static class ArgumentText
{
    /// <summary>An option with named values; not given, its value is that of its type's default, which help names.</summary>
    public static Option<T> Choice<T>(string name, string description, params (string Name, T Value)[] choices)
    {
        // A default that the option knew of would be printed by the name that it has in the source, not by the one that is taken.
        string? otherwise = choices.FirstOrDefault(choice => EqualityComparer<T>.Default.Equals(choice.Value, default)).Name;
        return new(name)
        {
            Description = otherwise is null ? description : $"{description} Default {otherwise}.",
            HelpName = string.Join('|', choices.Select(choice => choice.Name)),
            CustomParser = result =>
            {
                foreach ((string text, T value) in choices)
                {
                    if (result.Tokens[0].Value == text)
                    {
                        return value;
                    }
                }

                result.AddError($"{name} is one of {string.Join(", ", choices.Select(choice => choice.Name))}, not '{result.Tokens[0].Value}'.");
                return default;
            },
        };
    }

    /// <summary>A value that a parser of the domain reads; its FormatException is the error.</summary>
    public static T? Parsed<T>(ArgumentResult result, Func<string, T> parse)
    {
        try
        {
            return parse(result.Tokens[0].Value);
        }
        catch (FormatException error)
        {
            result.AddError($"{NameOf(result)}: {error.Message}");
            return default;
        }
    }

    /// <summary>An integer between two bounds.</summary>
    public static int? Integer(ArgumentResult result, int least, int most)
    {
        if (int.TryParse(result.Tokens[0].Value, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out int value)
            && value >= least && value <= most)
        {
            return value;
        }

        result.AddError($"{NameOf(result)} takes an integer from {least} to {most}, not '{result.Tokens[0].Value}'.");
        return null;
    }

    /// <summary>A finite number that satisfies a condition.</summary>
    public static double? Number(ArgumentResult result, Func<double, bool> condition, string rule)
    {
        if (double.TryParse(result.Tokens[0].Value, NumberStyles.Float, CultureInfo.InvariantCulture, out double value)
            && double.IsFinite(value) && condition(value))
        {
            return value;
        }

        result.AddError($"{NameOf(result)} takes {rule}, not '{result.Tokens[0].Value}'.");
        return null;
    }

    /// <summary>Integers of at least a value, separated by commas.</summary>
    public static int[]? Integers(ArgumentResult result, int least)
    {
        string text = result.Tokens[0].Value;
        string[] parts = text.Split(',');
        int[] values = new int[parts.Length];
        for (int i = 0; i < parts.Length; i++)
        {
            if (!int.TryParse(parts[i], NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out values[i]) || values[i] < least)
            {
                result.AddError($"{NameOf(result)} takes integers of at least {least}, separated by commas, not '{text}'.");
                return null;
            }
        }

        return values;
    }

    /// <summary>The values of an option that was given; null for one that was not.</summary>
    public static int[]? Given(ParseResult parsed, Option<int[]?> option) => parsed.GetResult(option) is null ? null : parsed.GetValue(option);

    /// <summary>A rule between options of a command. It is not asked when an option by itself is wrong: that is told already.</summary>
    public static void AddRule(Command command, Action<CommandResult> rule) => command.Validators.Add(result =>
    {
        try
        {
            rule(result);
        }
        catch (InvalidOperationException)
        {
            // Asking for the value of an option with an error throws, and tells nothing that the error does not.
        }
    });

    /// <summary>The value of an option as a rule sees it: defaults are filled in only after the rules.</summary>
    public static T ValueOr<T>(CommandResult command, Option<T> option, T otherwise) =>
        command.GetResult(option) is null ? otherwise : command.GetValue(option)!;

    /// <summary>A count with a binary suffix: <c>65536</c>, <c>64K</c>, <c>1M</c>.</summary>
    public static int Size(ArgumentResult result, int most, int least = 1)
    {
        string text = result.Tokens[0].Value;
        int shift = text.Length == 0 ? 0 : char.ToUpperInvariant(text[^1]) switch { 'K' => 10, 'M' => 20, 'G' => 30, _ => 0 };
        string digits = shift == 0 ? text : text[..^1];
        if (long.TryParse(digits, NumberStyles.None, CultureInfo.InvariantCulture, out long value)
            && value >= least && value <= most && value << shift <= most)
        {
            return (int)(value << shift);
        }

        result.AddError($"{NameOf(result)} takes a count from {least} to {most}, with K, M or G for powers of 1024, not '{text}'.");
        return 0;
    }

    private static string NameOf(ArgumentResult result) => (result.Parent as OptionResult)?.Option.Name ?? result.Argument.Name;
}
