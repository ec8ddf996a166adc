using System.Collections.Generic;
using System.CommandLine;
using System.IO;
using System.Linq;
using System.Text.Json;
using TreeAttention.Cli.Arguments;
using TreeAttention.Cli.Output;
using TreeAttention.Runtime.Groups;
using TreeAttention.Runtime.Inspection;

namespace TreeAttention.Cli.Doctor;

/// <summary><c>treeattn doctor</c>: what this machine has, what is missing, how to get it.</summary>
internal static class DoctorCommand
{
    // What is missing here keeps the launched job itself from working; all else has a fallback.
    private const string NeededUnderLauncher = "MPI libraries";

    /// <summary>The command. It needs no group: every launched process looks at its machine, rank 0 tells.</summary>
    public static Command Build(ProcessEnvironment environment)
    {
        Option<bool> json = new("--json") { Description = "The last line of stdout is one JSON object." };
        var command = new Command("doctor", "Says what this machine has, what is missing, and how to get it.");
        command.Add(json);
        command.SetAction(parsed => (int)Run(environment, parsed.GetValue(json)));
        return command;
    }

    private static FaultCode Run(ProcessEnvironment environment, bool json)
    {
        IReadOnlyList<Finding> findings = MachineInspection.Inspect(environment);
        bool works = !environment.IsLaunched || findings.Single(finding => finding.Subject == NeededUnderLauncher).IsThere;
        if (environment.SpeaksForAll)
        {
            Print(findings, works, json);
        }

        return works ? FaultCode.None : FaultCode.Unavailable;
    }

    private static void Print(IReadOnlyList<Finding> findings, bool works, bool json)
    {
        TextWriter console = Terminal.Out;
        console.WriteLine($"treeattn {ProductVersion.Text}");
        foreach (Finding finding in findings)
        {
            console.WriteLine($"{(finding.IsThere ? "  ok     " : "  missing")} {finding.Subject,-14} {finding.Detail}");
            if (finding.WayOut is not null)
            {
                console.WriteLine($"{"",25}{finding.WayOut}");
            }
        }

        console.WriteLine(works ? "in-process ranks work here" : "the MPI of the launcher that started this is missing");
        if (json)
        {
            console.WriteLine(ResultRow.Line(writer => WriteMembers(writer, findings, works)));
        }

        console.Flush();
    }

    private static void WriteMembers(Utf8JsonWriter writer, IReadOnlyList<Finding> findings, bool works)
    {
        writer.WriteString("version", ProductVersion.Text);
        writer.WriteBoolean("works", works);
        writer.WriteStartArray("findings");
        foreach (Finding finding in findings)
        {
            writer.WriteStartObject();
            writer.WriteString("subject", finding.Subject);
            writer.WriteBoolean("is_there", finding.IsThere);
            writer.WriteString("detail", finding.Detail);
            writer.WriteString("way_out", finding.WayOut);
            writer.WriteEndObject();
        }

        writer.WriteEndArray();
    }
}
