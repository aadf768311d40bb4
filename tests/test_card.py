"""What a GPU asks of the code, told on any machine: every paper on a pretended card, PyTorch's meta device,
which has shapes and no numbers.

A training step must not wait for the card: caught are copies that last until it has done all its work, and
whatever fetches a number from it or depends on one. And no command may mix what lies there with what lies on
the processor: operations refuse that, as a GPU's do.
"""

import contextlib
import dataclasses
import importlib
import traceback
from pathlib import Path

import pytest
import torch
import torchvision
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import drgan
import gannotation
import iacyclegan
import lab
import makers
import pairedcyclegan
import test_hostile
from conftest import PAPERS, blind_judges
from lab import authors, bench, toyfaces
from lab.run import Run
from test_numerics import MODELS

ROOT = Path(lab.__file__).parent.parent

WAITS = set()  # what was waited for, and in which lines
FETCHES = {  # calls that fetch numbers from the card, and an answer in their stead
    torch.Tensor.cpu: lambda t: torch.zeros_like(t, device="cpu"),
    torch.Tensor.tolist: lambda t: torch.zeros(t.shape).tolist(),
    torch.Tensor.item: lambda t: 0.5,
    torch.Tensor.__float__: lambda t: 0.5,
    torch.Tensor.__bool__: lambda t: True,
    torch.Tensor.__format__: lambda t, _: "0",
    torch.Tensor.masked_select: lambda t, mask: t.flatten(),
    torch.Tensor.nonzero: lambda t: t.new_zeros(1, t.dim(), dtype=torch.long),
    torch.bincount: lambda t, weights=None, minlength=0: t.new_zeros(minlength),
}
SENDS = torch.tensor, torch.as_tensor, torch.Tensor.new_tensor  # calls that send it numbers


def note(what):
    lines = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_stack(None)]
    ours = [(file, line) for file, line in lines if file.parent in (ROOT, ROOT / "lab", ROOT / "lab/claims")]
    WAITS.add(f"{what}: " + " < ".join(f"{file.name}:{line}" for file, line in ours))


def places(things, scalars=False):
    """Where the tensors among the things lie. (A scalar of the processor may meet what is on the card.)"""
    return {
        t.device.type
        for t in torch.utils._pytree.tree_leaves(things)
        if torch.is_tensor(t) and (scalars or t.dim())
    }


class Calls(TorchFunctionMode):
    """What is asked of PyTorch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, on_card = kwargs or {}, bool(args) and torch.is_tensor(args[0]) and args[0].is_meta
        if on_card and func in FETCHES:
            note(func.__name__)
            return FETCHES[func](*args, **kwargs)
        if on_card and func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else [args[1]]
            if any(torch.is_tensor(i) and i.dtype == torch.bool for i in index) and not isinstance(
                args[-1], (int, float)
            ):
                note("a mask as index")
                return args[0]
            if any(isinstance(i, (list, tuple)) for i in index):
                note("a list as index")
        out = func(*args, **kwargs)
        if func in SENDS and out.is_meta and not torch.is_tensor(args[func is torch.Tensor.new_tensor]):
            note("a tensor of the processor's numbers")
        return out


class Work(TorchDispatchMode):
    """What comes of it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        copies = name in ("_to_copy", "copy_")
        given = places((args, kwargs), copies)
        if (
            len(given) > 1
            and not copies
            and not (name in ("index", "index_put", "index_put_") and args[0].is_meta)
        ):  # an index may lie elsewhere
            raise RuntimeError(f"{name} mixes what lies on the card with what lies on the processor")
        out = func(*args, **kwargs)
        sent = copies and (kwargs.get("non_blocking") or args[2:] == (True,))
        if "check_errors" in name or (len(given | places(out, copies)) > 1 and not sent):
            note(name)
        return out


@pytest.fixture
def card(monkeypatch):
    """card(): from now on there is one, named meta, and a training has its first and its last step only."""
    test_hostile.quick(monkeypatch)

    def batches(run, batch_size, until=None):
        if run.begun is None:
            run.begun = 0.0
            WAITS.clear()  # until now things were made ready
        steps = [1] if until else []  # a phase of its own
        if until is None:
            cycle = bench.d_steps_per_G(run.cfg)
            steps = [1, run.cfg.steps // cycle * cycle]
        with Work():
            for step in steps:
                yield step, run.data.sample(batch_size)

    def put_in():
        adam = torch.optim.Adam
        blind_judges(monkeypatch, "meta")
        monkeypatch.setattr(
            toyfaces,
            "images",
            lambda cfg, faces, size, paint=None: torch.zeros(
                len(faces), 3, size, size, dtype=torch.uint8, device=cfg.device
            ),
        )
        monkeypatch.setattr(torch.optim, "Adam", lambda *args, fused: adam(*args))  # meta has no fused Adam
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # and no bfloat16
        monkeypatch.setattr(Run, "batches", batches)
        for paper in PAPERS:
            monkeypatch.setattr(importlib.import_module(paper), "resolve_device", lambda cfg: cfg)

    return put_in


def without_log(monkeypatch):
    for name in ("log", "sample"):
        monkeypatch.setattr(Run, name, lambda *_, **__: None)


@pytest.fixture
def waits(card, monkeypatch, tmp_path, cache):
    """waits(paper, ...) -> what the steps of its training would wait for."""
    monkeypatch.setattr(drgan.Balance, "note", lambda *_: None)  # looks now and then only, and says so

    def run(paper, **more):
        card()
        for name in ("logs", "samples"):
            monkeypatch.setattr(Run, name, lambda *_: False)
        module = importlib.import_module(paper)
        settings = (
            test_hostile.TINY[paper] | dict(cache=cache, run=str(tmp_path), device="meta", amp=False) | more
        )
        with Calls():
            getattr(module, "train_a_round", module.train)(module.Config(**settings))
        return "\n".join(sorted(WAITS))

    return run


MORE = [
    ("stargan", dict(toy="expressions")),
    ("gannotation", dict(adversarial="wgan-gp", d_steps=2)),
    ("drgan", dict(head="cvpr")),
    ("pix2pix_cyclegan", dict(model="cyclegan", lambda_idt=0.5)),
    ("pairedcyclegan", dict(noise=0.1, lambda_P=0.0)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("paper", "more"), MODELS + MORE, ids=str)
def test_no_step_waits_for_the_card(waits, paper, more):
    assert not waits(paper, **more)


@pytest.mark.slow
@pytest.mark.parametrize("region", ["eyes", "lips"])
def test_no_step_of_a_region_waits(waits, monkeypatch, region):
    monkeypatch.setattr(pairedcyclegan, "regions_of", lambda cfg: (region,))
    assert not waits("pairedcyclegan", regions="parts")


def test_tuning_a_recogniser_does_not_wait(card, tmp_path, cache):
    card()
    cfg = iacyclegan.Config(
        **test_hostile.TINY["iacyclegan"] | dict(cache=cache, run=str(tmp_path), device="meta", amp=False)
    )
    with Calls():
        data, phi = iacyclegan.make_data(cfg), [iacyclegan.Recogniser(cfg).to("meta") for _ in "XY"]
        WAITS.clear()
        with Work():
            iacyclegan.tune(cfg, phi, data, None)
    assert {what.split(":")[0] for what in WAITS} <= {"__format__"}  # of the loss that is told at the end


def test_views_of_photographs_do_not_wait(waits, tmp_path):
    makers.photo_folder(tmp_path / "photos")
    assert not waits("gannotation", data=str(tmp_path / "photos"))


def test_the_recognisers_of_photographs_do_not_wait(monkeypatch):
    for module in (authors, iacyclegan):
        monkeypatch.setattr(module, "load_checkpoint", lambda path: {})
        monkeypatch.setattr(module, "load_weights", lambda net, *_: net)
    vgg16 = torchvision.models.vgg16
    monkeypatch.setattr(torchvision.models, "vgg16", lambda weights=None, **given: vgg16(**given))
    with torch.device("meta"):
        nets = [
            gannotation.FaceFeatures(gannotation.Config(light_cnn="theirs")),
            gannotation.Perception(gannotation.Config()),
            iacyclegan.Recogniser(iacyclegan.Config(vgg_face="theirs")),
        ]
    WAITS.clear()
    with Calls(), Work():
        for net in nets:
            net(torch.empty(1, 3, 64, 64, device="meta"))
    assert not WAITS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize(("paper", "more"), MODELS, ids=str)
def test_what_is_on_the_card_stays_there(card, monkeypatch, tmp_path, cache, paper, more):
    module = importlib.import_module(paper)
    cfg = module.Config(
        **test_hostile.TINY[paper] | dict(cache=cache, run=str(tmp_path), device="cpu", amp=False) | more
    )
    module.train(cfg)
    card()
    cfg, file = (
        dataclasses.replace(cfg, device="meta", cache=str(tmp_path)),
        tmp_path / "face.png",
    )  # what meta trains is no use to other tests
    test_hostile.face().save(file)
    without_log(monkeypatch)
    monkeypatch.setattr(Run, "logs", lambda *_: True)
    monkeypatch.setattr(Run, "samples", lambda *_: True)
    given = {
        flag.strip("-").replace("-", "_"): about.get("default", False)
        for flag, about in module.INFER_FLAGS.items()
    }
    claims = importlib.import_module(f"lab.claims.{paper}")
    with Calls():
        getattr(module, "train_a_round", module.train)(dataclasses.replace(cfg, run=str(tmp_path / "card")))
    with Calls(), Work():
        claims.evaluate(dataclasses.replace(cfg))  # which writes into its cfg
        module.infer(
            dataclasses.replace(cfg),
            [str(file)],
            **given | ({"reference": [str(file)]} if "reference" in given else {}),
        )


def test_the_watch_sees_what_waits():
    x = torch.empty(4, 2, device="meta")
    for does in (
        lambda: x @ torch.ones(2),
        lambda: x + torch.ones(2),
        lambda: torch.ones(4)[x[:, 0].long()],
        lambda: x.index_select(0, torch.arange(2)),
    ):
        with pytest.raises(RuntimeError), Work():
            does()
    for does in (
        lambda: torch.ones(4).to("meta"),
        lambda: x[:, [1]],
        lambda: x[torch.arange(2)],
        lambda: x[x > 0],
        lambda: x.cpu(),
        lambda: x.sum().item(),
        lambda: bool(x.sum() > 0),
        lambda: x.new_tensor([1.0]),
        lambda: torch.as_tensor([1.0], device="meta"),
        lambda: torch.tensor(1.0).to("meta"),
        lambda: x.__setitem__(x > 0, x[0, 0]),
        lambda: torch.linalg.solve(x[:2], x[:2]),
    ):
        WAITS.clear()
        with Calls(), Work():
            does()
        assert WAITS
    WAITS.clear()
    with Calls(), Work():
        torch.ones(4).to("meta", non_blocking=True)
        x[:, 1:] + x[torch.arange(2).to("meta", non_blocking=True)].sum()
    assert not WAITS
