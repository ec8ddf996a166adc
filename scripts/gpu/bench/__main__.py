"""Drives the GPU benchmark: plan, treeattn, PyTorch, report. gpu-bench.sh starts it and tells what it does."""

import argparse
import datetime
import os
import sys
import time

import plan
import pytorch
from ours import Treeattn
from report import Report

PARTS = ("decode", "prefill", "combine")
SHARE = {"decode": 0.60, "prefill": 0.25, "combine": 0.15}  # of the time, where several parts run
CELL_SECONDS = 90  # the most that a cell may take
COMBINE_SECONDS = 60  # the most that the reductions of one group of ranks may take


def arguments():
    parser = argparse.ArgumentParser(prog="gpu-bench.sh", allow_abbrev=False)
    parser.add_argument("parts", nargs="*", metavar="PART", help="decode, prefill, combine; all without one")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--out", default="results/gpu-bench", help="folder for results.jsonl and environment.json")
    parser.add_argument("--seconds", type=float, default=510, help="time for all of it")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds of each contestant")
    parser.add_argument("--match", default="", help="only cells whose name has this in it")
    parser.add_argument("--contexts", type=int, nargs="+", help="these contexts in place of those of the plan")
    parser.add_argument("--dry-run", action="store_true", help="print what would be measured, and end")
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    given.parts = [part for part in PARTS if part in given.parts or not given.parts]
    return given


def cells_of(part, given):
    cells = plan.decode_cells() if part == "decode" else plan.prefill_cells()
    if given.contexts:
        shapes = dict.fromkeys((c.heads, c.kv_heads, c.head_dim, c.dtype, c.value_from_key) for c in cells if c.batch == 1)
        cells = [
            plan.Cell(part, context, heads, kv_heads, dim, dtype, 1, value)
            for context in given.contexts
            for heads, kv_heads, dim, dtype, value in shapes
        ]
    return [cell for cell in cells if given.match in cell.name]


def dry_run(given, treeattn):
    for part in given.parts:
        if part == "combine":
            for name, command in treeattn.combine_commands(plan.COMBINE_RANKS, plan.COMBINE_BATCHES, 200):
                print(f"combine {name}: {' '.join(command)}")
            continue
        for cell in cells_of(part, given):
            command = " ".join(treeattn.command(cell, given.rounds))
            print(f"{cell.name}: K and V {cell.kv_bytes / 2**20:.0f} MiB, {cell.operations * 1e-12:.3f} Tflop: {command}")


def host_memory():
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))


def no_room(cell, torch):
    """Why the cell is too large for this machine; None where it is not."""
    needed = 3 * cell.kv_elements * 4 // 2  # fp32 numbers while they are made, and the shard
    if needed > host_memory():
        return f"its fp32 numbers take {needed >> 30} GiB of host memory, {host_memory() >> 30} GiB are free"
    if torch is not None and 2.5 * cell.kv_bytes + (4 << 30) > torch.free_memory():
        return f"K and V of {cell.kv_bytes >> 30} GiB for two programs do not fit into {torch.free_memory() >> 30} GiB"
    return None


def base_row(cell, contestant):
    return {
        "part": cell.kind, "cell": cell.name, "contestant": contestant, "batch": cell.batch, "query_len": cell.query_len, "context": cell.context,
        "heads": cell.heads, "kv_heads": cell.kv_heads, "head_dim": cell.head_dim, "value_dim": cell.value_dim, "dtype": cell.dtype,
        "kv_bytes": cell.kv_bytes,
    }  # fmt: skip


def our_row(cell, found, command):
    numbers = {
        "call_us": found["median_us"], "min_us": found["min_us"], "device_us": found["compute_us"], "p95_us": found["p95_us"],
        "error_max": found["error_max"], "error_bound": found["error_bound"], "wrong": found["wrong"], "ratio": 1.0, "device_ratio": 1.0,
    }  # fmt: skip
    ceilings = {name: found[name] for name in ("read_ratio", "copy_ratio", "fma_ratio", "read_gb_per_s", "copy_gb_per_s", "multiply_tflop_per_s")}
    return {**base_row(cell, "treeattn"), **numbers, **ceilings, "command": " ".join(command)}


def their_row(cell, name, numbers, ours):
    seconds = numbers["call_us"] * 1e-6
    row = {**base_row(cell, name), **numbers, "read_ratio": None, "copy_ratio": None, "fma_ratio": None, "ratio": None, "device_ratio": None}
    if ours is not None:
        row["ratio"] = numbers["call_us"] / ours["median_us"]
        if numbers["device_us"] and ours["compute_us"]:
            row["device_ratio"] = numbers["device_us"] / ours["compute_us"]
        row["read_ratio"] = cell.kv_bytes / seconds / (ours["read_gb_per_s"] * 1e9)
        row["copy_ratio"] = cell.kv_bytes / seconds / (ours["copy_gb_per_s"] * 1e9)
        row["fma_ratio"] = cell.operations / seconds / (ours["multiply_tflop_per_s"] * 1e12)
    return row


def pytorch_failed(cell, error):
    """The row of a cell whose contest the device ended: out of memory, or lost, and then every later one ends so too."""
    return {**base_row(cell, "pytorch"), "skipped": f"{type(error).__name__}: {error}"[:160]}


def measure_cell(cell, given, treeattn, torch, report, seconds):
    """Half of PyTorch's rounds, treeattn, the other half: what drifts meets both. Returns how many rows were wrong."""
    wrong, contest = 0, None
    try:
        if why := no_room(cell, torch):
            report.row({**base_row(cell, "all"), "skipped": why})
            return 0
        if torch is not None:
            contest = pytorch.Contest(torch, cell, seconds / 2)
            contest.run(given.rounds // 2)
    except RuntimeError as error:
        contest = None
        report.row(pytorch_failed(cell, error))
    rows, why = treeattn.measure(cell, given.rounds, seconds)
    ours = rows[-1] if rows else None
    if ours is None:
        report.row({**base_row(cell, "treeattn"), "skipped": why})
        wrong += seconds >= CELL_SECONDS or not why.startswith("not done")  # else there was too little time left
    else:
        report.row(our_row(cell, ours, treeattn.command(cell, given.rounds)))
        wrong += ours["wrong"] or 0
    if contest is None:
        return wrong
    try:
        contest.run(given.rounds - given.rounds // 2)
    except RuntimeError as error:
        report.row(pytorch_failed(cell, error))
        return wrong
    theirs = [their_row(cell, name, numbers, ours) for name, numbers in contest.results()]
    for row in theirs:
        report.row(row)
    report.best([row for row in theirs if row["wrong"] == 0])
    for name, why in contest.refused.items():
        report.row({**base_row(cell, name), "skipped": why})
    return wrong


def measure_part(part, given, treeattn, torch, report, deadline):
    wrong, left_out, longest = 0, [], 0.0
    for cell in cells_of(part, given):
        begun = time.monotonic()
        if begun + longest / 2 > deadline:
            left_out.append(cell.name)
            continue
        wrong += measure_cell(cell, given, treeattn, torch, report, min(CELL_SECONDS, deadline - begun))
        longest = max(longest, time.monotonic() - begun)
    if left_out:
        report.note(f"left out for lack of time: {'; '.join(left_out)}")
    return wrong


def measure_combine(treeattn, report, deadline):
    failed = 0
    print(f"# {'ranks':<34} {'reduction':<18} {'median(us)':>10} {'min(us)':>10} {'over bare':>10}", flush=True)
    for name, command in treeattn.combine_commands(plan.COMBINE_RANKS, plan.COMBINE_BATCHES, 200):
        left = deadline - time.monotonic()
        if left < 5:
            report.note(f"left out for lack of time: combine {name}")
            continue
        rows, why = treeattn.combine(command, min(left, COMBINE_SECONDS))
        if why is not None and left < COMBINE_SECONDS and why.startswith("not done"):
            report.note(f"left out for lack of time: combine {name}")
            continue
        if why is not None:
            report.append({"part": "combine", "cell": name, "skipped": why, "command": " ".join(command)})
            print(f"# {name}: skipped: {why}", flush=True)
            failed += "exit 69" not in why
            continue
        bare = next((row["median_us"] for row in rows if row["reduction"] == "bare-allreduce"), None)
        for row in rows:
            over = None if not bare else row["median_us"] - bare
            report.append({"part": "combine", "cell": name, "over_bare_us": over, **row, "command": " ".join(command)})
            print(
                f"  {name:<34} {row['reduction']:<18} {row['median_us']:>10.1f} {row['min_us']:>10.1f}"
                f" {over if over is None else format(over, '+.1f'):>10}",
                flush=True,
            )
    return failed


def main():
    given = arguments()
    treeattn = Treeattn(given.folder)
    if given.dry_run:
        dry_run(given, treeattn)
        return 0
    if os.path.exists(os.path.join(given.out, "results.jsonl")):
        print(f"{given.out} holds results already, and results are never overwritten; give another --out.", file=sys.stderr)
        return 73
    begun = time.monotonic()
    try:
        torch, without = pytorch.PyTorch(), None
    except pytorch.Unavailable as error:
        torch, without = None, str(error)
    report = Report(given.out)
    report.environment({
        "treeattn": treeattn.version(), "command": " ".join(["./gpu-bench.sh", *sys.argv[3:]]),  # without --folder
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), **(torch.facts() if torch else {}),
    })  # fmt: skip
    if without:
        report.note(f"treeattn is measured alone: {without}")
    wrong = 0
    for number, part in enumerate(given.parts):
        left = begun + given.seconds - time.monotonic()  # what a part leaves over, the next ones have
        deadline = time.monotonic() + left * SHARE[part] / sum(SHARE[other] for other in given.parts[number:])
        if part == "combine":
            wrong += measure_combine(treeattn, report, deadline)
        else:
            report.header()
            wrong += measure_part(part, given, treeattn, torch, report, deadline)
    report.close()
    print(f"gpu-bench: {'nothing wrong' if wrong == 0 else f'{wrong} rows wrong or measurements failed'}; results in {given.out}")
    return 0 if wrong == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
