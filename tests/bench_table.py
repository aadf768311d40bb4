"""Where the time of a step goes, for every paper, on this machine:  python tests/bench_table.py [--scale paper]  writes tests/bench.md."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
COMMANDS = ("stargan.py", "gannotation.py", "drgan.py", "iacyclegan.py", "pairedcyclegan.py",
            "pix2pix_cyclegan.py --model pix2pix", "pix2pix_cyclegan.py --model cyclegan")


def main(more):
    import common
    lines, machine = [], ""
    for command in COMMANDS:
        said = subprocess.run([sys.executable, *command.split(), "--bench", *more], cwd=ROOT, capture_output=True, text=True)
        if said.returncode:
            raise SystemExit(f"{command}: {said.stderr.strip()}")
        machine = re.search(r"recipe on (.+?), (?:float|bfloat)", said.stdout)[1]
        recipe = re.search(r"(bfloat16|float32), (\d+ px, batch \d+)", said.stdout)
        whole, parts = re.search(r"([\d.]+) ms per step: (.+?) \(mean", said.stdout).groups()
        rate, memory = re.search(r"(\d+) pictures/s, peak memory ([\d.]+ GiB)", said.stdout).groups()
        flops, share = re.search(r"([\d.]+) GFLOP per step.*= (\d+) %", said.stdout).groups()
        lines.append(f"| `{command}` | {recipe[2]}, {recipe[1]} | {whole} | {parts} | {rate} | {memory} | {flops} | {share} % |")
        print(lines[-1], flush=True)
    head = (f"`{' '.join(['python tests/bench_table.py', *more])}`, {machine}, commit {common.commit()}.\n"
            "ms per step and its parts, pictures a second, peak memory of the process, work of a step,\n"
            "and its share of the rate that a product of large matrices reaches there.\n\n"
            "| command | recipe | ms | of which | pictures/s | memory | GFLOP | of matmul rate |\n|---|---|---|---|---|---|---|---|\n")
    (ROOT / "tests" / "bench.md").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
