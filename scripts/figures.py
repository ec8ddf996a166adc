#!/usr/bin/env python3
"""Draws docs/figures/tree-and-ring.svg from measurements that lie in benchmarks/results: the time of one step by each plan.

Usage: scripts/figures.py [--check]     (--check writes nothing, and fails when the committed figure is not that of the measurements)
Needs Python 3.9 alone. The figure carries colours for light and dark pages and its own background.
"""
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RUN = "amd-epyc-2-cores/2026-11-21-8b42f10"
ROWS = "tree-and-ring-in-process.jsonl"
FIGURE = "docs/figures/tree-and-ring.svg"
COMMAND = "treeattn bench -b 64K --ranks 2 --ceiling -n 15"

WIDTH = 760
LEFT = 196  # where bars begin
LONGEST = 400
BAR = 14
PITCH = 21
TOP = 84

STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #0b0b0b }
  .title { font-size: 15px; font-weight: 600 }
  .quiet { fill: #52514e }
  .small { font-size: 12px }
  .page { fill: #fcfcfb; stroke: #e1e0d9 }
  .tree { fill: #2a78d6 }
  .ring { fill: #eb6834 }
  .axis { stroke: #c3c2b7 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ffffff }
    .quiet { fill: #c3c2b7 }
    .page { fill: #1a1a19; stroke: #2c2c2a }
    .tree { fill: #3987e5 }
    .ring { fill: #d95926 }
    .axis { stroke: #52514e }
  }
"""


def size(count):
    """Bytes as a reader says them; powers of 1000."""
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def name(row):
    return f"tree/{row['reduction']}" if row["algorithm"] == "tree" else row["algorithm"]


def moves_keys(row):
    return row["algorithm"] in ("ring", "ring-no-overlap", "gather")


def figure(rows):
    """The SVG: one bar a plan, its median and the bytes that a rank sent at the end of the bar."""
    longest = max(row["median_us"] for row in rows)
    height = TOP + PITCH * len(rows) + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img"',
        '     aria-label="Time of one attention step by each plan, as bars">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
        f'<text class="title" x="20" y="30">One decode step over {rows[0]["context"]:,} keys on {rows[0]["ranks"]} ranks</text>',
        '<rect class="tree" x="20" y="46" width="12" height="12" rx="2"/>',
        '<text class="quiet" x="38" y="57">queries or partial results travel</text>',
        '<rect class="ring" x="250" y="46" width="12" height="12" rx="2"/>',
        '<text class="quiet" x="268" y="57">keys and values travel</text>',
        f'<text class="quiet small" x="{WIDTH - 20}" y="57" text-anchor="end">median time, bytes sent by a rank</text>',
    ]
    for index, row in enumerate(rows):
        y = TOP + PITCH * index
        length = LONGEST * row["median_us"] / longest
        colour = "ring" if moves_keys(row) else "tree"
        label = f'{row["median_us"] / 1e3:.1f} ms'
        lines += [
            f'<text x="{LEFT - 10}" y="{y + 11.5}" text-anchor="end">{name(row)}</text>',
            f'<path class="{colour}" d="M{LEFT} {y}h{length - 3:.1f}q3 0 3 3v{BAR - 6}q0 3 -3 3h-{length - 3:.1f}z"/>',
            f'<text x="{LEFT + length + 8:.1f}" y="{y + 11.5}">{label}<tspan class="quiet" dx="8">{size(row["bytes_sent"])}</tspan></text>',
        ]
    lines += [f'<path class="axis" d="M{LEFT - 0.5} {TOP - 4}V{TOP + PITCH * len(rows)}" fill="none"/>', "</svg>", ""]
    return "\n".join(lines)


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    with open(os.path.join(ROOT, "benchmarks/results", RUN, ROWS), encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    drawn = figure(sorted(rows, key=moves_keys))
    path = os.path.join(ROOT, FIGURE)
    if sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            if file.read() != drawn:
                sys.exit(f"{FIGURE} is not what {RUN}/{ROWS} gives. Run scripts/figures.py.")
        return
    with open(path, "w", encoding="utf-8") as file:
        file.write(drawn)
    print(f"{FIGURE} from benchmarks/results/{RUN}/{ROWS} ({COMMAND})")


main()
