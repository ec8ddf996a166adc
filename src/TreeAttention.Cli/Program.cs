using System;
using System.CommandLine;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using System.Threading;
using TreeAttention.Cli.Arguments;
using TreeAttention.Cli.Attend;
using TreeAttention.Cli.Bench;
using TreeAttention.Cli.Decode;
using TreeAttention.Cli.Doctor;
using TreeAttention.Cli.Output;
using TreeAttention.Cli.Verify;
using TreeAttention.Distributed.Faults;
using TreeAttention.Runtime.Files;
using TreeAttention.Runtime.Groups;

namespace TreeAttention.Cli;

/// <summary>The command-line program. Rank 0 alone writes to stdout; errors go to stderr once; exit codes are <see cref="FaultCode"/>.</summary>
internal static class Program
{
    private static readonly TimeSpan _courtesy = TimeSpan.FromMilliseconds(300);

    private static int Main(string[] arguments)
    {
        StandardStream.Reserve();
        return Terminal.End(Run(arguments));
    }

    private static int Run(string[] arguments)
    {
        Setting.UseNames(Flags.Names);
        var environment = ProcessEnvironment.Read();
        bool speaks = environment.SpeaksForAll;
        using var interruption = new Interruption(speaks);
        RootCommand root = BuildCommands(environment);
        ParseResult parsed = root.Parse(arguments, new ParserConfiguration { EnablePosixBundling = false, ResponseFileTokenReplacer = null });
        try
        {
            if (parsed.Errors.Count > 0)
            {
                GroupLauncher.Refuse(new GroupOptions(), environment, new FaultException(FaultCode.CommandLine, Words(parsed, environment)));
            }

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
            if (!speaks && fault.IsAgreed)
            {
                // A launcher ends the other ranks when one is gone: rank 0 tells it first.
                Thread.Sleep(_courtesy);
            }

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

    private static string Words(ParseResult parsed, ProcessEnvironment environment)
    {
        string rank = environment.SpeaksForAll ? "" : $"rank {environment.Rank}: ";
        string command = parsed.CommandResult.Command is RootCommand ? "" : $" {parsed.CommandResult.Command.Name}";
        return $"{rank}{string.Join("\ntreeattn: ", parsed.Errors.Select(error => error.Message))}\ntreeattn{command} --help lists what there is.";
    }
}

/// <summary>SIGINT and SIGTERM end the process at once with 130 and 143, and leave no half-written file.</summary>
/// <remarks>Launchers give about a second from the signal to the kill, so nothing is waited for; under MPI leaving this way ends all ranks.</remarks>
internal sealed class Interruption : IDisposable
{
    private readonly PosixSignalRegistration _interrupt;
    private readonly PosixSignalRegistration _terminate;
    private volatile int _told;

    /// <summary>Listens from now on.</summary>
    /// <param name="speaks">Say what happened; one rank does.</param>
    public Interruption(bool speaks)
    {
        _interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, context => End(context, Told ?? FaultCode.Interrupted, speaks && Told is null));
        _terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, context => End(context, Told ?? FaultCode.Terminated, speaks && Told is null));
    }

    private FaultCode? Told => _told == 0 ? null : (FaultCode)_told;

    /// <summary>The fault that ends this process has been told: a launcher that ends the other ranks for it is nothing new.</summary>
    public void EndsWith(FaultCode code) => _told = (int)code;

    /// <inheritdoc/>
    public void Dispose()
    {
        _interrupt.Dispose();
        _terminate.Dispose();
    }

    private static void End(PosixSignalContext context, FaultCode code, bool speaks)
    {
        context.Cancel = true;
        if (speaks)
        {
            Terminal.Error.WriteLine($"treeattn: stopped by {context.Signal}; {ResultsFile.Kept}no file is left half-written.");
        }

        ProcessEnd.Leave(code);
    }
}
