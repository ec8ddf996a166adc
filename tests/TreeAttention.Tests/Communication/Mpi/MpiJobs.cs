using Xunit;

namespace TreeAttention.Tests.Communication.Mpi;

/// <summary>Tests that start processes and hold them to seconds: nothing else runs beside them.</summary>
[CollectionDefinition("mpi", DisableParallelization = true)]
public sealed class MpiJobs;
