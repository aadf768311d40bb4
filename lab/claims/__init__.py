"""What papers claim, measured: reports of an evaluation, ablations over seeds, their tables and plots."""
import dataclasses
import functools
import math
import os
import re
import shutil
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import lab
from lab import UserError
from lab.files import check_paper, load_checkpoint, read_jsonl, save_checkpoint, write_json
from lab.images import figure
from lab.machine import command, commit, hardware
from lab.run import comparable, paper_of


def evaluation(cfg, rows, notes, **more):
    """The report of an evaluation, written to cfg.run/evaluation.json.

    rows: {name: {measure: number}}; notes: one line of text; more: further entries.
    """
    how = {"command": command(), "hardware": hardware(cfg), "commit": commit()}
    result = how | {"notes": notes, "rows": rows} | more
    write_json(Path(cfg.run) / "evaluation.json", result)
    return result


def table(result):
    """The rows of a report as aligned text, then its notes and verdict.

    A row that shares no measure with those above it begins a block with a heading of its own.
    """
    blocks, lines, width = [], [], max(map(len, result["rows"])) + 2
    for name, row in result["rows"].items():
        if not blocks or not any(row.keys() & above.keys() for above in blocks[-1].values()):
            blocks.append({})
        blocks[-1][name] = row
    for rows in blocks:
        columns = {c: max(10, len(c) + 2) for row in rows.values() for c in row}
        lines.append(" " * width + "".join(f"{c:>{w}}" for c, w in columns.items()))
        for name, row in rows.items():
            cells = (f"{row[c]:>{w}.4f}" if c in row else " " * w for c, w in columns.items())
            lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines + [f"{k}: {result[k]}" for k in ("notes", "summary", "verdict") if k in result])


# ========================================================================================= ablations

def ablation_folder(cfg):
    """Where an ablation's trainings go: cfg.run/ablation, emptied with cfg.fresh.

    UserError for real data, which have no known truth, and for weights to begin with.
    """
    if cfg.data:
        raise UserError("--ablate measures against the truth, which only toy faces have; leave --data out")
    if cfg.weights:
        raise UserError("--ablate trains from scratch; leave --weights out")
    folder = Path(cfg.run) / "ablation"
    if cfg.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    return folder


SEEDS = (0, 1, 2)


def trainings(base, folder, changes):
    """{(name, seed): Config} of an ablation: base, changed by changes[name], in a folder of its own."""
    runs = {name: str(folder / re.sub("[^a-z0-9]+", "-", name.lower())) for name in changes}
    return {(name, seed): dataclasses.replace(base, seed=seed, run=f"{runs[name]}-{seed}", **change)
            for seed in SEEDS for name, change in changes.items()}


def steps_of(path, cfg):
    """For how many steps the run whose checkpoint is `path`, of the same paper as cfg, was started."""
    saved = load_checkpoint(path)
    check_paper(saved, path, paper_of(cfg))
    return saved["config"]["steps"]


def branch(trunk, cfg):
    """Let the run cfg begin where the stopped run `trunk` (a cfg) stands, under cfg's own settings.

    A run that already began is left alone. UserError if the trunk stands elsewhere.
    """
    if not (Path(cfg.run) / "last.pt").exists():
        saved = load_checkpoint(Path(trunk.run) / "last.pt")
        if saved["step"] != trunk.stop_after:
            raise UserError(f"{trunk.run} stands at step {saved['step']}, expected {trunk.stop_after}; "
                            "add --fresh to start over")
        save_checkpoint(saved | {"config": comparable(cfg), "seconds": 0.}, Path(cfg.run) / "last.pt")


def in_parallel(function, jobs, device):
    """[function(job) for job in jobs], in processes of one thread.

    On a CPU one for each core. On a GPU too, as long as 4 GiB of its memory are free for each: small networks
    leave it waiting for the processor most of the time. Fewer where they would take as many turns.
    """
    workers = torch.multiprocessing.cpu_count()
    if device != "cpu":
        workers = max(1, min(workers, torch.cuda.mem_get_info(device)[0] // 2 ** 32))
    if min(workers, len(jobs)) < 2:
        return [function(job) for job in jobs]
    workers = math.ceil(len(jobs) / math.ceil(len(jobs) / workers))
    quiet, spawn = not sys.stderr.isatty(), torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _alone_on_a_core) as pool:
        try:
            results = pool.map(functools.partial(_one, function), jobs)
            return list(tqdm(results, "runs", len(jobs), disable=quiet))
        except BrokenProcessPool:
            raise UserError("a process of the ablation ended; is there too little memory? The same command "
                            "goes on. (A script needs if __name__ == '__main__' around it.)") from None
        except (KeyboardInterrupt, SystemExit):                        # told to stop: so are the processes
            for process in torch.multiprocessing.active_children():
                process.terminate()
            raise


def _one(function, job):
    """function(job); a training that was told to stop ends its process, which would begin another."""
    try:
        return function(job)
    except (KeyboardInterrupt, SystemExit):
        os._exit(130)


def _alone_on_a_core():
    torch.set_num_threads(1)
    lab.quiet = True


class Ablation:
    """The trainings of an ablation, {(name, seed): cfg}, and what comes of them: rows and claims over the
    seeds.

    run(function, device): results[name, seed] = function(cfg), a dict of numbers. Then row and claim, and
    write(cfg), the report. checkpoints: where in a run's folder they are; those of another length are
    refused.
    """

    def __init__(self, jobs, checkpoints="last.pt"):
        self.jobs, self.seeds = jobs, tuple(dict.fromkeys(seed for _, seed in jobs))
        self.rows, self.claims, self.criteria = {}, [], {}
        for one in jobs.values():
            for last in Path(one.run).glob(checkpoints):
                if (steps := steps_of(last, one)) != one.steps:
                    raise UserError(f"{one.run} was trained for {steps} steps, now {one.steps}; "
                                    "give the same --steps, another --run folder, or --fresh")

    def run(self, function, device):
        results = in_parallel(function, list(self.jobs.values()), device)
        self.results = dict(zip(self.jobs, results, strict=True))

    def values(self, name, key):
        """One number a seed."""
        return np.array([self.results[name, seed][key] for seed in self.seeds])

    def row(self, title, **columns):
        """columns: arrays of one number a seed, shown as mean and standard deviation."""
        for what, f in (("mean", np.mean), ("std", lambda v: np.std(v, ddof=1))):
            self.rows[f"{title}, {what}"] = {column: float(f(v)) for column, v in columns.items()}

    def claim(self, part, what, without, with_, percent=False, guards=(), **criteria):
        """without, with_: one number a seed; criteria: met or not, named by what they say.

        reproduced: all are met; partly: some. guards: names of those that alone reproduce nothing, as that
        nothing else is lost.
        """
        def text(v):
            mean, std = v.mean(), v.std(ddof=1)
            return f"{100 * mean:.1f} ± {100 * std:.1f} %" if percent else f"{mean:.4f} ± {std:.4f}"

        self.criteria |= {f"{part}: {k.replace('_', ' ')}": bool(v) for k, v in criteria.items()}
        some = any(v for k, v in criteria.items() if k not in guards)
        verdict = ("reproduced" if all(criteria.values()) else "partly reproduced" if some else
                   "not reproduced")
        self.claims.append({"part": part, "what": what, "without": text(without), "with": text(with_),
                            "seeds without": without.tolist(), "seeds with": with_.tolist(),
                            "verdict": verdict})

    def write(self, cfg):
        """Prints the report, and writes ablation.json or ablation_<part>.json, with a picture beside it.

        Returns its path.
        """
        part = getattr(cfg, "part", "all")
        path = Path(cfg.run) / ("ablation.json" if part == "all" else f"ablation_{part}.json")
        verdicts = {c["verdict"] for c in self.claims}
        logs = {log.read_bytes(): log                                  # a round that chains share counts once
                for one in self.jobs.values() for log in Path(one.run).rglob("metrics.jsonl")}
        result = {"command": command(), "commit": commit(), "hardware": hardware(cfg),
                  "torch": torch.__version__, "seeds": self.seeds,
                  "steps": max(one.steps for one in self.jobs.values()),
                  "seconds": sum(read_jsonl(log)[-1]["seconds"] for log in logs.values()),
                  "rows": self.rows, "criteria": self.criteria,
                  "verdict": verdicts.pop() if len(verdicts) == 1 else
                             "partly reproduced" if verdicts else "rows without a claim",
                  "claims": self.claims,
                  "runs": {f"{name}, seed {seed}": values for (name, seed), values in self.results.items()}}
        write_json(path, result)
        if self.claims:
            draw_claims(self.claims, path.with_suffix(".png"))
        print(table(result))
        print("; ".join(f"{k}: {'yes' if v else 'no'}" for k, v in self.criteria.items()))
        return path


def draw_claims(claims, path):
    """One panel a claim: without and with, a dot for each seed, joined."""
    sheet = figure(2.6 * len(claims), 3)
    for k, one in enumerate(claims):
        ax, without, with_ = sheet.add_subplot(1, len(claims), k + 1), one["seeds without"], one["seeds with"]
        for pair in zip(without, with_, strict=True):
            ax.plot([0, 1], pair, color="tab:blue", marker="o", lw=1)
        ax.set(xticks=[0, 1], xticklabels=["without", "with"], xlim=(-.3, 1.3),
               ylim=(min(0, *without, *with_), None))
        ax.set_title(f"{one['part']}: " + textwrap.fill(one["what"], 34), fontsize=7)
    sheet.savefig(path, dpi=110)
