"""Everything that a quarter of an hour on a GPU can tell, in one command:

    python tests/on_gpu.py --minutes 12 --out DIR
    python tests/on_gpu.py --minutes 6 --out DIR --sections medium --models gannotation stargan
    python tests/on_gpu.py --minutes 5 --out DIR --device cpu --tiny        to see that it runs

One section after the other, each with a time limit; what fails is noted and the next begins: environment; the
medium recipes, all at once, since each leaves most of the GPU idle, shortened to the time there is, stopped
by the clock if need be, and evaluated; the tests marked cuda; the recipes timed; our steps beside the
authors' manner, and compiled. DIR holds report.json from the first part on, sheets.zip with pictures and
logs, and weights_*.zip with the generators in half precision; each file is under 16 MiB. report.json, copied
to notebooks/results as on_gpu.json, becomes a table of the results' page.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
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
SECTIONS = "environment", "medium", "tests", "bench", "authors", "compile"
MOST = 15 * 2**20  # bytes of a file that comes back
GRACE = 15  # seconds in which a training that is told to stop saves itself


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
        "piq, which --evaluate needs": importlib.util.find_spec("piq") is not None,
    }


def part_bench(args, model):
    """The medium and the paper's recipe, in bfloat16 and without: ms of a step, FLOPs, memory."""
    import torchvision

    from lab.bench import matmul_rate, measured
    from lab.machine import resolve_device

    vgg16 = torchvision.models.vgg16
    torchvision.models.vgg16 = lambda weights: vgg16()  # random weights cost the same, and no download
    out = {}
    for scale in ("medium", "paper"):
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
        self.lock = threading.Lock()
        command = " ".join(["python", "tests/on_gpu.py", *sys.argv[1:]])
        self.content = {"command": re.sub(r" --(out|work) \S+", "", command)}  # nobody else's folders

    def left(self):
        return self.end - time.monotonic()

    def note(self, section, name, value):
        with self.lock:
            self.content.setdefault(section, {})[name] = value
            self.content["seconds"] = round(time.monotonic() - self.begun)
            (self.folder / "report.json").write_text(json.dumps(self.content, indent=1) + "\n")
        print(f"[{self.content['seconds']:4} s] {section}, {name}: {json.dumps(value)[:300]}", flush=True)

    def part(self, section, name, limit, *argv):
        """A part in a process of its own: its result, or the last that it printed, and why it ended early."""
        limit = min(limit, self.left())
        if limit < 3:
            return self.note(section, name, {"reason": "no time left"})
        text, why = self.run(f"{section}-{name}", part_command(self.args, *argv), limit)
        self.note(section, name, last_result(text) | ({"reason": why} if why else {}))

    def run(self, name, *command, **more):
        """run(), what it printed kept as logs/NAME.txt."""
        text, why = run(*command, **more)
        folder = self.work / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text(text)
        return text, why


def last_result(text):
    """The last whole JSON object that a part printed as a line."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):
                return json.loads(line)
    return {}


def part_command(args, *argv):
    """The command of a part of this file."""
    own = ["--out", args.out, "--work", args.work, "--device", args.device, *["--tiny"] * args.tiny]
    return [sys.executable, __file__, *own, "--part", *map(str, argv)]


def run(command, limit, threads=None, **more):
    """(what a command printed, why it ended early or None). At the limit it and its children are told to
    stop; a training saves itself then. What is still there after GRACE is killed.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path, "MPLBACKEND": "Agg"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env | ({"OMP_NUM_THREADS": str(threads)} if threads else {}),
        start_new_session=True,
        **more,
    )
    text = ""
    for wait, ending in ((limit, signal.SIGTERM), (GRACE, signal.SIGKILL), (GRACE, None)):
        try:
            text, _ = process.communicate(timeout=wait)
            break
        except subprocess.TimeoutExpired:
            if ending:
                os.killpg(process.pid, ending)
    if ending != signal.SIGTERM:
        return text, f"stopped after {limit:.0f} s"
    if process.returncode:
        return text, f"exit {process.returncode}: {(text.strip().splitlines() or ['?'])[-1][:300]}"
    return text, None


# =============================================================================================== the parts


def cuda_tests(report, limit):
    """The tests that have a case for CUDA; on a processor one file, to see that they run."""
    which = ["-k", "cuda", "tests", "--ignore", "tests/test_notebooks.py"]
    if report.args.device == "cpu":
        which = ["tests/test_common.py"]
    command = [sys.executable, "-m", "pytest", "-v", "--maxfail=20", *which]
    text, why = report.run("tests", command, limit, cwd=ROOT)
    failed = [a or b for a, b in re.findall(r"^(\S+::.+?) (?:FAILED|ERROR)|^ERROR (\S+)$", text, re.M)]
    last = (text.strip().splitlines() or [""])[-1]
    value = {"last line": last, "failed": failed} | ({"reason": why} if why else {})
    report.note("tests", report.args.device, value)


def mediums(report, seconds):
    """The medium recipes, each trained and then evaluated; on a GPU all at once, else one on each core."""
    args = report.args
    at_once = len(args.models) if args.device != "cpu" else min(len(args.models), os.cpu_count())
    whole, threads = seconds * at_once / len(args.models), max(1, os.cpu_count() // at_once)

    def one(model):
        try:
            medium(report, model, whole, threads)
        except Exception as error:  # the others may do
            report.note("medium", model, {"reason": f"{type(error).__name__}: {error}"[:300]})

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, args.models))


def medium(report, model, seconds, threads):
    """A medium recipe, noted once it is trained, and again once it is evaluated."""
    begun, training = time.monotonic(), 0.7 * seconds
    command = medium_command(report, model, training)
    text, why = report.run(f"medium-{model}-train", [*command, "--train"], training, threads=threads)
    steps = r"^(round \d+|(?:stopped at )?step \d+(?: of |/)\d+)"
    value = {
        "flags": re.sub(r"--(run|cache|device) \S+ ?", "", " ".join(command[command.index("paper") + 2 :])),
        "seconds": round(time.monotonic() - begun),
        "last told": re.findall(steps, text, re.M)[-2:],
        "rows": {},
        "reasons": [why] if why else [],
    }
    report.note("medium", model, value)
    if not list((report.work / "runs" / model).rglob("last.pt")):
        return  # stopped before its first step
    left = max(1, seconds - (time.monotonic() - begun))
    _, why = report.run(f"medium-{model}-evaluate", [*command, "--evaluate"], left, threads=threads)
    file = report.work / "runs" / model / "evaluation.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    report.note("medium", model, value | {"rows": rows, "reasons": value["reasons"] + ([why] if why else [])})


def medium_command(report, model, seconds):
    """A medium recipe, shortened to what some seconds beside the others allow."""
    args, (name, fixed) = report.args, MODELS[model]
    _, cfg = config(model, "medium", args)
    # beside each other the recipes took an H100 about 700 s, these two more; and they need a while to begin
    share = min(1.0, max(0.02, (seconds - 40) / {"cyclegan": 1000, "iacyclegan": 1100}.get(model, 700)))
    steps = cfg.steps if args.tiny else round(share * cfg.steps)
    flags = ["--scale", "medium", "--device", args.device, "--steps", steps]
    flags += ["--run", report.work / "runs" / model, "--cache", report.work / "cache"]
    flags += [part for key, value in fixed.items() for part in (f"--{key}", value)]
    if name == "iacyclegan":
        flags += ["--rounds", 1]
    if args.tiny:
        from conftest import tiny_flags

        flags += tiny_flags({k: v for k, v in tiny(name).items() if k not in ("steps", "rounds", *fixed)})
    else:
        flags += ["--save-every", max(20, steps // 6), "--sample-every", max(20, steps // 6)]
        flags += ["--copy-steps", round(share * cfg.copy_steps)] if getattr(cfg, "copy_steps", 0) else []
    return part_command(args, "paper", name, *flags)


def collect_sheets(report):
    """sheets.zip: pictures and logs."""
    runs = report.work / "runs"
    with archive(report.folder / "sheets.zip") as sheets:
        files = [file for folder in runs.rglob("samples") for file in sorted(folder.glob("*.png"))[-1:]]
        for name in ("losses.png", "evaluation.png", "metrics.jsonl"):
            files += runs.rglob(name)
        for file in files:
            sheets.write(file, "-".join(file.relative_to(runs).parts))
        for log in (report.work / "logs").glob("*.txt"):
            sheets.write(log, f"logs/{log.name}")


def collect_weights(report):
    """weights_*.zip, each under 16 MiB."""
    runs, packs = report.work / "runs", [[]]
    for last in sorted(runs.rglob("last.pt")):
        try:
            file = half_precision(last)
        except Exception as error:  # the others may do
            report.note("weights", str(last.relative_to(runs)), {"reason": f"{error}"[:300]})
            continue
        if sum(f.stat().st_size for f in [*packs[-1], file]) > MOST:
            packs.append([])
        packs[-1].append(file)
    for k, files in enumerate(packs):
        with archive(report.folder / f"weights_{k + 1}.zip") as weights:
            for file in files:
                weights.write(file, "-".join(file.relative_to(runs).parent.parts) + ".pt")


@contextlib.contextmanager
def archive(path):
    """A zip file that is there when it is whole."""
    beside = path.with_suffix(".part")
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as file:
        yield file
    beside.replace(path)


def half_precision(last):
    """The generators of a checkpoint in half precision, in a file beside it."""
    from lab.demos import generators
    from lab.files import save_checkpoint

    file = last.with_name("generators.pt")
    save_checkpoint(generators(last), file)
    return file


def main(args):
    report, want = Report(args), args.sections
    if "environment" in want:
        report.part("environment", args.device, 60, "environment")
    if "medium" in want:
        others = len(set(want) - {"environment", "medium"})
        mediums(report, (report.left() - 30) * (0.55 if others else 1))
        collect_weights(report)
    parts = [("tests", args.device)] * ("tests" in want)
    for section, models in (
        ("bench", tuple(MODELS)),
        ("authors", ("stargan", "pix2pix", "cyclegan")),
        ("compile", ("stargan", "cyclegan")),
    ):
        parts += [(section, model) for model in models if section in want and model in args.models]
    shares = [3 if section == "tests" else 1 for section, _ in parts]
    for k, (section, name) in enumerate(parts):  # what one leaves over is for those that follow
        limit = (report.left() - 5) * shares[k] / sum(shares[k:])
        if section == "tests" and limit >= 3:
            cuda_tests(report, limit)
        else:
            report.part(section, name, limit, section, name)
    collect_sheets(report)
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
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
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
