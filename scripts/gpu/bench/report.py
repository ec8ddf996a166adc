"""The table on the screen and the results on disk: a line is synced before the next measurement starts."""

import json
import os


class Report:
    def __init__(self, folder):
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        self._file = open(os.path.join(folder, "results.jsonl"), "x", encoding="utf-8")

    def environment(self, facts):
        with open(os.path.join(self.folder, "environment.json"), "x", encoding="utf-8") as file:
            json.dump(facts, file, indent=2)
            file.write("\n")
        for name, value in facts.items():
            print(f"# {name}: {value}")

    def append(self, row):
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    @staticmethod
    def header():
        print(
            "# call: a call and the wait for it, by the host's clock, caches cold. "
            "device: the work by the device's events (PyTorch's as a CUDA graph).\n"
            "# read%, copy%, fma%: of treeattn's own ceilings in the same cell. "
            "ratio: the contestant's call over treeattn's; above 1 treeattn is faster."
        )
        print(
            f"# {'cell':<34} {'contestant':<18} {'call(us)':>10} {'min(us)':>10} {'device(us)':>10} {'read%':>6} {'copy%':>6} {'fma%':>6}"
            f" {'error':>8} {'#wrong':>6} {'ratio':>6}",
            flush=True,
        )

    def row(self, row):
        """Prints and keeps a measurement, or why there is none."""
        self.append(row)
        if row.get("skipped"):
            print(f"# {row['cell']:<34} {row['contestant']:<18} skipped: {row['skipped']}", flush=True)
            return
        print(
            f"  {row['cell']:<34} {row['contestant']:<18} {_number(row['call_us'], 1):>10} {_number(row['min_us'], 1):>10}"
            f" {_number(row['device_us'], 1):>10} {_percent(row['read_ratio']):>6} {_percent(row['copy_ratio']):>6} {_percent(row['fma_ratio']):>6}"
            f" {_error(row['error_max']):>8} {_number(row['wrong'], 0):>6} {_number(row['ratio'], 2):>6}",
            flush=True,
        )

    @staticmethod
    def best(rows):
        """Says which of a cell's right contestants comes nearest to treeattn."""
        for key, what in (("ratio", "by the call"), ("device_ratio", "on the device")):
            known = [row for row in rows if row[key] is not None]
            if known:
                row = min(known, key=lambda row: row[key])
                print(f"# {row['cell']}: best of PyTorch {what} is {row['contestant']}, {row[key]:.2f} times treeattn's time", flush=True)

    def note(self, text):
        print(f"# {text}", flush=True)
        self.append({"note": text})

    def close(self):
        self._file.close()


def _number(value, digits):
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value):
    return "-" if value is None else f"{100 * value:.1f}"


def _error(value):
    return "-" if value is None else f"{value:.1e}"
