"""--demo, --infer without a training of one's own, and the weights that come with the repository."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from lab import UserError, albums, demos, toyfaces
from lab.files import load_checkpoint, save_checkpoint, write_json
from lab.images import to_uint8
from lab.run import comparable

MODELS = {
    "stargan": "stargan",
    "gannotation": "gannotation",
    "drgan": "drgan",
    "iacyclegan": "iacyclegan",
    "pairedcyclegan": "pairedcyclegan",
    "pix2pix": "pix2pix_cyclegan",
    "cyclegan": "pix2pix_cyclegan",
}
SHIPPED = sorted(demos.WEIGHTS.glob("*.pt"))
README = (demos.WEIGHTS.parent.parent / "README.md").read_text()
INFER = [line for line in re.findall(r"python (\w+\.py --infer .+)", README) if "--weights" not in line]


def untrained(model, path, **more):
    """A checkpoint of a tiny training that never began."""
    paper = importlib.import_module(MODELS[model])
    settings = importlib.import_module(f"test_{MODELS[model]}").TINY | {"device": "cpu"} | more
    cfg = paper.Config(**settings | ({"model": model} if model in ("pix2pix", "cyclegan") else {}))
    about, names = None, {"G": 0, "D": 1}
    if model == "stargan":
        nets, about = (
            paper.build(cfg, [5]),
            [[["Black_Hair", "Blond_Hair", "Brown_Hair", "Beard", "Young"], False]],
        )
    elif model == "drgan":
        nets, about = paper.build(cfg, 3, 9), {"people": ["a"], "poses": [str(yaw) for yaw in albums.YAWS]}
    elif model in ("pix2pix", "cyclegan"):
        names = paper.build(cfg)
        nets = names.values()
    else:
        nets = paper.build(cfg)
    if model == "iacyclegan":
        names = ("G_X", "G_Y", "D_X", "D_Y")
    if model == "pairedcyclegan":
        names, about = ("G", "F", "D_X", "D_Y", "D_S"), {"toy": True, "anchors": [[0.5, 0.5]]}
    states = {name: net.state_dict() for name, net in zip(names, nets, strict=False)}
    content = {"paper": MODELS[model], "step": cfg.steps, "seconds": 1.0, "config": comparable(cfg)}
    save_checkpoint(content | {"about": about, "nets": states}, path)
    command = f"python {MODELS[model]}.py --train --run {path.parent} --cache /somewhere --seed 3"
    write_json(path.parent / "config.json", {"command": command, "hardware": "a toaster"})
    return path


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """In place of notebooks/weights."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(demos, "WEIGHTS", folder)
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_demo_draws_held_out_faces_with_the_weights_that_come_along(call, tmp_path, shelf, model):
    demos.ship(untrained(model, tmp_path / "last.pt"), shelf / f"{model}.pt")
    flags = ["--model", model] if model in ("pix2pix", "cyclegan") else []
    code, out, err = call("--demo", *flags, *call.cache, paper=MODELS[model])
    assert code == 0, err
    assert "which comes with the repository" in out + err
    sheet = Image.open(tmp_path / "runs" / model / "demo.png")
    assert min(sheet.size) > 100 and str(Path("runs") / model / "demo.png") in out
    animated = model in ("gannotation", "drgan")
    assert (tmp_path / "runs" / model / "demo.gif").exists() == animated
    if model == "gannotation":  # (an untrained DR-GAN draws every frame alike, which a GIF keeps as one)
        assert Image.open(tmp_path / "runs" / model / "demo.gif").n_frames > 10


def test_a_training_of_ones_own_goes_before(call, tmp_path, shelf):
    demos.ship(untrained("stargan", tmp_path / "last.pt"), shelf / "stargan.pt")
    (tmp_path / "runs/stargan").mkdir(parents=True)
    untrained("stargan", tmp_path / "runs/stargan/last.pt")
    for flags in ([], ["--run", "runs/stargan"], ["--weights", "last.pt"]):
        code, out, err = call("--demo", *flags, *call.cache, paper="stargan")
        assert code == 0 and "comes with" not in out + err


def test_infer_uses_them_and_says_so(call, tmp_path, shelf):
    demos.ship(untrained("stargan", tmp_path / "last.pt"), shelf / "stargan.pt")
    Image.new("RGB", (50, 40), "pink").save("me.png")
    flags = ["--infer", "me.png", "--source", "Young", *call.cache]
    code, out, err = call(*flags, paper="stargan")
    assert code == 0 and "which comes with the repository" in out + err, err
    assert (tmp_path / "runs/stargan/inferred/me.png").exists()
    code, _, err = call(*flags, "--run", "elsewhere", paper="stargan")
    assert code == 2 and "no such checkpoint" in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("line", [re.split(" {2,}", line)[0] for line in INFER])
def test_what_the_readme_infers_can_be_inferred_without_a_training(call, line):
    script, *argv = line.split()
    face = toyfaces.sample(1, 0, pose=0.0)
    rows = "".join(f"{x + 1:.2f} {y + 1:.2f}\n" for x, y in toyfaces.landmarks(face, 128)[0].tolist())
    for path in (Path(word) for word in argv if "." in word and not word.startswith(".")):
        if path.suffix != ".pts":
            array = to_uint8(toyfaces.render(face, 128))[0].permute(1, 2, 0).numpy()
            Image.fromarray(array).save(path)
        path.with_suffix(".pts").write_text(f"version: 1\nn_points: 68\n{{\n{rows}}}\n")
    code, out, err = call(*argv, *call.cache, paper=script.removesuffix(".py"))
    assert code == 0 and "which comes with the repository" in out, err


def test_without_weights_it_says_what_to_do(call, shelf):
    code, _, err = call("--demo", *call.cache)
    assert code == 2 and "no such checkpoint; train first" in err and err.count("\n") == 1


def test_demo_wants_no_photographs(call, tmp_path):
    code, _, err = call("--demo", "--data", str(tmp_path), *call.cache)
    assert code == 2 and "leave --data out" in err and err.count("\n") == 1


def test_what_is_shipped_is_small_and_tells_where_it_comes_from(tmp_path, shelf):
    path = shelf / "stargan.pt"
    last = untrained("stargan", tmp_path / "last.pt")
    size = demos.ship(last, path)
    saved, before = load_checkpoint(path), load_checkpoint(last)
    assert set(saved["nets"]) == {"G"} and size == path.stat().st_size
    for name, value in saved["nets"]["G"].items():
        assert value.dtype == torch.float16 and torch.allclose(
            value.float(), before["nets"]["G"][name], atol=1e-3
        )
    assert saved["note"]["command"] == "python stargan.py --train --seed 3"
    assert saved["note"]["hardware"] == "a toaster"


def test_what_is_too_large_is_refused_and_the_old_one_stays(tmp_path, shelf, monkeypatch):
    path, last = shelf / "stargan.pt", untrained("stargan", tmp_path / "last.pt")
    demos.ship(last, path)
    before = path.read_bytes()
    monkeypatch.setattr(demos, "MOST", 100)
    with pytest.raises(UserError, match="expected at most"):
        demos.ship(last, path)
    assert path.read_bytes() == before and len(list(shelf.iterdir())) == 1


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_weights_in_the_repository_are_small_and_say_by_which_command(path):
    saved = load_checkpoint(path)
    assert path.stat().st_size <= demos.MOST and saved["paper"] == MODELS[path.stem]
    assert saved["note"]["command"].startswith("python ") and saved["note"]["hardware"]
    step, steps = saved["step"], saved["config"]["steps"]
    assert step == steps or f"stopped after {step} of {steps} steps" in saved["note"]["command"]
