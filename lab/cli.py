"""The command line, the same for every paper: --train --evaluate --ablate --infer --demo ... (see MODES).

A paper's module holds Config, SMALL (and MEDIUM), INFER_FLAGS, train, infer and scan; its equations stand in
its docstring, one a line as "  [label] name", and a loss names its equation by the same label. evaluate and
ablate are in lab.claims.<paper>, which is imported when a mode asks for it.
"""
import argparse
import ast
import contextlib
import dataclasses
import errno
import importlib
import inspect
import math
import re
import signal
import sys
from pathlib import Path

import torch

from lab import UserError, formats, say
from lab.files import no_memory
from lab.machine import hardware, resolve_device
from lab.run import data_folders, require

MODES = {
    "train": "train; a run that was stopped goes on, on a processor to the bit",
    "evaluate": "metrics on held-out faces",
    "ablate": "the paper's claim: with and without", "infer": "translate your own files",
    "demo": "pictures in seconds, from the generator that comes with the repository",
    "explain": "every equation, its function, weight and tests", "check": "what is under --data",
    "bench": "time, memory and FLOPs of a step of this recipe",
}


def cli(name):
    """The command line of the paper in module `name`. Ends the process."""
    paper = sys.modules[name]
    with contextlib.suppress(AttributeError):                          # a file's name may be no text at all
        sys.stdout.reconfigure(errors="backslashreplace")
    # SIGTERM outside a training: like sys.exit
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(main(paper, sys.argv[1:]))
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        again = "the same command" + ", without --fresh," * ("--fresh" in sys.argv)
        print(f"stopped; {again} goes on from the last checkpoint, or begins anew if there is none yet",
              file=sys.stderr)
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if "PytorchStreamWriter" in str(error):
            fail("a file cannot be written; is the disk full?")
        if not no_memory(error):
            raise
        fail("out of memory; give a smaller --batch-size, --image-size or network")
    except OSError as error:
        full = error.errno == errno.ENOSPC
        room = "; make room where --run and --cache are: the same command goes on" * full
        fail(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}{room}")


def fail(message):
    """One line, exit code 2. (A file's name, or what is in it, may be anything.)"""
    message = message.replace("\n", " ")
    short = message if len(message) < 600 else f"{message[:300]} ... {message[-250:]}"
    print("error:", short, file=sys.stderr)
    sys.exit(2)


def main(paper, argv):
    args = parser_of(paper).parse_args(argv)
    if not any(getattr(args, mode) for mode in MODES):
        parser_of(paper).print_help()
        raise UserError("no mode was given; begin with --demo, or --train")
    title, scale, cfg = Path(paper.__file__).stem, scale_of(args), config_of(paper, args)
    if args.explain:
        print(explain(paper))
    if args.check:
        formats.check(paper.scan, cfg)
    if not (args.train or args.evaluate or args.ablate or args.infer or args.demo or args.bench):
        return 0
    shipped = False
    if (args.infer or args.demo) and not (args.train or args.ablate or args.bench):
        from lab.demos import use_shipped
        shipped = use_shipped(cfg, args)
    resolve_device(cfg)
    machine = hardware(cfg)
    data = " and ".join(data_folders(cfg))
    if args.train or args.ablate or args.bench:
        say(f"{title}: {scale} recipe on {machine}, {'bfloat16' if cfg.amp else 'float32'}, "
            f"{cfg.image_size} px, batch {cfg.batch_size}, {data or 'toy faces'}")
    else:                                                              # sizes come from the checkpoint
        origin = ", which comes with the repository and knows toy faces only," * shipped
        say(f"{title}: {cfg.weights or cfg.run}{origin} on {machine}" + f", {data}" * bool(data))
    run_modes(paper, title, args, cfg)
    return 0


def run_modes(paper, title, args, cfg):
    if args.bench:
        from lab.bench import bench
        bench(paper, cfg)
    if args.train:
        paper.train(cfg)
        cfg.weights = ""                                               # it only started the training
    if args.evaluate or args.ablate:
        claims = importlib.import_module(f"lab.claims.{title}")
    if args.evaluate:
        print(importlib.import_module("lab.claims").table(claims.evaluate(cfg)))
    if args.ablate:
        claims.ablate(cfg)
    if args.infer:
        folder = Path(args.out or Path(cfg.run) / "inferred").resolve()
        for file in args.infer:
            if not Path(file).exists():
                raise UserError(f"{file}: no such file")
            if folder in (Path(file).resolve(), Path(file).resolve().parent):
                raise UserError(f"{file}: lies where the results go, and might be overwritten; "
                                "give another --out")
        names = [flag.strip("-").replace("-", "_") for flag in paper.INFER_FLAGS]
        paper.infer(cfg, args.infer, **{name: getattr(args, name) for name in names})
    if args.demo:
        from lab.demos import demo
        demo(paper, cfg)


# ============================================================================================= flags

class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; see --help")


def parser_of(paper):
    parser = Parser(Path(paper.__file__).stem, description=paper.__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_argument_group("modes (they combine, in this order)")
    for mode, text in MODES.items():
        if mode == "infer":
            modes.add_argument("--infer", nargs="+", metavar="FILE", help=text)
        else:
            modes.add_argument(f"--{mode}", action="store_true", help=text)
    options = parser.add_argument_group("options")
    options.add_argument("--scale", choices=("auto", "small", "medium", "paper"), default="auto",
                         help="small: minutes on a processor; medium: minutes on a GPU, larger pictures; "
                              "paper: the paper's recipe; auto: small on a processor, on a GPU medium for "
                              "toy faces and paper for --data")
    comments, defaults = sources(paper.Config), paper.Config()
    for field in dataclasses.fields(paper.Config):
        default, source = getattr(defaults, field.name), comments.get(field.name, "").replace("%", "%%")
        small = recipe(paper, "small").get(field.name, default)
        source += f"; default {default!r}" + f", small {small!r}" * (small != default)
        add_flag(options, field, default, source)
    inference = parser.add_argument_group("options of --infer")
    for flag, kwargs in paper.INFER_FLAGS.items():
        inference.add_argument(flag, **kwargs)
    return parser


class Once(argparse.Action):
    """A flag whose second value would silently replace the first."""

    def __call__(self, parser, args, value, flag=None):
        if getattr(args, self.dest) is not None:
            parser.error(f"{flag} {getattr(args, self.dest)} {flag} {value}: this paper reads one data set")
        setattr(args, self.dest, value)


def add_flag(parser, field, default, source):
    """One field of a Config as a flag. Its type is that of its default."""
    name, about = "--" + field.name.replace("_", "-"), dict(default=None, help=source)
    if isinstance(default, bool) or field.name == "amp":
        parser.add_argument(name, action=argparse.BooleanOptionalAction, **about)
    elif field.metadata.get("action") == "append":
        parser.add_argument(name, action="append", metavar="DIR", **about)
    elif isinstance(default, tuple):
        kind = number(field.metadata.get("type") or type(default[0]))
        parser.add_argument(name, nargs="+", type=kind, metavar="N", **about)
    else:
        choices = field.metadata.get("choices")
        metavar, action = None if choices else field.name.upper(), Once if field.name == "data" else "store"
        parser.add_argument(name, type=number(type(default)), choices=choices, metavar=metavar, action=action,
                            **about)


def number(kind):
    """kind; but int and float only from 0 on, finite, and no larger than anything here can be."""
    if kind not in (int, float):
        return kind

    def parse(text):
        value = kind(text)
        if not math.isfinite(value) or value < 0 or kind is int and value > 10 ** 7:
            raise ValueError
        return value
    parse.__name__ = {int: "whole number, 0 ... 10,000,000", float: "number >= 0"}[kind]
    return parse


def sources(cls):
    """{field: trailing comment} of a Config and its bases, read from the source itself."""
    found = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= dict(re.findall(r"^    (\w+):.*?#\s*(.*)$", inspect.getsource(base), re.M))
    return found


def scale_of(args):
    """What --scale auto means here."""
    if args.scale != "auto":
        return args.scale
    if args.device == "cpu" or not torch.cuda.is_available():
        return "small"
    return "paper" if args.data else "medium"


def recipe(paper, scale, model=""):
    """What `scale` changes in Config: SMALL, MEDIUM or nothing. A model may have its SMALL_<MODEL>."""
    return getattr(paper, f"{scale}_{model}".upper(), getattr(paper, scale.upper(), {}))


def config_of(paper, args):
    """The Config of the scale, changed by what was given. UserError for numbers that no paper can use."""
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(paper.Config)}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
    preset = recipe(paper, scale_of(args), given.get("model", ""))
    if "epochs" in given:
        preset = {k: v for k, v in preset.items() if k != "steps"}
    cfg = paper.Config(**{**preset, **given})
    cfg.run = cfg.run or f"runs/{getattr(cfg, 'model', Path(paper.__file__).stem)}"

    for field in ("steps", "batch_size", "image_size", "log_every", "save_every", "sample_every"):
        require(cfg, field, given.get(field, 1) >= 1, "at least 1")
    for field, most in (("residual_blocks", 100), ("d_layers", 100), ("width", 4096), ("pose", 1.5),
                        ("decay_from", 1)):
        require(cfg, field, getattr(cfg, field, 0) <= most, f"at most {most}")
    if cfg.steps:                                                      # else no step of the paper is left
        require(cfg, "copy_steps", getattr(cfg, "copy_steps", 0) < cfg.steps,
                f"fewer than --steps {cfg.steps}" + "; give it, too" * ("copy_steps" not in given))
    require(cfg, "seed", cfg.seed < 1000, "below 1000, since from there on people who are tested are drawn")
    require(cfg, "betas", len(cfg.betas) == 2 and max(cfg.betas) < 1, "two numbers from 0 to below 1")
    for folder in data_folders(cfg):
        if not Path(folder).is_dir():
            raise UserError(f"--data {folder}: no such folder")
    for flag in ("weights", "vgg_face", "light_cnn"):
        if (file := getattr(cfg, flag, "")) and not Path(file).exists():
            raise UserError(f"--{flag.replace('_', '-')} {file}: no such file")
    for flag in ("run", "cache"):
        if Path(getattr(cfg, flag)).is_file():
            raise UserError(f"--{flag} {getattr(cfg, flag)}: a file; expected a folder")
    return cfg


# ========================================================================================= --explain

def equations(paper):
    """[(label, name)] that the paper's docstring lists, one a line as '  [2.3.4] triple consistency'."""
    return re.findall(r"^\s+\[([\w.()]+)\] (.+?)\s*$", paper.__doc__, re.M)


def loss_functions(paper):
    """{name: function} of the paper's losses: named loss_*, or with a [label] first in the docstring."""
    own = {k: f for k, f in vars(paper).items() if inspect.isfunction(f) and f.__module__ == paper.__name__}
    return {k: f for k, f in own.items()
            if k.startswith("loss_") or re.match(r"\[[\w.()]+\]", f.__doc__ or "")}


def tests_of(paper, name, folder):
    """Names of the tests under `folder` that import the module `paper` and whose body mentions `name`."""
    found = []
    for path in sorted(Path(folder).glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body if re.search(rf"^(import|from) {paper}\b", text, re.M) else ():
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                names = {getattr(n, "attr", getattr(n, "id", None)) for n in ast.walk(node)}
                if name in names:
                    found.append(f"{path.name}::{node.name}")
    return found


def explain(paper):
    """Every equation: formula, function and line, weight (the paper's, ours), source, and its tests."""
    functions, file, out = loss_functions(paper), Path(paper.__file__), []
    for label, title in equations(paper):
        out.append(f"[{label}] {title}")
        for name, function in functions.items():
            doc = inspect.cleandoc(function.__doc__)
            if doc.startswith(f"[{label}]"):
                out.append(f"    {doc.splitlines()[0][len(label) + 2:].strip()}")
                line = inspect.getsourcelines(function)[1]
                out.append(f"    {file.name}:{line}  {name}{inspect.signature(function)}")
                out += weight_of(paper, doc)
                tests = tests_of(file.stem, name, file.parent / "tests")
                out.append(f"    tests: {', '.join(tests) or 'none'}")
        out.append("")
    return "\n".join(out)


def weight_field(doc):
    """The field of Config that a docstring names as 'Weight: field', or None."""
    weight = re.search(r"Weight: (\w+)", doc)
    return weight and weight.group(1)


def weight_of(paper, doc):
    """The line about the weight that a docstring names; [] if it names none."""
    field = weight_field(doc)
    if not field:
        return []
    value, source = getattr(paper.Config(), field), sources(paper.Config).get(field, "no source")
    return [f"    weight {field} = {value} ({source}); small recipe {paper.SMALL.get(field, value)}"]
