"""Time and memory of every paper's step, by --bench, on this machine, into notebooks/results:

python tests/bench_table.py [small] [medium] [paper]
"""

import re
import subprocess
import sys

import results_table

sys.path.insert(0, str(results_table.ROOT))
from lab.machine import commit  # noqa: E402

COMMANDS = (
    "stargan.py",
    "gannotation.py",
    "drgan.py",
    "iacyclegan.py",
    "pairedcyclegan.py",
    "pix2pix_cyclegan.py --model pix2pix",
    "pix2pix_cyclegan.py --model cyclegan",
)
COLUMNS = ["command", "recipe", "ms", "of which", "pictures/s", "memory", "GFLOP", "of matmul rate"]
ABOUT = (
    "`python tests/bench_table.py`, {machine}, commit {commit}. Toy faces, --people 40; ms a step and its"
    " parts, peak memory of the process (on a GPU: of the GPU), work of a step, and its share of the rate"
    " that a product of large matrices reaches there."
)


def measured(command, scale):
    """(machine, a row of the table)."""
    call = [sys.executable, *command.split(), "--bench", "--scale", scale, "--people", "40"]
    done = subprocess.run(call, cwd=results_table.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr.strip()}")
    recipe = r"recipe on (.+?), (bfloat16|float32), (\d+ px, batch \d+)"
    machine, kind, size = re.search(recipe, done.stdout).groups()
    whole, parts = re.search(r"([\d.]+) ms per step: (.+?) \(mean", done.stdout).groups()
    rate, memory = re.search(r"(\d+) pictures/s, peak memory ([\d.]+ GiB)", done.stdout).groups()
    flops, share = re.search(r"([\d.]+) GFLOP per step.*= (\d+) %", done.stdout).groups()
    return machine, [
        f"`{command} --scale {scale}`",
        f"{size}, {kind}",
        whole,
        parts,
        rate,
        memory,
        flops,
        f"{share} %",
    ]


def main():
    rows = []
    for scale in sys.argv[1:] or ("small", "paper"):
        for command in COMMANDS:
            machine, row = measured(command, scale)
            rows.append(row)
            print(" | ".join(row), flush=True)  # a processor needs minutes for some: what is measured stays
            about = ABOUT.format(machine=machine, commit=commit())
            results_table.write("speed", {"about": about, "columns": COLUMNS, "rows": rows})


if __name__ == "__main__":
    main()
