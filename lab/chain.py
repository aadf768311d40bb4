"""A chain of trainings in one folder: round0, round1 ... Each round builds on those before it."""
import re
import shutil
from pathlib import Path

from lab import UserError
from lab.files import check_paper, load_checkpoint, read_json, write_json
from lab.run import paper_of


def rounds_of(cfg):
    """The numbers of the rounds that cfg.run holds."""
    names = (path.parent.name[5:] for path in Path(cfg.run).glob("round*/last.pt"))
    return sorted(int(name) for name in names if name.isdecimal())


def checkpoint_of(cfg, r=None):
    """The file of round r (default: the last) of cfg.run, or cfg.weights. UserError if it is not there."""
    if cfg.weights:
        if r is not None:
            raise UserError(f"{cfg.weights} holds the generators of one round; --which {r} needs a training "
                            "of your own: leave --weights out, or give --run")
        return Path(cfg.weights)
    found = rounds_of(cfg)
    if not found:
        raise UserError(f"{cfg.run}: no such training; train first, or give --run")
    if r not in (None, *found):
        raise UserError(f"{cfg.run}: has no round {r}, only {', '.join(map(str, found))}")
    return Path(cfg.run) / f"round{found[-1] if r is None else r}" / "last.pt"


def folders_of_rounds(folder):
    """round0, round1 ..., and roundwarm, of a training."""
    return [p for p in folder.glob("round*") if p.is_dir() and re.fullmatch(r"round(\d+|warm)", p.name)]


def check_chain(cfg, chain, kept):
    """UserError where the rounds in cfg.run do not fit this chain. With cfg.fresh they are deleted.

    chain: the settings of each round. kept: names of settings of cfg that no round's own checkpoint tells;
    chain.json keeps them. A round may not be lengthened, because what comes after it builds on its end.
    """
    folder = Path(cfg.run)
    if cfg.fresh:
        for old in folders_of_rounds(folder):
            shutil.rmtree(old)
    before = read_json(folder / "chain.json") if folders_of_rounds(folder) else {}
    now = {name: getattr(cfg, name) for name in kept}
    other = [f"{k} (was {before[k]!r}, now {v!r})" for k, v in now.items() if before.get(k, v) != v]
    if other:
        raise UserError(f"{folder}: its recognisers were made with another {', '.join(other)}; give the same "
                        "settings, another --run folder, or --fresh")
    write_json(folder / "chain.json", now)
    for one in chain:
        last = Path(one.run) / "last.pt"
        if last.exists():
            saved = load_checkpoint(last)
            check_paper(saved, last, paper_of(cfg))
            was = saved["config"]["steps"]
            if was != one.steps:
                raise UserError(f"{one.run} was trained for {was} steps, now {one.steps}; give the same "
                                "--steps, another --run folder, or --fresh")
