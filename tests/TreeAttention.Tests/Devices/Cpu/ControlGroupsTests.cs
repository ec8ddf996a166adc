using System.Collections.Generic;
using TreeAttention.Devices.Cpu.Memory;
using Xunit;

namespace TreeAttention.Tests.Devices.Cpu;

/// <summary>The memory that control groups leave: of the process's own group, its ancestors, both versions, without pages of files.</summary>
public sealed class ControlGroupsTests
{
    private const string SecondMount = "31 24 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    private const string FirstMounts =
        "33 32 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n34 32 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";

    [Fact]
    public void Without_a_limit_nothing_is_limited()
    {
        Assert.Equal(long.MaxValue, Available([]));
        Assert.Equal(long.MaxValue, Available(Second("/a", ("/sys/fs/cgroup/a/memory.max", "max"), ("/sys/fs/cgroup/a/memory.current", "5"))));
    }

    [Fact]
    public void A_group_of_version_2_leaves_its_limit_less_what_is_no_file()
    {
        Assert.Equal(1000 - (700 - 250), Available(Second(
            "/job/step", ("/sys/fs/cgroup/job/step/memory.max", "1000\n"), ("/sys/fs/cgroup/job/step/memory.current", "700\n"),
            ("/sys/fs/cgroup/job/step/memory.stat", "anon 450\ninactive_file 200\nactive_file 50\nfile 250\n"))));
    }

    [Fact]
    public void The_tightest_ancestor_counts()
    {
        Assert.Equal(60, Available(Second(
            "/job/step",
            ("/sys/fs/cgroup/job/step/memory.max", "1000"), ("/sys/fs/cgroup/job/step/memory.current", "100"),
            ("/sys/fs/cgroup/job/memory.max", "200"), ("/sys/fs/cgroup/job/memory.current", "140"))));
    }

    [Theory]
    [InlineData("4:memory:/box\n3:cpuset:/\n")]
    [InlineData("4:cpu,memory:/box\n0::/\n")]
    public void A_group_of_version_1_is_found_by_its_controller(string membership)
    {
        Dictionary<string, string> files = new()
        {
            ["/proc/self/mountinfo"] = FirstMounts,
            ["/proc/self/cgroup"] = membership,
            ["/sys/fs/cgroup/memory/box/memory.limit_in_bytes"] = "1000",
            ["/sys/fs/cgroup/memory/box/memory.usage_in_bytes"] = "900",
            ["/sys/fs/cgroup/memory/box/memory.stat"] = "cache 500\ntotal_inactive_file 300\ntotal_active_file 100\ninactive_file 1\n",
        };

        Assert.Equal(500, Available(files));
    }

    [Fact]
    public void Inside_a_container_the_mount_shows_the_group_as_its_root()
    {
        Dictionary<string, string> files = Second("/docker/abc", ("/sys/fs/cgroup/memory.max", "1000"), ("/sys/fs/cgroup/memory.current", "100"));
        files["/proc/self/mountinfo"] = SecondMount.Replace(" / ", " /docker/abc ", System.StringComparison.Ordinal);

        Assert.Equal(900, Available(files));
    }

    private static Dictionary<string, string> Second(string group, params (string File, string Text)[] files)
    {
        Dictionary<string, string> all = new() { ["/proc/self/mountinfo"] = SecondMount, ["/proc/self/cgroup"] = $"0::{group}\n" };
        foreach ((string file, string text) in files)
        {
            all[file] = text;
        }

        return all;
    }

    private static long Available(Dictionary<string, string> files) => ControlGroups.Available(file => files.GetValueOrDefault(file));
}
