"""Claims of pix2pix and CycleGAN: distance of translations to the truth, what a segmenter reads in them."""
import dataclasses
import math
from pathlib import Path

import torch

import pix2pix_cyclegan as paper
from common import n_parameters
from lab import UserError, claims, judges, toyfaces, toysets
from lab.images import L1, grid, rgb_to_lab, ssim


# ========================================================================================= measures

def region_scores(shown, truth):
    """What the papers' FCN-scores count: per-pixel accuracy, per-class accuracy, class IoU.

    shown, truth: int64 of one shape, indices into REGIONS. Means over the classes that occur in truth.
    """
    n = len(toyfaces.REGIONS)
    table = torch.bincount((n * truth + shown).flatten(), minlength=n * n).reshape(n, n).double()
    right, true, said = table.diagonal(), table.sum(1), table.sum(0)   # rows: truth
    occurs = true > 0
    return {"pixel": (right.sum() / true.sum()).item(), "class": (right / true)[occurs].mean().item(),
            "IoU": (right / (true + said - right))[occurs].mean().item()}


def histograms(x, bins=50):
    """Distribution of the pixels of all pictures over L, over a and over b: [3, bins], each summing to 1."""
    channels = rgb_to_lab(x).transpose(0, 1).flatten(1).cpu()
    ranges = (0, 100), (-110, 110), (-110, 110)
    return torch.stack([torch.histc(c.clamp(*r), bins, *r) / c.numel()
                        for c, r in zip(channels, ranges, strict=True)])


def sharpness(x):
    """Mean length of the gradient over the pixels: blur makes it small."""
    dx, dy = x[:, :, :-1, 1:] - x[:, :, :-1, :-1], x[:, :, 1:, :-1] - x[:, :, :-1, :-1]
    return (dx ** 2 + dy ** 2).sqrt().mean().item()


def segmenter(cfg):
    """(a network that reads regions in faces, its error on true ones)."""
    return judges.judge("regions", cfg.image_size, 2, cfg.device, cfg.cache)


def read_regions(cfg, paint, faces, pictures):
    """region_scores of what was painted of `faces`. {} for dots and pencil, in which no regions are read.

    In faces a segmenter reads them, trained on true faces; in maps of regions the nearest colour tells. Two
    regions of a person may have one colour, so none are read in maps of these.
    """
    if paint in (toysets.dots, toysets.pencil, toyfaces.colour_map):
        return {}
    if paint is toyfaces.region_map:
        colours = torch.tensor(toyfaces.REGION_RGB, device=pictures.device) / 127.5 - 1
        shown = [torch.cdist(p.permute(0, 2, 3, 1), colours).argmin(3) for p in pictures.split(32)]
    else:
        judge, _ = segmenter(cfg)
        shown = [judge(p).argmax(1) for p in pictures.split(32)]
    if paint in (toysets.bare, toysets.spectacled):
        faces = toyfaces.with_attribute(faces, "Eyeglasses", float(paint is toysets.spectacled))
    return region_scores(torch.cat(shown), toyfaces.regions(faces, cfg.image_size))


@torch.no_grad()
def measure(cfg, nets, data):
    """Measures on held-out pictures, {row: {measure: number}}, see `evaluate`.

    nets: [G] or [G, F]. Rows: G, F; in pairs "G: the truth", and with CycleGAN "G: copy the input".
    """
    x, y, _ = paper.fixed_batch(data, 512)
    paint_x, paint_y = (None, None) if cfg.data else toysets.painters(cfg)
    rows = one_way(cfg, "G", nets[0], x, y, data, paint_y, nets[1:])
    if len(nets) == 2:
        rows |= one_way(cfg, "F", nets[1], y, x, data, paint_x, nets[:1])
    return rows


def one_way(cfg, name, net, x, truth, data, paint, back):
    """Rows of `measure` for one generator. truth: of x, if data.paired; back: [the other one], or []."""
    y = paper.in_batches(cfg, net, x, seed=cfg.seed)
    shown = {name: y}
    if data.paired:
        shown |= {f"{name}: the truth": truth} | ({f"{name}: copy the input": x} if back else {})
    true_histograms, true_sharpness, rows = histograms(truth), max(sharpness(truth), 1e-6), {}
    for row, pictures in shown.items():
        values = {}
        if data.paired:
            values = {"L1": L1(pictures, truth).mean().item(), "SSIM": ssim(pictures, truth).mean().item()}
        shares = torch.minimum(histograms(pictures), true_histograms).sum(1).tolist()
        values |= {f"hist {channel}": share for channel, share in zip("Lab", shares, strict=True)}
        values["sharpness"] = sharpness(pictures) / true_sharpness
        if data.faces is not None:
            values |= read_regions(cfg, paint, data.faces, pictures)
        rows[row] = values
    if back:
        g = torch.Generator().manual_seed(0)
        noisy = (y + .05 * torch.randn(y.shape, generator=g).to(y)).clamp(-1, 1)
        rows[name]["back"] = L1(paper.in_batches(cfg, back[0], y), x).mean().item()
        rows[name]["back from noise"] = L1(paper.in_batches(cfg, back[0], noisy), x).mean().item()
    return rows


def evaluate(cfg):
    """Distance to the truth, and what can be read in the results, on held-out pictures.

    L1 (0 ... 1), SSIM: to the true counterpart (pairs and toy faces; CycleGAN's training never saw it).
    pixel, class, IoU: the FCN-score of P 4.1 with our judge: regions that it reads in generated faces,
    against the true regions. hist: intersection of the distributions of Lab values with the truth's (P 4.2).
    sharpness: gradient length over the truth's. back: L1 of F(G(x)) to x; back from noise: the same when
    noise of 0.025 was added to G(x), which tells how much of x is hidden there. Writes evaluation.json.
    """
    nets = paper.load(cfg)
    data = paper.make_data(cfg, test=True)
    rows = measure(cfg, nets, data)
    notes = (f"{len(data.X)} and {len(data.Y)} held-out pictures (at most 512 measured); "
             f"G {n_parameters(nets[0]):,} parameters")
    if any("IoU" in row for row in rows.values()):
        notes += f"; the segmenter misreads {segmenter(cfg)[1]:.3f} of the pixels of true faces"
    return claims.evaluation(cfg, rows, notes)


# ========================================================================================= ablation

# The rows of the papers' tables, as what is changed in the recipe
LOSSES = {"L1": dict(lambda_gan=0.), "GAN": dict(conditional=False, lambda_L1=0.), "cGAN": dict(lambda_L1=0.),
          "L1+GAN": dict(conditional=False), "L1+cGAN": {}}
CYCLES = {"cycle": dict(lambda_gan=0.), "GAN": dict(lambda_cyc_x=0., lambda_cyc_y=0.),
          "GAN+forward": dict(lambda_cyc_y=0.), "GAN+backward": dict(lambda_cyc_x=0.), "GAN+cycle": {}}
# P's tables, for comparison: per-pixel accuracy, per-class accuracy, IoU of the FCN-score on Cityscapes.
# None: could not be confirmed. Table 2 was trained with batches of 10. Of C's Tables 4 and 5 we could confirm
# no digit, only this: without the GAN loss, and with the backward cycle alone, results do not look like the
# domain; without cycles, and with the forward cycle alone, they collapse.
PAPER = {"the true pictures": (.80, .26, .21), "L1": (.42, .15, .11), "GAN": (.22, .05, .01),
         "cGAN": (.57, .22, .16), "L1+GAN": (.64, .20, .15), "L1+cGAN": (.66, .23, .17),
         "U-Net, L1": (.48, None, .13), "U-Net, L1+cGAN": (.55, None, .14),
         "encoder-decoder, L1": (.35, None, .08), "encoder-decoder, L1+cGAN": (.29, None, .05),
         "patch 1": (.39, None, .10), "patch 16": (.65, None, .17), "patch 70": (.66, None, .17),
         "patch 286": (.42, None, .11)}
SCORES = "pixel", "class", "IoU"


def same_share(patch, image_size):
    """The patch of P's Table 3 that is as large a part of 256 px as `patch` is of image_size, within a tenth.

    None if there is none.
    """
    if patch == 1:
        return 1
    return next((p for p in (16, 70, 286) if abs(patch / image_size / (p / 256) - 1) < .1), None)


def pix2pix(loss, patch, skips=True, labels=False):
    """(name of a training, what is changed for it). Rows of several tables may be one training."""
    change = dict(model="pix2pix", patch=patch, skips=skips, **LOSSES[loss])
    change |= dict(toy="regions", direction="BtoA") if labels else {}
    return f"pix2pix-{loss}-{patch}" + "-no-skips" * (not skips) + "-labels" * labels, change


def cyclegan(loss, patch, lambda_idt=0.):
    """As `pix2pix`."""
    change = dict(model="cyclegan", lambda_idt=lambda_idt, **CYCLES[loss])
    return f"cyclegan-{loss}-{patch}" + "-identity" * (lambda_idt > 0), change


def tables(cfg):
    """The rows of each part of cfg.model: {part: {row: (name of the training, what is changed for it)}}."""
    if cfg.model == "cyclegan":
        identity = cyclegan("GAN+cycle", cfg.patch, .5 * cfg.lambda_cyc_x)     # C 5.2: for colours
        cycles = {loss: cyclegan(loss, cfg.patch) for loss in CYCLES}
        return {"cycle": cycles | {"GAN+cycle+identity": identity}}
    few = [p for p in paper.patches(cfg) if p <= 1.2 * cfg.image_size]  # beyond the picture nothing is seen
    generators = {"U-Net": True, "encoder-decoder": False}
    return {"losses": {loss: pix2pix(loss, cfg.patch) for loss in LOSSES},
            "generator": {f"{name}, {loss}": pix2pix(loss, cfg.patch, skips)
                          for name, skips in generators.items() for loss in ("L1", "L1+cGAN")},
            "patch": {f"patch {patch}": pix2pix("L1+cGAN", patch) for patch in few},
            "labels": {loss: pix2pix(loss, cfg.patch, labels=True) for loss in ("L1", "cGAN", "L1+cGAN")}}


def ablation_run(cfg):
    """One training of the ablation and its measures (in a process of its own on a CPU).

    Those of G, "truth ..." of the true pictures, and for CycleGAN "F ..." and "both L1".
    """
    nets = paper.train(cfg)
    rows = measure(cfg, nets, paper.make_data(cfg, test=True))
    out = rows["G"] | {f"truth {k}": v for k, v in rows["G: the truth"].items()}
    if "F" in rows:
        out |= {f"F {k}": v for k, v in rows["F"].items()}
        out["both L1"] = (rows["G"]["L1"] + rows["F"]["L1"]) / 2
    return out


def ablate(cfg):
    """The tables of cfg.model's paper, on toy faces, three seeds; --part picks one. Bars stood before runs.

    losses     P Table 1. L1+cGAN: a higher IoU than L1 alone and than cGAN alone in every seed; L1 alone is
               less sharp in every seed; the GAN that does not see x reaches at most half the IoU of cGAN.
    generator  P Table 2. With L1+cGAN the U-Net has a higher IoU than the encoder-decoder in every seed.
    patch      P Table 3. The recipe's patch has at least the mean IoU of 1 x 1 and of the largest, the whole
               picture. The paper's numbers stand beside patches of the same share of the picture.
    labels     P section 4.6, Table 6 (we could confirm no digit): from faces to maps of regions L1 alone
               has a higher IoU than cGAN alone in every seed, and in the mean at least that of L1+cGAN.
    cycle      C Tables 4, 5, as L1 to the truth, mean of both directions. Both cycles and GAN: nearer than
               GAN alone in every seed, than the cycle alone in every seed, and in the mean than either
               one-way cycle. With the identity loss as well (set after the others had been measured, before
               its own run): nearer than GAN alone in every seed.

    The tables set model, skips, conditional, and the weights of losses that are off. Writes ablation.json, or
    ablation_<part>.json, a .png beside it, and for each part ablation_<part>_samples.png. An interrupted
    ablation continues.
    """
    folder = claims.ablation_folder(cfg)
    base = dataclasses.replace(cfg, fresh=False, part="all", conditional=True,
                               steps=cfg.steps or cfg.epochs * math.ceil(cfg.people / cfg.batch_size))
    parts = {part: rows for part, rows in tables(base).items() if cfg.part in ("all", part)}
    if not parts:
        raise UserError(f"--part {cfg.part}: expected of --model {cfg.model} all, {', '.join(tables(base))}")
    changes = {name: change for rows in parts.values() for name, change in rows.values()}
    jobs = claims.trainings(base, folder, changes)
    check(cfg, parts, jobs)
    study = claims.Ablation(jobs)
    make_ready(jobs)
    study.run(ablation_run, cfg.device)
    for part, rows in parts.items():
        add_rows(study, part, rows, cfg.image_size)
        if part == "patch":
            claim_patch(study, rows, cfg.patch)
        else:
            globals()[f"claim_{part}"](study, rows)
        draw_table({row: jobs[name, study.seeds[0]] for row, (name, _) in rows.items()},
                   Path(cfg.run) / f"ablation_{part}_samples.png")
    study.write(cfg)


def check(cfg, parts, jobs):
    """UserError for settings under which the tables cannot be measured."""
    between = [row.removeprefix("patch ") for row in list(parts.get("patch", {}))[1:-1]]
    if "patch" in parts and str(cfg.patch) not in between:
        way_out = f"expected one of {', '.join(between)}" if between else "give a larger --image-size"
        raise UserError(f"--patch {cfg.patch}: the table compares it with the smallest and the largest; "
                        + way_out)
    for (name, _), one in jobs.items():
        paper.validate(one)
        _, paint = toysets.painters(one)
        in_face = paint in (toyfaces.render, toysets.bare, toysets.spectacled)
        if one.model == "pix2pix" and not (in_face or name.endswith("labels")):
            raise UserError(f"--toy {cfg.toy} --direction {cfg.direction}: these tables read regions in "
                            "faces; choose a task that ends in a face")


def make_ready(jobs):
    """Pictures and the segmenter, before the processes, which would all make them."""
    for one in {(one.model, one.seed, one.direction): one for one in jobs.values()}.values():
        paper.make_data(one)
        paper.make_data(one, test=True)
    segmenter(one)


def values(study, rows, row, measure="IoU"):
    """One number a seed, of a row of a table."""
    return study.values(rows[row][0], measure)


def add_rows(study, part, rows, image_size):
    """The rows of a table, with the paper's numbers where we know them."""
    measures = *SCORES, "L1", "SSIM", "sharpness"
    if part == "cycle":
        measures = "L1", "both L1", "F L1", "SSIM", "back", "back from noise"
    for row, (_, change) in rows.items():
        study.row(f"{part}: {row}", **{k: values(study, rows, row, k) for k in measures})
        if part not in ("cycle", "labels"):
            known = f"patch {same_share(change['patch'], image_size)}" if part == "patch" else row
            beside(study, f"{part}: {row}", known)
    if part != "cycle":
        study.row(f"{part}: the true pictures", **{k: values(study, rows, row, f"truth {k}") for k in SCORES})
        if part != "labels":
            beside(study, f"{part}: the true pictures", "the true pictures")


def beside(study, title, known):
    """The paper's numbers of its row `known`, if there is one, beside our means."""
    numbers = zip(SCORES, PAPER.get(known, (None, None, None)), strict=True)
    study.rows[f"{title}, mean"] |= {f"paper {k}": v for k, v in numbers if v}


def claim_losses(study, rows):
    L1_alone, cgan, both = (values(study, rows, row) for row in ("L1", "cGAN", "L1+cGAN"))
    blur, sharp = (values(study, rows, row, "sharpness") for row in ("L1", "L1+cGAN"))
    blind = values(study, rows, "GAN")
    study.claim("losses", "IoU of the regions read in the faces (Table 1): L1 alone, L1+cGAN", L1_alone, both,
                above_L1_in_every_seed=(both > L1_alone).all(), above_cGAN_in_every_seed=(both > cgan).all(),
                L1_is_less_sharp_in_every_seed=(blur < sharp).all(),
                GAN_without_x_at_most_half_of_cGAN=blind.mean() <= .5 * cgan.mean())


def claim_generator(study, rows):
    plain, unet = (values(study, rows, f"{name}, L1+cGAN") for name in ("encoder-decoder", "U-Net"))
    study.claim("generator", "IoU (Table 2): encoder-decoder, U-Net", plain, unet,
                U_Net_above_in_every_seed=(unet > plain).all())


def claim_patch(study, rows, patch):
    pixel, own, whole = (values(study, rows, row) for row in ("patch 1", f"patch {patch}", list(rows)[-1]))
    study.claim("patch", f"IoU (Table 3): patch of 1 px, of {patch} px", pixel, own,
                at_least_1_px=own.mean() >= pixel.mean(),
                at_least_the_whole_picture=own.mean() >= whole.mean())


def claim_labels(study, rows):
    L1_alone, cgan, both = (values(study, rows, row) for row in rows)
    study.claim("labels", "IoU of maps of regions drawn from faces (section 4.6): L1+cGAN, L1 alone", both,
                L1_alone, above_cGAN_in_every_seed=(L1_alone > cgan).all(),
                at_least_L1_and_cGAN=L1_alone.mean() >= both.mean())


def claim_cycle(study, rows):
    cycle, gan, forward, backward, both = (values(study, rows, row, "both L1") for row in CYCLES)
    study.claim("cycle", "L1 to the truth, both directions (Tables 4, 5): GAN alone, with both cycles",
                gan, both, nearer_than_GAN_alone_in_every_seed=(both < gan).all(),
                nearer_than_the_cycle_alone_in_every_seed=(both < cycle).all(),
                nearer_than_one_way=both.mean() < min(forward.mean(), backward.mean()))
    kept = values(study, rows, "GAN+cycle+identity", "both L1")
    study.claim("identity", "L1 to the truth, both directions: GAN alone, with both cycles and the identity "
                "loss (C 5.2)", gan, kept, nearer_than_GAN_alone_in_every_seed=(kept < gan).all())


def draw_table(runs, path, n=4):
    """The same held-out pictures through the G of every row, side by side: x, a column a row, y."""
    columns = {}
    for row, one in runs.items():
        G, data = paper.load(one)[0], paper.make_data(one, test=True)
        x, y, _ = paper.fixed_batch(data, n)
        columns = {"x": x} | columns | {row: paper.in_batches(one, G, x)}
    columns["y"] = y
    grid(columns).save(path)
