import importlib
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
if "PYTEST_XDIST_WORKER" in os.environ:                                # a worker on every core: one thread each, in what it starts, too
    os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def blind_judges(monkeypatch, device="cpu"):
    """Judges that know nothing, in place of trained ones."""
    import toyfaces
    monkeypatch.setattr(toyfaces, "judge", lambda kind, *_: (toyfaces.Judge(kind).eval().requires_grad_(False).to(device), 1.))


def in_turn(monkeypatch):
    """The trainings of an ablation one after the other in this process; what they are told and what they return still has to travel."""
    import common

    def travelled(thing):
        return pickle.loads(pickle.dumps(thing))
    monkeypatch.setattr(common, "in_parallel", lambda function, jobs, _: [travelled(function(travelled(job))) for job in jobs])


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
    """One folder for drawn faces and judges of the whole test session."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def call(monkeypatch, capsys, tmp_path, cache):
    """call("--train", ...) -> (exit code, stdout, stderr) of a paper's command line, in this process, in an empty folder."""
    import common
    import gannotation
    monkeypatch.chdir(tmp_path)
    blind_judges(monkeypatch)
    monkeypatch.setattr(gannotation, "CHAINS", 32)

    def run(*argv, paper="gannotation"):
        monkeypatch.setattr(sys, "argv", [f"{paper}.py", *argv])
        importlib.import_module(paper)
        with pytest.raises(SystemExit) as stop:
            common.cli(paper)
        out = capsys.readouterr()
        return stop.value.code or 0, out.out, out.err
    run.cache = ["--cache", cache]
    return run


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))])
def device(request):
    return request.param
