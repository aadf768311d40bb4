"""This machine: its device, its precision, its name; the command and the commit of a report."""
import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from lab import UserError
from lab.files import read_json


def resolve_device(cfg):
    """Fill in what 'auto' means on this machine. Returns cfg. UserError for a device that is not there."""
    if cfg.device == "auto":
        cfg.device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", cfg.device):
        raise UserError(f"--device {cfg.device}: expected cpu, cuda or cuda:N")
    cuda = cfg.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise UserError(f"--device {cfg.device}: no CUDA device here; "
                        "leave --device out to use the processor")
    try:
        torch.empty(1, device=cfg.device)
        if cfg.device.startswith("cuda:"):
            torch.cuda.set_device(cfg.device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"--device {cfg.device}: {why}; expected cpu, cuda or cuda:N") from None
    # a run keeps the precision it began with
    if cfg.amp is None and not cfg.fresh and cfg.run:
        configs = sorted(Path(cfg.run).glob("**/config.json"),         # its own before those of its ablation
                         key=lambda path: ("ablation" in path.parts, len(path.parts)))
        cfg.amp = read_json(configs[0]).get("amp") if configs else None
    if cfg.amp is None:
        cfg.amp = cfg.AMP_ON_CUDA if cuda else processor_has_bfloat16()
    torch.backends.cudnn.benchmark = cuda
    return cfg


def processor_has_bfloat16():
    """Does this processor multiply bfloat16 matrices in hardware? Where nobody can tell: no."""
    with contextlib.suppress(OSError):
        return re.search(r"\b(avx512_bf16|amx_bf16)\b", Path("/proc/cpuinfo").read_text()) is not None
    return False


def has_bfloat16(cfg):
    """Does the device of cfg multiply bfloat16 in hardware? Every GPU that is meant here does."""
    return cfg.device != "cpu" or processor_has_bfloat16()


def hardware(cfg):
    """The machine, in words, for reports."""
    if cfg.device.startswith("cuda"):
        return torch.cuda.get_device_name(cfg.device)
    info = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    name = re.search(r"model name\s*:\s*(.*)", info)
    return f"{os.cpu_count()} cores, {name[1].strip() if name else 'CPU'}"


def command():
    return " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def commit():
    """The project's git commit, for reports; '+' marks uncommitted changes of Python files."""
    here, quiet = Path(__file__).parent, dict(capture_output=True, text=True)
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, check=True, **quiet).stdout
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ":/*.py"], cwd=here).returncode
        return head.strip() + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
