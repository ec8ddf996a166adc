using System;
using System.IO;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Testing.Processes;

/// <summary>The archive of <c>scripts/bundle.sh</c>, made once from the program that is built and unpacked far from it, into a folder with a blank in its name.</summary>
public sealed class UnpackedBundle : IDisposable
{
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("treeattn bundle ");
    private readonly Lazy<string> _unpacked;

    public UnpackedBundle() => _unpacked = new Lazy<string>(Unpack);

    /// <summary>The bundle's folder; skips the test where none can be made.</summary>
    internal string Folder
    {
        get
        {
            Assert.SkipUnless(File.Exists(Path.Combine(EmulatedCuda.Root, "artifacts/treeattn/treeattn")), "The program is not published: scripts/build.sh does.");
            Assert.SkipUnless(File.Exists("/usr/bin/mpiexec.openmpi"), "Open MPI is not installed: there is none to bundle.");
            return _unpacked.Value;
        }
    }

    /// <summary>A place for results.</summary>
    internal string Place(string name) => Path.Combine(_folder.FullName, name);

    public void Dispose() => _folder.Delete(recursive: true);

    private string Unpack()
    {
        string archive = Path.Combine(EmulatedCuda.Root, "artifacts/treeattn-bundle.tar.xz");
        ShellRun.Of(EmulatedCuda.Root, ["/bin/bash", "scripts/bundle.sh", "--no-build"]).Exits(0);
        ShellRun.Of(_folder.FullName, ["/bin/tar", "-xJf", archive]).Exits(0);
        return Path.Combine(_folder.FullName, "treeattn-bundle");
    }
}
