"""treeattn itself: a process for each cell, which loads, checks against float64 and times in interleaved rounds with the ceilings."""

import json
import os
import signal
import subprocess


class Treeattn:
    def __init__(self, folder):
        self.program = os.path.join(folder, "treeattn")
        self.mpiexec = os.path.join(folder, "mpiexec")

    def version(self):
        return subprocess.run([self.program, "--version"], capture_output=True, text=True, check=True).stdout.strip()

    def command(self, cell, rounds):
        plan = ["--algorithm", "single", "--ceiling"]
        return [self.program, "bench", "--device", "cuda", *cell.options(), *plan, "-n", str(rounds), "-w", "5", "--json"]

    def measure(self, cell, rounds, seconds):
        """The rows of a bench as they are printed, and why there is none."""
        return self._rows(self.command(cell, rounds), seconds)

    def combine_commands(self, ranks_of, batches, rounds):
        """Every way in which ranks that share this GPU can combine their states: name, command."""
        for batch in batches:
            bench = [self.program, "bench", "--combine", "--device", "cuda", "--oversubscribe-gpus"]
            bench += ["--batch", str(batch), "-n", str(rounds), "-w", "20", "--json"]
            for ranks in ranks_of:
                yield f"in-process, {ranks} ranks, batch {batch}", [*bench, "--ranks", str(ranks)]
                yield f"MPI, {ranks} ranks, batch {batch}", [self.mpiexec, "-n", str(ranks), *bench]
            yield f"NCCL, 1 rank, batch {batch}", [*bench, "--transport", "nccl"]

    def combine(self, command, seconds):
        return self._rows(command, seconds)

    @staticmethod
    def _rows(command, seconds):
        # A group of its own, so that no rank outlives its launcher.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            return [], f"not done after {seconds:.0f} s"
        rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        if process.returncode != 0 and not rows:
            said = errors.strip().splitlines()
            return [], f"exit {process.returncode}: {said[-1] if said else 'nothing was said'}"
        return rows, None
