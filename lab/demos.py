"""--demo: pictures within seconds, drawn by the small generators that come with the repository.

Their weights are notebooks/weights/<model>.pt, in half precision, trained on toy faces; `note` in a file says
by which command, on which machine. The people in the pictures are others than those trained on.
"""
import dataclasses
import re
from pathlib import Path

import torch

from lab import UserError, albums, say, toyfaces, toysets, views
from lab.files import load_checkpoint, read_json, save_checkpoint
from lab.images import draw_points, grid, write_gif
from lab.run import autocast

WEIGHTS = Path(__file__).parent.parent / "notebooks" / "weights"
MOST = 10 * 2 ** 20                                                    # bytes of a file of weights
OTHERS = 4000                                                          # a seed that no training uses


def use_shipped(cfg, args):
    """Let cfg.weights be the file that comes with the repository, unless there is a training of one's own.

    args: the command line, which may name one. Returns whether the file is used.
    """
    path = WEIGHTS / f"{Path(cfg.run).name}.pt"
    trained = any("ablation" not in last.parts for last in Path(cfg.run).rglob("last.pt"))
    if args.weights or args.run or not path.exists():
        return False
    if trained:
        say(f"your own training; for the generator that comes along give --weights {path}")
        return False
    cfg.weights = str(path)
    return True


def demo(paper, cfg):
    """Writes <cfg.run>/demo.png (GANnotation and DR-GAN also demo.gif) and prints where.

    UserError for --data: there is no telling what a generator of toy faces makes of photographs.
    """
    if cfg.data:
        raise UserError("--demo draws toy faces; leave --data out, or give your photographs to --infer")
    folder = Path(cfg.run)
    with torch.no_grad(), autocast(cfg):
        pictures = globals()[Path(paper.__file__).stem](paper, cfg)
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        if isinstance(picture, list):
            write_gif(picture, folder / name, 100)
        else:
            picture.save(folder / name)
        print(folder / name)


def generators(last):
    """The generators of the checkpoint `last` in half precision, and how they came about: a checkpoint."""
    saved, told = load_checkpoint(last), read_json(Path(last).with_name("config.json"))
    nets = {name: {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
            for name, state in saved["nets"].items() if name.startswith(("G", "F"))}
    note = {k: told.get(k) for k in ("command", "hardware", "commit", "torch")}
    note["command"] = re.sub(r" --(run|cache) \S+", "", note["command"] or "")      # nobody else's folders
    kept = {k: saved[k] for k in ("paper", "step", "seconds", "config", "about")}
    return kept | {"nets": nets, "note": note}


def ship(last, path):
    """Keep the generators of the checkpoint `last` at `path`, for --demo. Returns the bytes of the file.

    UserError if it is too large to come with the repository; what was there before stays.
    """
    new = Path(path).with_suffix(".new")
    save_checkpoint(generators(last), new)
    size = new.stat().st_size
    if size > MOST:
        new.unlink()
        raise UserError(f"{last}: {size / 2 ** 20:.1f} MiB in half precision, expected at most "
                        f"{MOST / 2 ** 20:.0f}; train a narrower generator")
    new.replace(path)
    return size


# ==================================================================================== the six papers

def stargan(paper, cfg):
    """People, each label painted into them, the truth below."""
    G, _, sets = paper.load(cfg)
    kinds = ["expressions" if exclusive else "attributes" for _, exclusive in sets]
    people = [paper.toy_set(cfg, kind, 6, paper.TEST_SEED + k) for k, kind in enumerate(kinds)]
    data = paper.Faces(cfg, people)
    return {"demo.png": paper.sample_grid(G, paper.fixed_batch(data))}


def gannotation(paper, cfg):
    """People turned and expressed as others' landmarks say, the truth below; and along a sweep, each frame
    drawn from the picture or from the frame before."""
    paint, _ = paper.load(cfg)
    S, n = cfg.image_size, 6
    faces = toysets.turning_heads(dataclasses.replace(cfg, frames=6), n, paper.TEST_SEED)
    images, points = toyfaces.render(faces, S), views.with_points(cfg.points, toyfaces.landmarks(faces, S))
    I, truth, targets = images[::6], images.unflatten(0, (n, 6)), points.unflatten(0, (n, 6))
    columns = [torch.stack([I, torch.ones_like(I)], 1).flatten(0, 1)]
    columns += [torch.stack([paint(I, targets[:, k]), truth[:, k]], 1).flatten(0, 1) for k in range(1, 6)]
    sheet = grid(columns, ["input", *(f"target {k}" for k in range(1, 6))])
    shapes, I = views.with_points(cfg.points, toysets.sweep(S, 24)).to(cfg.device), I[:3]
    shapes = shapes[:, None].expand(-1, len(I), -1, -1)
    chain = paper.progressive(paint, I, shapes)
    titles, frames = ("input", "landmarks", "direct", "progressive"), []
    for s, edited in zip(shapes, chain, strict=True):
        frames.append(grid([I, draw_points(s, S), paint(I, s), edited], titles))
    return {"demo.png": sheet, "demo.gif": frames}


def drgan(paper, cfg):
    """People drawn in every pose, the truth below; and their heads turning."""
    G, _ = paper.load(cfg)
    shown = paper.fixed_batch(albums.toy(cfg, 6, 2, paper.TEST_SEED, test=True), cfg)
    sheet, x = paper.sample_grid(G, shown, cfg), shown[0]
    y = paper.in_every_pose(G.eval(), G.encode(x)[0], cfg)
    frames = [grid([x, drawn], ["input", "drawn"], 2) for drawn in y.unbind(1)]
    return {"demo.png": sheet, "demo.gif": frames + frames[-2:0:-1]}


def iacyclegan(paper, cfg):
    """People photographed and drawn, and drawn and photographed; beside them the other of the pair."""
    (G_X, G_Y), one = paper.load(cfg)
    data = paper.make_data(dataclasses.replace(one, data="", people=6, seed=OTHERS))
    return {"demo.png": paper.sample_grid(G_X, G_Y, paper.fixed_batch(data))}


def pairedcyclegan(paper, cfg):
    """The make-up of references on bare faces, the truth below; last taken off again, and the truth."""
    nets, _ = paper.load(cfg)
    bare, made = paper.toy_albums(cfg, test=True)
    i, j = (torch.linspace(0, len(bare) - 1, n).round().long() for n in (4, 6))
    x, a, faces, L = bare.pictures(i), bare.anchors[i], bare.faces[i.to(cfg.device)], bare.images.shape[-1]
    blank = torch.ones_like(x[:1])
    columns = [torch.cat([blank, torch.stack([x, blank.expand_as(x)], 1).flatten(0, 1), blank, blank])]
    for k in j.split(1):
        y, b, reference = made.pictures(k), made.anchors[k], made.faces[k.to(cfg.device)]
        on = x + paper.painted(cfg, nets, x, a, y.expand_as(x), b.expand_as(a))
        truth = toyfaces.render(faces.take(reference[torch.zeros_like(i)], toyfaces.MAKEUP), L)
        off, without = y + paper.painted(cfg, nets, y, b), toyfaces.render(reference.no_makeup(), L)
        columns.append(torch.cat([y, torch.stack([on, truth], 1).flatten(0, 1), off, without]).clamp(-1, 1))
    titles = ["source", *(f"reference {k + 1}" for k in range(len(j)))]
    return {"demo.png": grid(columns, titles)}


def pix2pix_cyclegan(paper, cfg):
    """Translations beside the truth; CycleGAN's both ways, and back."""
    nets = paper.load(cfg)
    faces = toysets.portraits(cfg, 8, paper.TEST_SEED)
    X, Y = (toyfaces.images(cfg, faces, cfg.image_size, paint) for paint in toysets.painters(cfg))
    data = paper.Pictures(cfg, X, Y, True, faces)
    return {"demo.png": paper.sample_grid(cfg, paper.fixed_batch(data), *nets)}
