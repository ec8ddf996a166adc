using System.Reflection;
using BenchmarkDotNet.Running;

namespace TreeAttention.Benchmarks;

/// <summary><c>duel</c> runs the CPU kernels against this machine's ceilings in interleaved rounds; anything else is BenchmarkDotNet's.</summary>
internal static class Program
{
    private static void Main(string[] args)
    {
        if (args is ["duel", ..])
        {
            CpuDuel.Run(args[1..]);
            return;
        }

        BenchmarkSwitcher.FromAssembly(Assembly.GetExecutingAssembly()).Run(args);
    }
}
