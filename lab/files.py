"""JSON files and checkpoints, whole or not there; weights, with an error that says what does not fit."""
import contextlib
import functools
import json
import os
import re
import zipfile
from pathlib import Path

import torch

from lab import UserError


def beside(path):
    """Where a file is written before it gets its name: another process may be writing the same one."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def write_text(path, text):
    """Written beside and renamed: whatever happens, the file is the old or the new one, whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    partial.write_text(text)
    os.replace(partial, path)


def write_json(path, content):
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def read_json(path):
    """The dict in a file; an empty one if the file is not there or damaged."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_jsonl(path):
    """The lines of a log, each a dict with its step. A damaged line is left out."""
    found = []
    for line in Path(path).read_text(errors="replace").splitlines() if Path(path).exists() else []:
        with contextlib.suppress(ValueError):
            content = json.loads(line)
            if isinstance(content, dict) and isinstance(content.get("step"), int):
                found.append(content)
    return found


# ======================================================================================== checkpoints

def save_checkpoint(content, path):
    """Written beside and renamed: whatever happens, `path` is the old or the new one, whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    try:
        torch.save(content, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:                           # torch's for a full disk is the latter
        partial.unlink(missing_ok=True)
        full = "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error)
        why = "is the disk full?" if full else str(error).splitlines()[0][:90]
        kept = "what was there before is untouched" if path.exists() else "nothing is there yet"
        raise UserError(f"{path}: cannot be written ({why}); {kept}; make room, or give another --run "
                        "folder") from None


def load_checkpoint(path):
    """torch.load(weights_only=True). UserError for a file with code in it, or a damaged one, or none."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or not all(isinstance(k, str) for k in saved):
            raise ValueError(f"holds {type(saved).__name__}, expected a dictionary of names")
        if "paper" in saved and zipfile.is_zipfile(path):              # torch.load does not look at the sums
            with zipfile.ZipFile(path) as parts:
                if damaged := parts.testzip():
                    raise ValueError(f"{damaged} in it is damaged")
        return saved
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train first, or give a --run or --weights that is "
                        "there") from None
    except Exception as error:
        why = refused(path, error)
        raise UserError(f"{path}: not a checkpoint that can be loaded safely ({why})") from None


def refused(path, error):
    """Why torch.load(weights_only=True) refused a file, and what can be done, in a few words."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(200).lstrip().lower().startswith((b"<!doctype", b"<html")):
            return "it is a web page, perhaps of a warning before the download; fetch the file itself"
    if str(path).lower().endswith(".safetensors"):
        return "in Python, torch.save(safetensors.torch.load_file(F), 'weights.pt') makes one that can"
    culprit = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:operand|class) ([\w.]+)", str(error))
    if culprit:
        name = culprit[1] or culprit[2]
        return (f"it holds {name}; where you trust it, load it with torch.load(F, weights_only=False) and "
                "keep its state_dict alone with torch.save(state, F)")
    if "central directory" in str(error) or not str(error):
        return "it is cut short, or something else; give another file, or train anew with --fresh"
    return str(error).splitlines()[0][:90]


def read_checkpoint(path, paper, convert=None):
    """A checkpoint of `paper` (its __file__).

    convert(saved): the authors' files in the form of ours; without it they are refused.
    """
    saved = load_checkpoint(path)
    if "paper" not in saved and convert is not None:
        return reads_checkpoint(lambda path: convert(saved))(path)
    check_paper(saved, path, Path(paper).stem)
    return saved


def no_memory(error):
    """Does this error tell of too little memory? (Libraries raise plain RuntimeErrors.)"""
    told = any(text in str(error) for text in ("can't allocate memory", "STATUS_ALLOC_FAILED"))
    return told or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def reads_checkpoint(read):
    """Decorator of functions of a path or a cfg: what a checkpoint lacks becomes a UserError."""
    @functools.wraps(read)
    def careful(*args):
        try:
            return read(*args)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if no_memory(error):
                raise
            first = args[0]
            path = first if isinstance(first, (str, Path)) else first.weights or first.run
            why = f"{type(error).__name__}: {(str(error) or '?').splitlines()[0][:90]}"
            raise UserError(f"{path}: not a checkpoint that fits here ({why}); "
                            "give another --run or --weights") from None
    return careful


def out_folder(cfg, out):
    """Where --infer writes: --out, or inferred/ in the run's folder. Made if need be."""
    folder = Path(out or Path(cfg.run) / "inferred")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_paper(saved, path, paper, parts=("step", "config", "nets")):
    """A UserError if a checkpoint of ours belongs to another paper, or if a part of it is not there."""
    if saved.get("paper") != paper:
        raise UserError(f"{path}: a checkpoint of {saved.get('paper', 'something else')}, not of {paper}; "
                        "give another --run or --weights")
    kinds = {"step": int, "seconds": (int, float)}
    lost = [part for part in parts if not isinstance(saved.get(part), kinds.get(part, dict))]
    lost += [f"{part} of {name}" for part in ("nets", "opts") if part in parts and part not in lost
             for name, state in saved[part].items() if not isinstance(state, dict)]
    if lost:
        raise UserError(f"{path}: an incomplete checkpoint, without {', '.join(lost)}; "
                        "give another --run or --weights")


def load_weights(net, state, source):
    """net.load_state_dict; the error lists what is missing, unexpected or of another shape. Returns net."""
    mine = net.state_dict()
    missing, unexpected = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
    shapes = [f"{k} {tuple(getattr(state[k], 'shape', '?'))} instead of {tuple(mine[k].shape)}"
              for k in mine if k in state and getattr(state[k], "shape", None) != mine[k].shape]

    def few(words):
        more = f" and {len(words) - 3} more" if len(words) > 3 else ""
        return (", ".join(words[:3]) + more) or "none"

    if missing or unexpected or shapes:
        raise UserError(f"{source}: does not fit this network; missing: {few(missing)}; "
                        f"unexpected: {few(unexpected)}; other shape: {few(shapes)}")
    net.load_state_dict(state)
    return net


def load_nets(nets, saved, path):
    """The weights of a checkpoint into networks {name: net}; it must have G. What it lacks stays as it is."""
    for name, net in nets.items():
        if name == "G" or name in saved["nets"]:
            load_weights(net, saved["nets"].get(name, {}), f"{path}, {name}")
