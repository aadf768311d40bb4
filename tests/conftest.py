import importlib
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
# a worker on every core: one thread each, in what it starts, too
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))

PAPERS = "stargan", "gannotation", "drgan", "iacyclegan", "pairedcyclegan", "pix2pix_cyclegan"


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "slow: minutes; run with -m slow. No equation, loader, resume or error is among them"
    )


def pytest_collection_modifyitems(config, items):
    """Slow tests run only where -m asks for them, or where they are named."""
    named = any("::" in arg for arg in config.args)
    if not config.option.markexpr and not named:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def blind_judges(monkeypatch, device=None):
    """Judges that know nothing, in place of trained ones; on `device`, or where they are asked for."""
    from lab import judges

    def blind(kind, size, seed, on="cpu", *_):
        return judges.Judge(kind).eval().requires_grad_(False).to(device or on), 1.0

    monkeypatch.setattr(judges, "judge", blind)


def in_turn(monkeypatch):
    """An ablation's trainings, one by one in this process; what they are told and return still travels."""
    from lab import claims

    def travelled(thing):
        return pickle.loads(pickle.dumps(thing))

    monkeypatch.setattr(
        claims, "in_parallel", lambda function, jobs, _: [travelled(function(travelled(job))) for job in jobs]
    )


def grads(*nets):
    """How much gradient the networks have in all."""
    return sum(p.grad.abs().sum().item() for net in nets for p in net.parameters() if p.grad is not None)


def tiny_flags(settings):
    """The settings of a test as flags of a command line."""
    flags = []
    for name, value in settings.items():
        name = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(name if value else name.replace("--", "--no-"))
        else:
            flags += [name, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return flags


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One folder for drawn faces and judges of all tests."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def call(monkeypatch, capsys, tmp_path, cache):
    """call("--train", ...) -> (exit code, stdout, stderr) of a paper's command line, in this process, in an
    empty folder."""
    from lab.claims import gannotation
    from lab.cli import cli

    monkeypatch.chdir(tmp_path)
    blind_judges(monkeypatch)
    monkeypatch.setattr(gannotation, "CHAINS", 32)

    def run(*argv, paper="gannotation"):
        monkeypatch.setattr(sys, "argv", [f"{paper}.py", *argv])
        importlib.import_module(paper)
        with pytest.raises(SystemExit) as stop:
            cli(paper)
        out = capsys.readouterr()
        return stop.value.code or 0, out.out, out.err

    run.cache = ["--cache", cache]
    return run


CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    return request.param
