"""Settings, precision, and Run: one training in a folder, which continues exactly where it stopped."""
import contextlib
import dataclasses
import inspect
import json
import math
import re
import signal
import sys
import textwrap
import time
from pathlib import Path

import torch
from tqdm import tqdm

import lab
from lab import UserError, say
from lab.files import (check_paper, load_checkpoint, no_memory, read_jsonl, save_checkpoint,
                       write_json, write_text)
from lab.formats import fingerprint
from lab.images import figure
from lab.machine import command, commit, hardware


@dataclasses.dataclass
class Settings:
    """What every command understands. A paper's Config adds the paper's own."""
    run: str = ""                     # ours: runs/<paper>; the folder that a training writes and continues
    data: str = ""                    # ours: folder of the real data set; empty = toy faces
    cache: str = "runs/cache"         # ours: decoded pictures and small judges, shared by all runs
    device: str = "auto"              # ours: cuda where it is there
    seed: int = 0                     # ours
    amp: bool | None = None           # ours: bfloat16; None = where it pays, see the paper's AMP_ON_CUDA
    compile: bool = False             # ours: torch.compile; pays on a GPU after minutes of training
    fresh: bool = False               # ours: start over instead of continuing
    skip_bad: bool = False            # ours: go on without unreadable files
    weights: str = ""                 # ours: a checkpoint to load the generator from
    log_every: int = 50               # ours: steps between lines of metrics.jsonl
    save_every: int = 500             # ours: steps between checkpoints, which take at most 2 % of the time
    sample_every: int = 250           # ours: steps between sample grids
    stop_after: int = 0               # ours: stop, saved, after this step; 0 = at the end

    AMP_ON_CUDA = True                # not a setting: does bfloat16 save time or memory on a GPU?


# Two runs are the same run whatever these are
NOT_COMPARED = ("run", "cache", "device", "fresh", "weights", "log_every", "save_every", "sample_every",
                "stop_after", "compile", "skip_bad")


def autocast(cfg):
    """Inside, networks compute in bfloat16 (cfg.amp). Weights, optimisers and losses stay float32."""
    return torch.autocast(torch.device(cfg.device).type, torch.bfloat16, enabled=bool(cfg.amp))


def to_device(cfg, *nets):
    """Networks on the device, compiled with cfg.compile. Returns a list. (net.forward stays as written.)"""
    for net in nets:
        net.to(cfg.device)
        if cfg.compile:
            net.compile()
    return list(nets)


@contextlib.contextmanager
def frozen(*nets):
    """Inside, parameters of `nets` collect no gradient; it still flows *through* them to their inputs."""
    for net in nets:
        net.requires_grad_(False)
    try:
        yield
    finally:
        for net in nets:
            net.requires_grad_(True)


def logged(suffix="", **losses):
    """Losses by name for Run.log, without their graphs: {"L_rec": value}."""
    return {f"L_{name}{suffix}": torch.as_tensor(value).detach() for name, value in losses.items()}


def choice(default, *others):
    """A field of a Config that is one of several words; the first is the default."""
    return dataclasses.field(default=default, metadata={"choices": (default, *others)})


def require(cfg, name, fits, expected):
    """UserError that quotes the setting `name` as its flag, unless it fits."""
    if not fits:
        value = str(getattr(cfg, name)).strip("()").replace(",", "")              # a tuple as it is typed
        raise UserError(f"--{name.replace('_', '-')} {value}: expected {expected}")


def paper_of(cfg):
    """The name of the file that defines this Config."""
    return Path(inspect.getfile(type(cfg))).stem


def comparable(cfg):
    """The settings that make two runs the same run, as plain values."""
    values = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name not in NOT_COMPARED}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def restore_config(cfg, saved, names):
    """Let cfg take over the settings `names` of a checkpoint of ours, and its data unless cfg has some."""
    for name in (*names, *(() if cfg.data else ("data",))):
        value = saved["config"].get(name, getattr(cfg, name))
        setattr(cfg, name, tuple(value) if isinstance(value, list) else value)


class Run:
    """One training: a folder with config.json, last.pt, metrics.jsonl, losses.png, samples/.

    data: has `generator` (a torch.Generator) and `sample(batch_size)`; nets, opts: networks and optimisers by
    name; health: {word: meaning}; about: plain values that inference needs to know of the data; losses: what
    the log shows of steps that not every batch has. A training that was interrupted goes on as if it had
    never stopped, on a processor to the bit: networks, optimisers, losses and random generators come from
    last.pt. One that is lengthened goes on as the longer one would.
    """

    def __init__(self, cfg, data, nets, opts, health=None, about=None):
        self.cfg, self.data, self.nets, self.opts = cfg, data, nets, opts
        self.health, self.about = health or {}, about
        self.folder, self.step, self.elapsed, self.begun = Path(cfg.run), 0, 0., None
        self.stop_signal, self.word, self.bar, self.losses = None, "", None, {}
        self.files = fingerprint(data_folders(cfg))
        self.saved, self.saving = -math.inf, 0.                        # last.pt: when, how long it took
        self.open()

    def open(self):
        """Continue what is in the folder, or begin."""
        cfg, last = self.cfg, self.folder / "last.pt"
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        ours = ("last.pt", "config.json", "metrics.jsonl")
        for part in (part for name in ours for part in self.folder.glob(f"{name}.*part")):
            part.unlink(missing_ok=True)                               # what a kill left
        if last.exists() and not cfg.fresh:
            self._resume(last)
        else:
            last.unlink(missing_ok=True)
            (self.folder / "metrics.jsonl").write_text("")
            for old in (self.folder / "samples").glob("*.png"):
                if re.fullmatch(r"\d{7}", old.stem):                   # ours
                    old.unlink()
        self.first = self.step
        settings = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}
        how = {"command": command(), "commit": commit(), "hardware": hardware(cfg)}
        write_json(self.folder / "config.json", settings | how | {"torch": torch.__version__})

    # ---- checkpoints

    def _resume(self, path):
        saved, ours = load_checkpoint(path), comparable(self.cfg)
        check_paper(saved, path, paper_of(self.cfg), ("step", "config", "nets", "opts", "rng", "seconds"))
        different = [f"{k} (was {saved['config'].get(k)!r}, now {v!r})" for k, v in ours.items()
                     if k not in ("steps", "epochs") and saved["config"].get(k, v) != v
                     and not (k == "data" and self._same_data(saved))]
        if saved.get("about") != self.about:
            was, now = (textwrap.shorten(repr(about), 80) for about in (saved.get("about"), self.about))
            different.append(f"data set or loss network (was {was}, now {now})")
        if different:
            raise UserError(f"{self.folder} holds a run with another {', '.join(different)}; "
                            "give the same settings, another --run folder, or --fresh to start over")
        try:
            self._load(saved)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            if no_memory(error):
                raise
            why = str(error).splitlines()[0][:90]
            raise UserError(f"{path}: does not fit this training ({why}); "
                            "give another --run folder, or --fresh to start over") from None
        before, now = saved.get("pictures"), count(self.data)
        if before is not None and before != now:
            say(f"note: the data set had {before} pictures, now it has {now}; "
                "from here on other pictures are drawn")
        log = self.folder / "metrics.jsonl"                            # drop lines later than the checkpoint
        lines = (json.dumps(line) for line in read_jsonl(log) if line["step"] <= self.step)
        write_text(log, "".join(f"{line}\n" for line in lines))
        say(f"continuing {self.folder} from step {self.step}")

    def _same_data(self, saved):
        """Is cfg.data the checkpoint's under another spelling, or the same pictures in another place?"""
        was, now = saved["config"]["data"], data_folders(self.cfg)
        was = [folder for folder in ([was] if isinstance(was, str) else was) if folder]
        moved = [Path(folder).resolve() for folder in was] != [Path(folder).resolve() for folder in now]
        if moved and now and saved.get("files") == self.files:
            say(f"note: {', '.join(was)} is now {', '.join(now)}, with the same pictures")
        return not moved or bool(now) and saved.get("files") == self.files

    def _load(self, saved):
        for group, mine in (("nets", self.nets), ("opts", self.opts)):
            for name, thing in mine.items():
                thing.load_state_dict(saved[group][name])
        for optimiser in self.opts.values():                           # moments lie as their parameters
            for p, state in optimiser.state.items():
                state.update({k: torch.empty_like(p).copy_(v) for k, v in state.items()
                              if torch.is_tensor(v) and v.dim() and v.shape == p.shape})
        self.step, self.elapsed, self.losses = saved["step"], saved["seconds"], saved.get("losses", {})
        self.data.generator.set_state(saved["rng"]["data"])
        torch.set_rng_state(saved["rng"]["torch"])
        if "cuda" in saved["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(saved["rng"]["cuda"])

    def save(self):
        start, kept = time.perf_counter(), self.folder / "last.pt"
        values = (value for net in self.nets.values() for value in net.state_dict().values())
        if not all(value.isfinite().all() for value in values):
            before = "no checkpoint was written"
            if kept.exists():
                before = f"{kept} is still that of step {load_checkpoint(kept)['step']}"
            raise UserError(f"{self.folder}: at step {self.step} the networks hold numbers that are not "
                            f"finite; {before}; start anew (--fresh, or another --run) with a smaller --lr, "
                            "or --no-amp")
        rng = {"data": self.data.generator.get_state(), "torch": torch.get_rng_state()}
        if self.cfg.device.startswith("cuda"):
            rng["cuda"] = torch.cuda.get_rng_state()
        save_checkpoint({"paper": paper_of(self.cfg), "step": self.step, "seconds": self.seconds(),
                         "config": comparable(self.cfg), "about": self.about, "rng": rng,
                         "pictures": count(self.data), "files": self.files,
                         "losses": {k: float(v) for k, v in self.losses.items()},
                         "nets": {k: v.state_dict() for k, v in self.nets.items()},
                         "opts": {k: v.state_dict() for k, v in self.opts.items()}}, kept)
        self.saved = time.perf_counter()
        self.saving = self.saved - start

    # ---- the loop

    def batches(self, batch_size, until=None):
        """Yields (step, data.sample(batch_size)) for the steps still to do, in a phase those until `until`.
        Ctrl-C and SIGTERM end the training after the step, saved.
        """
        cfg = self.cfg
        end = min(cfg.steps, cfg.stop_after or cfg.steps)
        self._begin(end)
        handlers = self._catch_signals()
        try:
            for step in range(self.step + 1, min(end, end if until is None else until) + 1):
                yield step, self.data.sample(batch_size)
                self.step = step
                self.bar.update()
                due = step % cfg.save_every == 0 and time.perf_counter() - self.saved > 50 * self.saving
                if step == end or self.stop_signal or due:
                    self.save()
                if self.stop_signal:
                    break
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.stop_signal or self.step >= end:
            self._finish()

    def _begin(self, end):
        if self.begun is None:
            if self.health and self.step < end:
                words = "; ".join(f"{word} = {meaning}" for word, meaning in self.health.items())
                say(f"health: {words}; else ok")
            self.bar = tqdm(total=self.cfg.steps, initial=self.step, unit="step", dynamic_ncols=True,
                            disable=lab.quiet or not sys.stderr.isatty())
            self.begun = time.perf_counter()

    def _finish(self):
        self.bar.close()
        self.plot()
        if self.stop_signal:
            say(f"stopped at step {self.step} of {self.cfg.steps}, saved in {self.folder}; "
                f"the same command{', without --fresh,' * self.cfg.fresh} goes on from there")
            sys.exit(128 + self.stop_signal)
        if self.step > self.first or self.first >= self.cfg.steps:
            say(f"step {self.step} of {self.cfg.steps}: "
                f"{self.folder}/last.pt, samples/, losses.png, metrics.jsonl")
        self.first = math.inf                                          # told once

    def _catch_signals(self):
        def note(number, frame):
            self.stop_signal = number
        try:
            return {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:                                             # not the main thread
            return {}

    def set_lr(self, lr):
        """The learning rate of every optimiser."""
        for optimiser in self.opts.values():
            for group in optimiser.param_groups:
                group["lr"] = lr

    # ---- what happened

    def seconds(self):
        """Time spent in the loop so far, earlier runs included."""
        return self.elapsed + time.perf_counter() - self.begun

    def logs(self, step):
        return step % self.cfg.log_every == 0 or step in (1, self.cfg.steps)

    def samples(self, step):
        return step % self.cfg.sample_every == 0 or step in (1, self.cfg.steps)

    def log(self, step, health="ok", **values):
        """Append one line to metrics.jsonl and show it. values: scalars or tensors with one element."""
        values = {k: float(torch.as_tensor(v).detach()) for k, v in values.items()}
        finite = {k: round(v, 6) if math.isfinite(v) else None for k, v in values.items()}
        health = "nan" if None in finite.values() else health
        line = {"step": step, "health": health, **finite, "seconds": round(self.seconds(), 2)}
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        text = " ".join(f"{k} {v:.3g}" for k, v in values.items())
        self.bar.set_postfix_str(f"{health} {text}")
        shown = step % (10 * self.cfg.log_every) == 0 or step in (1, self.cfg.steps) or health != self.word
        if self.bar.disable and shown:
            rate = (step - self.first) / max(1e-9, time.perf_counter() - self.begun)
            left = (self.cfg.steps - step) / max(rate, 1e-9) / 60
            say(f"step {step}/{self.cfg.steps}  {health}  {text}  {rate:.1f} step/s, {left:.1f} min left")
        self.word = health
        if step % (20 * self.cfg.log_every) == 0:
            self.plot()

    def sample(self, step, image):
        """Keep a sample grid (PIL image)."""
        image.save(self.folder / "samples" / f"{step:07d}.png")

    def plot(self):
        """losses.png from metrics.jsonl."""
        lines = read_jsonl(self.folder / "metrics.jsonl")
        if len(lines) < 2:
            return
        names = [k for k in lines[-1] if k not in ("step", "health", "seconds")]
        rows, columns = math.ceil(len(names) / 4), min(4, len(names))
        sheet = figure(3.2 * columns, 2.2 * rows, layout=None)         # the usual one takes seconds for many
        sheet.subplots_adjust(.3 / columns, .2 / rows, 1 - .05 / columns, 1 - .2 / rows, .2, .45)
        for k, name in enumerate(names):
            ax = sheet.add_subplot(rows, columns, k + 1)
            values = [math.nan if line.get(name) is None else line[name] for line in lines]
            ax.plot([line["step"] for line in lines], values, lw=.8)
            ax.set_title(name, fontsize=9)
            ax.tick_params(labelsize=7)
        sheet.savefig(self.folder / "losses.png", dpi=90)


def count(data):
    return len(data) if hasattr(data, "__len__") else None


def data_folders(cfg):
    """cfg.data as a list: some papers take one folder, some several; [] = toy faces."""
    return list(cfg.data) if isinstance(cfg.data, tuple) else [cfg.data] if cfg.data else []


