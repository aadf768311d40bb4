"""README's table of speed and memory: every paper's --bench, at its small and its paper's recipe, on this machine:  python tests/bench_table.py"""
import re
import subprocess
import sys

import results_table

sys.path.insert(0, str(results_table.ROOT))
import common  # noqa: E402

COMMANDS = ("stargan.py", "gannotation.py", "drgan.py", "iacyclegan.py", "pairedcyclegan.py",
            "pix2pix_cyclegan.py --model pix2pix", "pix2pix_cyclegan.py --model cyclegan")
HEAD = """{machine}, commit {commit}. Toy faces, --people 40; ms per step and its parts, peak memory of the process (on a GPU: of the GPU),
work of a step, and its share of the rate that a product of large matrices reaches there.

| command | recipe | ms | of which | pictures/s | memory | GFLOP | of matmul rate |
|---|---|---|---|---|---|---|---|
"""


def main():
    lines, commit = [], common.commit()
    for scale in ("small", "paper"):
        for command in COMMANDS:
            call = [sys.executable, *command.split(), "--bench", "--scale", scale, "--people", "40"]
            done = subprocess.run(call, cwd=results_table.ROOT, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{command}: {done.stderr.strip()}")
            machine, kind, recipe = re.search(r"recipe on (.+?), (bfloat16|float32), (\d+ px, batch \d+)", done.stdout).groups()
            whole, parts = re.search(r"([\d.]+) ms per step: (.+?) \(mean", done.stdout).groups()
            rate, memory = re.search(r"(\d+) pictures/s, peak memory ([\d.]+ GiB)", done.stdout).groups()
            flops, share = re.search(r"([\d.]+) GFLOP per step.*= (\d+) %", done.stdout).groups()
            lines.append(f"| `{command} --scale {scale}` | {recipe}, {kind} | {whole} | {parts} | {rate} | {memory} | {flops} | {share} % |\n")
            print(lines[-1], end="", flush=True)                           # a processor needs minutes for some: what is measured stays
            results_table.write("speed", "python tests/bench_table.py", HEAD.format(machine=machine, commit=commit) + "".join(lines))


if __name__ == "__main__":
    main()
