"""--bench: what a step costs, measured from outside of a paper's training loop."""
import contextlib
import dataclasses
import math
import sys
import tempfile
import time
from collections import defaultdict
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from lab.run import Run


class Measured(Exception):
    """Ends a training whose steps have been measured."""


class NoModules(contextlib.nullcontext):
    """In place of the FLOP counter's module hooks, which the gradient penalty's autograd.grad breaks."""
    parents = frozenset(("Global",))


class Stopwatch(Run):
    """A Run that writes nothing, and ends after some of the last steps, where every loss has its full weight.

    laps: seconds of a step for the data, for each optimiser (up to and with its step) and for the rest;
    flops: of a step; peak: bytes on the GPU. Phases before the last one are skipped.
    """

    def open(self):
        self.laps, self.clock = defaultdict(float), 0.
        for name, optimiser in self.opts.items():
            optimiser.register_step_post_hook(lambda *_, name=name: self.lap(name))

    def logs(self, step):
        return False

    samples = logs

    def lap(self, name):
        if self.cfg.device.startswith("cuda"):
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps[name] += now - self.clock
        self.clock = now

    def batches(self, batch_size, until=None):
        if until is not None and until < self.cfg.steps:
            return
        cfg, cycle = self.cfg, d_steps_per_G(self.cfg)
        warm_up, self.timed = max(5, cycle), cycle * math.ceil((10 if cfg.device == "cpu" else 30) / cycle)
        end, cuda = cfg.steps // cycle * cycle, cfg.device.startswith("cuda")
        for k in range(warm_up + self.timed):
            if k == warm_up:
                self.laps.clear()
                if cuda:
                    torch.cuda.reset_peak_memory_stats()               # the trials of cuDNN are over
            self.clock = time.perf_counter()
            batch = self.data.sample(batch_size)
            self.lap("data")
            yield end - (warm_up + self.timed - 1 - k) % cycle, batch
            self.lap("rest")
        self.peak = torch.cuda.max_memory_allocated() if cuda else 0
        laps, counter = dict(self.laps), FlopCounterMode(display=False)
        counter.mod_tracker = NoModules()
        with counter:
            for k in reversed(range(cycle)):
                yield end - k, self.data.sample(batch_size)
        self.laps, self.flops = laps, counter.get_total_flops() / cycle
        measured = Measured()
        measured.run = self
        raise measured


def d_steps_per_G(cfg):
    """Steps of D until G has its turn, under whichever of its names the paper knows them."""
    return max(getattr(cfg, "n_critic", 1), getattr(cfg, "d_steps", 1))


def measured(paper, cfg):
    """The Stopwatch of a training of cfg. Of IACycleGAN: of the first round that has an identity loss."""
    train = getattr(paper, "train_a_round", paper.train)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(paper, "Run", Stopwatch):
        try:
            train(dataclasses.replace(cfg, run=folder, fresh=False))
        except Measured as done:
            return done.run
    raise RuntimeError("the training ended before a step was measured")


def bench(paper, cfg):
    """Print ms a step, split into data, D, G; pictures/s; peak memory; FLOPs and share of the matmul rate."""
    run, cuda = measured(paper, cfg), cfg.device.startswith("cuda")
    ms = {k: 1e3 * v / run.timed for k, v in run.laps.items()}
    total, memory = sum(ms.values()), f"{run.peak / 2 ** 30:.2f} GiB on the GPU" if cuda else resident()
    rate, flops = matmul_rate(cfg), run.flops / (total / 1e3)
    precision = "bfloat16" if cfg.amp else "TF32" if cuda else "float32"
    parts = ", ".join(f"{k} {v:.1f}" for k, v in ms.items())
    print(f"{total:.1f} ms per step: {parts} (mean of {run.timed} steps)")
    print(f"{cfg.batch_size / total * 1e3:.0f} pictures/s, peak memory {memory}")
    print(f"{run.flops / 1e9:.1f} GFLOP per step, {flops / 1e12:.3f} TFLOP/s = {100 * flops / rate:.0f} % "
          f"of this device's matmul rate ({rate / 1e12:.2f} TFLOP/s in {precision})")
    return {"ms": ms, "flops": run.flops, "matmul_rate": rate, "batch_size": cfg.batch_size, "peak": run.peak}


def resident():
    """The most memory that this process has had, as text."""
    try:
        import resource
    except ImportError:                                                # Windows
        return "not known here"
    unit = 1 if sys.platform == "darwin" else 2 ** 10                  # bytes on a Mac, else KiB
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2 ** 30:.2f} GiB resident"


def matmul_rate(cfg):
    """FLOP/s of a large matrix product on this device, in the precision of the training (TF32 on a GPU)."""
    n, cuda = (8192, True) if cfg.device.startswith("cuda") else (2048, False)
    x = torch.randn(n, n, device=cfg.device, dtype=torch.bfloat16 if cfg.amp else torch.float32)
    before, best = torch.backends.cuda.matmul.allow_tf32, math.inf
    torch.backends.cuda.matmul.allow_tf32 = True
    for _ in range(4):
        start = time.perf_counter()
        x @ x
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * n ** 3 / best
