"""Everything that a quarter of an hour on a GPU can tell, in one command:

    python tests/on_gpu.py --minutes 12 --out DIR
    python tests/on_gpu.py --minutes 2 --out DIR --device cpu --tiny        to see that it runs

One part after the other, each with a time limit of its own; a part that fails is noted and the next one
begins: environment, the tests marked cuda, the papers' recipes timed, our steps beside the authors' manner
and compiled, then the medium recipes trained, evaluated and looked at. DIR holds report.json from the first
part on, sheets.zip with the sample grids, and weights_*.zip with the generators in half precision; each file
is under 16 MiB.
"""

import argparse
import dataclasses
import importlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
MODELS = {
    "stargan": ("stargan", {}),
    "gannotation": ("gannotation", {}),
    "drgan": ("drgan", {}),
    "iacyclegan": ("iacyclegan", {}),
    "pairedcyclegan": ("pairedcyclegan", {}),
    "pix2pix": ("pix2pix_cyclegan", {"model": "pix2pix"}),
    "cyclegan": ("pix2pix_cyclegan", {"model": "cyclegan"}),
}
ORDER = "gannotation", "pairedcyclegan", "cyclegan", "stargan", "pix2pix", "drgan", "iacyclegan"
MOST = 15 * 2**20  # bytes of a file that comes back


# ============================================================= parts that run as processes of their own


def config(model, scale, args, **more):
    """(the paper's module, its Config of a scale for the device)."""
    name, fixed = MODELS[model]
    paper = importlib.import_module(name)
    from lab import cli

    settings = cli.recipe(paper, scale, fixed.get("model", "")) | fixed
    fields = {f.name for f in dataclasses.fields(paper.Config)}
    few = dict(people=40, studio=8, copies=1, cache=str(Path(args.work) / "cache"), device=args.device)
    settings |= {k: v for k, v in (few | more).items() if k in fields}
    if args.tiny:
        settings |= {k: v for k, v in tiny(name).items() if k in fields}
    return paper, paper.Config(**settings)


def tiny(name):
    """The sizes with which that paper's tests train."""
    settings = dict(importlib.import_module(f"test_{name}").TINY)
    return {
        k: v
        for k, v in settings.items()
        if k not in ("log_every", "save_every", "sample_every", "device", "amp")
    }


def part_environment(args):
    import torch

    from lab.bench import matmul_rate
    from lab.machine import commit, hardware, has_bfloat16, resolve_device

    cfg = resolve_device(config("stargan", "small", args)[1])
    rates = {}
    for amp in (False, True) if has_bfloat16(cfg) else (False,):
        cfg.amp = amp
        rates["bfloat16" if amp else "TF32"] = round(matmul_rate(cfg) / 1e12, 2)
    return {
        "device": hardware(cfg),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit(),
        "TFLOP/s of large products": rates,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
    }


def part_bench(args, model):
    """The paper's and the medium recipe, in bfloat16 and without: ms of a step, FLOPs, memory."""
    from lab.bench import matmul_rate, measured
    from lab.machine import resolve_device

    out = {}
    for scale in ("paper", "medium"):
        out[scale] = {}
        for amp in (True, False):
            paper, cfg = config(model, scale, args, amp=amp)
            run = measured(paper, resolve_device(cfg))
            ms = {k: round(1e3 * v / run.timed, 2) for k, v in run.laps.items()}
            share = run.flops / (sum(ms.values()) / 1e3) / matmul_rate(cfg)
            out[scale]["bfloat16" if amp else "TF32"] = {
                "ms": ms,
                "total ms": round(sum(ms.values()), 2),
                "GFLOP": round(run.flops / 1e9, 1),
                "share of the matmul rate": round(share, 3),
                "peak GiB": round(run.peak / 2**30, 2),
            }
            print(json.dumps(out), flush=True)
    return out


def part_authors(args, model):
    """ms of a step in the authors' manner and of ours, in turns."""
    import bench_authors

    from lab.machine import resolve_device

    bench_authors.CYCLES = 2 if args.tiny else 30
    paper, cfg = config(model, "paper", args, amp=True, copy_steps=0)
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours, times = bench_authors.side_by_side(model, paper, resolve_device(cfg), folder)
    return {"theirs ms": round(theirs, 2), "ours, bfloat16, ms": round(ours, 2), "times": round(times, 2)}


def part_compile(args, model):
    """ms of a step, eager, under torch.compile, and under torch.compile that captures CUDA graphs."""
    from lab.bench import measured
    from lab.machine import resolve_device

    paper, cfg = config(model, "paper", args, amp=True)
    out, eager = {}, paper.to_device
    for name, mode in (("eager", None), ("compiled", "default"), ("reduce-overhead", "reduce-overhead")):

        def place(cfg, *nets, mode=mode):
            nets = eager(cfg, *nets)
            for net in nets if mode else ():
                net.compile(mode=mode)
            return nets

        paper.to_device = place
        run = measured(paper, resolve_device(dataclasses.replace(cfg)))
        out[f"{name} ms"] = round(1e3 * sum(run.laps.values()) / run.timed, 2)
        print(json.dumps(out), flush=True)
    return out


def part_paper(args, name, *flags):
    """A paper's own command."""
    file = str(ROOT / f"{name}.py")
    sys.argv = [file, *flags]
    runpy.run_path(file, run_name="__main__")


def hardly_trained_judges():
    """With --tiny: judges would take most of the time."""
    from lab import judges
    from lab.claims import stargan

    judges.JUDGE_FRAMES, judges.JUDGE_STEPS = 2, 10
    stargan.CLASSIFIER_STEPS, stargan.CLASSIFIER_PEOPLE = 10, {"attributes": 100, "expressions": 10}


# ============================================================================================== the clock


class Report:
    """report.json, written anew after every part."""

    def __init__(self, args):
        self.args, self.begun = args, time.monotonic()
        self.end = self.begun + 60 * args.minutes
        self.folder, self.work = Path(args.out), Path(args.work)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.content = {"command": " ".join(["python", "tests/on_gpu.py", *sys.argv[1:]])}

    def left(self):
        return self.end - time.monotonic()

    def note(self, section, name, value):
        self.content.setdefault(section, {})[name] = value
        self.content["seconds"] = round(time.monotonic() - self.begun)
        (self.folder / "report.json").write_text(json.dumps(self.content, indent=1) + "\n")
        print(f"[{self.content['seconds']:4} s] {section}, {name}: {json.dumps(value)[:300]}", flush=True)

    def part(self, section, name, limit, *argv):
        """A part in a process of its own: its result, or the last that it printed, and why it ended early."""
        limit = min(limit, self.left())
        if limit < 3:
            return self.note(section, name, {"reason": "no time left"})
        text, why = run(part_command(self.args, *argv), limit)
        found = [line for line in text.splitlines() if line.startswith("{")]
        value = json.loads(found[-1]) if found else {}
        self.note(section, name, value | ({"reason": why} if why else {}))


def part_command(args, *argv):
    """The command of a part of this file."""
    own = ["--out", args.out, "--work", args.work, "--device", args.device, *["--tiny"] * args.tiny]
    return [sys.executable, __file__, *own, "--part", *map(str, argv)]


def run(command, limit, kill_after=None, **more):
    """(what a command printed, why it ended early or None). It and its children end with the limit."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        start_new_session=True,
        **more,
    )
    try:
        text, _ = process.communicate(timeout=min(limit, kill_after or limit))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        return text, f"stopped after {kill_after or limit:.0f} s"
    if process.returncode:
        return text, f"exit {process.returncode}: {(text.strip().splitlines() or ['?'])[-1][:300]}"
    return text, None


# =============================================================================================== the parts


def cuda_tests(report, limit):
    """The tests that have a case for CUDA; on a processor one file, to see that they run."""
    args, which = (
        report.args,
        ["-k", "cuda", "tests"] if report.args.device != "cpu" else ["tests/test_common.py"],
    )
    text, why = run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--maxfail=20", *which],
        min(limit, report.left()),
        cwd=ROOT,
    )
    failed = re.findall(r"^FAILED (\S+)", text, re.M)
    last = (text.strip().splitlines() or [""])[-1]
    report.note(
        "tests", args.device, {"last line": last, "failed": failed} | ({"reason": why} if why else {})
    )


def medium(report, model, seconds, kill):
    """A medium recipe as long as the time allows, evaluated; killed once half-way if asked to."""
    args, (name, fixed) = report.args, MODELS[model]
    begun, folder = time.monotonic(), report.work / "runs" / model
    _, cfg = config(model, "medium", args)
    rate = report.content["bench"][model].get("medium", {}).get("bfloat16", {}).get("total ms", 1000.0)
    rounds = 2 if name == "iacyclegan" else 1
    least, room = 20 + getattr(cfg, "copy_steps", 0), int(0.6 * seconds * 1000 / rate / rounds)
    steps = cfg.steps if args.tiny else max(least, room)
    flags = [
        "--scale",
        "medium",
        "--device",
        args.device,
        "--run",
        folder,
        "--cache",
        report.work / "cache",
        "--steps",
        steps if args.tiny else min(steps, config(model, "medium", args)[1].steps),
    ]
    flags += [part for key, value in fixed.items() for part in (f"--{key}", value)]
    if rounds == 2:
        flags += ["--rounds", 1]
    if args.tiny:
        from conftest import tiny_flags

        flags += tiny_flags({k: v for k, v in tiny(name).items() if k not in ("steps", "rounds", *fixed)})
    command = part_command(args, "paper", name, *flags)
    reasons = []
    if kill:
        reasons.append(run([*command, "--train"], seconds, kill_after=0.3 * seconds)[1])
    text, why = run([*command, "--train", "--evaluate"], seconds - (time.monotonic() - begun))
    reasons.append(why)
    last = [line for line in text.splitlines() if line.startswith("step ")][-1:]
    rows = {}
    for file in folder.glob("evaluation.json"):
        rows = json.loads(file.read_text())["rows"]
    report.note(
        "medium",
        model,
        {
            "steps": steps,
            "seconds": round(time.monotonic() - begun),
            "last line": last,
            "continued": "continuing" in text,
            "rows": rows,
            "reasons": [reason for reason in reasons if reason],
        },
    )


def collect(report):
    """sheets.zip and weights_*.zip, each under 16 MiB."""
    runs = report.work / "runs"
    with zipfile.ZipFile(report.folder / "sheets.zip", "w") as sheets:
        for one in sorted(runs.glob("*")):
            for grid in sorted(one.rglob("samples/*.png"))[-1:] + sorted(one.rglob("losses.png"))[:1]:
                sheets.write(grid, f"{one.name}-{grid.name}")
    packs = [[]]
    for last in sorted(runs.rglob("last.pt")):
        file = half_precision(last)
        if sum(f.stat().st_size for f in [*packs[-1], file]) > MOST:
            packs.append([])
        packs[-1].append(file)
    for k, files in enumerate(packs):
        with zipfile.ZipFile(report.folder / f"weights_{k + 1}.zip", "w") as archive:
            for file in files:
                archive.write(file, "-".join(file.relative_to(runs).parent.parts) + ".pt")


def half_precision(last):
    """The generators of a checkpoint in half precision, in a file beside it."""
    from lab.demos import generators
    from lab.files import save_checkpoint

    file = last.with_name("generators.pt")
    save_checkpoint(generators(last), file)
    return file


def main(args):
    report = Report(args)
    try:
        import piq  # noqa: F401
    except ImportError:
        raise SystemExit("error: piq is not installed; pip install -r requirements.txt") from None
    share = args.minutes * 60 / 720  # of the limits below, which are for twelve minutes
    report.part("environment", args.device, 60, "environment")
    cuda_tests(report, 120 * share)
    for model in MODELS:
        report.part("bench", model, max(10, 60 * share), "bench", model)
    for model in ("stargan", "pix2pix", "cyclegan"):
        report.part("authors", model, max(8, 30 * share), "authors", model)
    for model in ("stargan", "cyclegan"):
        report.part("compile", model, max(5, 45 * share), "compile", model)
    for k, model in enumerate(ORDER):
        seconds = (report.left() - 5) / (len(ORDER) - k)
        if seconds < 4:
            report.note("medium", model, {"reason": "no time left"})
        else:
            try:
                medium(report, model, seconds, kill=k == 0 and seconds > 20)
            except Exception as error:  # the next one may do
                report.note("medium", model, {"reason": f"{type(error).__name__}: {error}"[:300]})
        collect(report)
    collect(report)
    print(f"{report.folder}: " + ", ".join(sorted(p.name for p in report.folder.iterdir() if p.is_file())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="networks of the tests' size, to see that it runs"
    )
    parser.add_argument("--work", default="", help="where trainings lie; default: a temporary folder")
    parser.add_argument("--part", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out, given.work = str(Path(given.out).resolve()), given.work or tempfile.mkdtemp()
    if given.part:
        if given.tiny:
            hardly_trained_judges()
        print(json.dumps(globals()[f"part_{given.part[0]}"](given, *given.part[1:])))
    else:
        main(given)
