using System;
using System.CommandLine;
using System.IO;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>The command-line program. Rank 0 alone writes to stdout; errors go to stderr once; exit codes are <see cref="FaultCode"/>.</summary>
internal static class Program
{
    private static int Main(string[] arguments)
    {
        var environment = ProcessEnvironment.Read();
        bool speaks = environment.SpeaksForAll;
        RootCommand root = BuildCommands(environment);
        ParseResult parsed = root.Parse(arguments, new ParserConfiguration { EnablePosixBundling = false, ResponseFileTokenReplacer = null });
        if (parsed.Errors.Count > 0)
        {
            if (speaks)
            {
                ReportErrors(parsed);
            }

            return (int)FaultCode.CommandLine;
        }

        using var interruption = new Interruption(speaks);
        try
        {
            return parsed.Invoke(new InvocationConfiguration
            {
                EnableDefaultExceptionHandler = false,
                ProcessTerminationTimeout = null,
                Output = speaks ? Terminal.Out : TextWriter.Null,
                Error = speaks ? Terminal.Error : TextWriter.Null,
            });
        }
        catch (FaultException fault)
        {
            // An agreed fault is every rank's: one of them tells it.
            if (speaks || !fault.IsAgreed)
            {
                Terminal.Error.WriteLine($"treeattn: {fault.Message}");
            }

            interruption.EndsWith(fault.Code);
            return (int)fault.Code;
        }
        catch (OutOfMemoryException error)
        {
            Terminal.Error.WriteLine($"treeattn: {FaultException.OfHostMemory(error).Message}");
            return (int)FaultCode.OutOfMemory;
        }
        catch (Exception bug)
        {
            Terminal.Error.WriteLine($"treeattn: this is a bug of treeattn {ProductVersion.Text}, please report it with its command line: {bug}");
            return (int)FaultCode.Bug;
        }
        finally
        {
            Terminal.Out.Flush();
        }
    }

    private static RootCommand BuildCommands(ProcessEnvironment environment)
    {
        var root = new RootCommand(
            "Exact attention over contexts too long for one device: keys sharded over ranks, partial results merged in a tree.");
        root.Add(new AttendCommand().Build((request, options) => Launch(environment, options, group => new AttendJob(request, group).Run())));
        root.Add(new BenchCommand().Build((request, options) => Launch(environment, options, group => new BenchJob(request, group).Run())));
        root.Add(new DecodeCommand().Build((request, options) => Launch(environment, options, group => new DecodeJob(request, group).Run())));
        root.Add(new VerifyCommand().Build((request, options) => Launch(environment, options, group => new VerifyJob(request, group).Run())));
        root.Add(DoctorCommand.Build(environment));
        return root;
    }

    private static int Launch(ProcessEnvironment environment, GroupOptions options, Func<AttentionGroup, FaultCode> work) =>
        (int)GroupLauncher.Run(options, environment, work);

    private static void ReportErrors(ParseResult parsed)
    {
        foreach (System.CommandLine.Parsing.ParseError error in parsed.Errors)
        {
            Terminal.Error.WriteLine($"treeattn: {error.Message}");
        }

        string command = parsed.CommandResult.Command is RootCommand ? "" : $" {parsed.CommandResult.Command.Name}";
        Terminal.Error.WriteLine($"treeattn{command} --help lists what there is.");
    }
}
