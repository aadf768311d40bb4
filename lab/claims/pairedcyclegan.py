"""PairedCycleGAN's claims: whose make-up is worn, in which colours, and what happens to the rest of it."""
import dataclasses
from pathlib import Path

import numpy as np
import torch

import pairedcyclegan as paper
from lab import claims, judges, toyfaces
from lab.images import grid, rgb_to_lab
from lab.warp import lay, place, square_size

SOURCES, REFERENCES = 20, 20
W = "W, the warped reference"                                          # the name of its row
PIECES = {"lips": ("lip_rgb", "lip_alpha"), "shadow": ("shadow_rgb", "shadow_alpha"),
          "liner": ("liner_alpha", "liner_wing"), "blush": ("blush_rgb", "blush_alpha")}


# ======================================================================================= every pair

@dataclasses.dataclass
class Crossed:
    """Every one of n bare toy faces with the make-up of every one of m others.

    bare, made: albums; i, j: [n m] indices into them; x [n, 3, L, L]; y [m, 3, L, L]; truth [n, m, 3, L, L];
    where[piece]: [n, m, L, L] bool, pixels that this piece alone changes by more than 2 %, of the shadow
    those that no reference's liner covers.
    """
    bare: paper.Album
    made: paper.Album
    i: torch.Tensor
    j: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    truth: torch.Tensor
    where: dict

    def square(self, flat):
        return flat.unflatten(0, (len(self.x), len(self.y)))


def crossed(cfg, bare, made):
    """A Crossed of the first SOURCES and REFERENCES of two albums of toy faces."""
    n, m, L = min(SOURCES, len(bare)), min(REFERENCES, len(made)), bare.images.shape[-1]
    i, j = torch.arange(n).repeat_interleave(m), torch.arange(m).repeat(n)
    x, y = bare.pictures(torch.arange(n)), made.pictures(torch.arange(m))
    source, reference = bare.faces[i.to(cfg.device)], made.faces[j.to(cfg.device)]

    def wearing(fields):
        return toyfaces.render(source.take(reference, fields), L).unflatten(0, (n, m))

    where = {piece: (wearing(fields) - x[:, None]).abs().amax(2) > .04 for piece, fields in PIECES.items()}
    where["shadow"] &= ~where["liner"].any(1, keepdim=True)
    return Crossed(bare, made, i, j, x, y, wearing(toyfaces.MAKEUP), where)


@torch.no_grad()
def drawn(cfg, nets, pairs):
    """What nets make of every pair: [n, m, 3, L, L]."""
    out = []
    for i, j in zip(pairs.i.split(16), pairs.j.split(16), strict=True):
        x, a = pairs.x[i], pairs.bare.anchors[i]
        total = paper.painted(cfg, nets, x, a, pairs.y[j], pairs.made.anchors[j])
        out.append((x + total).clamp(-1, 1))
    return pairs.square(torch.cat(out))


def laid(cfg, pairs, true):
    """W of every pair, or the truth, cut to the square of the networks and laid back on the source."""
    cut, out = paper.Pairs(cfg, pairs.bare, pairs.made, "face"), []
    for i, j in zip(pairs.i.split(16), pairs.j.split(16), strict=True):
        to_square = place(pairs.bare.anchors[i], "face", cut.size)[2]
        change = (cut.true if true else cut.warped)(i, j) - cut.cut(pairs.bare, i)[0]
        change, mask = lay(change, to_square, pairs.x.shape[-2:])
        out.append((pairs.x[i] + mask * change).clamp(-1, 1))
    return pairs.square(torch.cat(out))


# ========================================================================================= measures

def mean_within(v, mask):
    """The mean of v [..., H, W] within mask, a number a picture; nan where the mask is empty."""
    nan = torch.tensor(torch.nan, device=v.device)
    return (v * mask).sum((-2, -1)) / mask.sum((-2, -1)).float().where(mask.any(-1).any(-1), nan)


def followed(mine, its):
    """R^2 of mean colours [n, m, 3], apart from their mean over the references, source by source."""
    mine, its = (colour - colour.mean(1, keepdim=True) for colour in (mine, its))
    return 1 - (mine - its).square().nansum() / its.square().nansum()


@torch.no_grad()
def marks(cfg, pairs, out):
    """The measures of `evaluate` for pictures out [n, m, 3, L, L]."""
    lab, true_lab = (rgb_to_lab(picture.flatten(0, 1)) for picture in (out, pairs.truth))
    off, follows = (lab - true_lab).norm(dim=1), {}
    values = {"L1": (out - pairs.truth).abs().mean() / 2}
    for piece, where in pairs.where.items():
        values[f"dE {piece}"] = mean_within(off, where.flatten(0, 1)).nanmean()
        anywhere = where.any(1, keepdim=True).expand_as(where).flatten(0, 1)   # the same for all references
        mine, its = (pairs.square(mean_within(picture, anywhere[:, None])) for picture in (lab, true_lab))
        follows[piece] = followed(mine, its)
    values["follows liner"] = follows.pop("liner")
    values["follows"] = torch.stack(list(follows.values())).mean()
    slope, true_slope = (torch.stack(torch.gradient(picture.flatten(0, 1), dim=(2, 3)))
                         for picture in (out, pairs.truth))                    # [2, n m, 3, L, L]
    rough = (slope - true_slope).abs().mean((0, 2)) / 2
    values["edges"] = mean_within(rough, pairs.where["liner"].flatten(0, 1)).nanmean()
    change = out - pairs.x[:, None]
    touched = (pairs.truth - pairs.x[:, None]).abs().amax(2) > .01
    values["outside"] = mean_within(change.abs().mean(2) / 2, ~touched).mean()
    anywhere = touched.any(1)[:, None, None]                                   # [n, 1, 1, L, L]
    distance = torch.stack([((out - one[:, None]).abs() * anywhere).mean((2, 3, 4))
                            for one in pairs.truth.unbind(1)], 2)              # [n, m, m]
    own = torch.arange(len(pairs.y), device=out.device)
    values["style match"] = (distance.argmin(2) == own).float().mean()
    judge = judges.judge("identity", out.shape[-1], 2, cfg.device, cfg.cache)[0]
    seen = torch.cat([judge(part) for part in out.flatten(0, 1).split(64)])
    values["identity"] = (seen * judge(pairs.x).repeat_interleave(len(pairs.y), 0)).sum(1).mean()
    return {name: value.item() for name, value in values.items()}


@torch.no_grad()
def make_up_off(cfg, nets, pairs):
    """Taking make-up off the references, and the way back of a transfer; see `evaluate`."""
    L, m = pairs.x.shape[-1], len(pairs.y)
    bare = toyfaces.render(pairs.made.faces[slice(0, m)].no_makeup(), L)
    made, diagonal = pairs.made.anchors[:m], torch.arange(min(len(pairs.x), m))

    def removed(picture, anchors):
        return (picture + paper.painted(cfg, nets, picture, anchors)).clamp(-1, 1)

    def L1(a, b, where):
        return ((a - b).abs() / 2).masked_select(where).mean().item()

    x, a = pairs.x[diagonal], pairs.bare.anchors[diagonal]
    on = (x + paper.painted(cfg, nets, x, a, pairs.y[diagonal], made[diagonal])).clamp(-1, 1)
    noise = 4 / 255 * torch.randn(on.shape, generator=torch.Generator().manual_seed(0)).to(on.device)
    worn = (pairs.y - bare).abs().amax(1, keepdim=True) > .04
    off, everywhere = removed(pairs.y, made), torch.ones_like(worn[:1])
    return {"F(y)": L1(off, bare, worn), "y itself": L1(pairs.y, bare, worn),
            "F(y) beside": L1(off, bare, ~worn), "back": L1(removed(on, a), x, everywhere),
            "back from noise": L1(removed(on + noise, a), x + noise, everywhere)}


def measure(cfg, nets, bare, made):
    """{row: {measure: number}} of a trained model on held-out people, and of baselines. See `evaluate`."""
    pairs = crossed(cfg, bare, made)
    pictures = {"G": drawn(cfg, nets, pairs), "copy the bare face": pairs.x[:, None].expand_as(pairs.truth),
                "one look for all": pairs.truth.mean(1, keepdim=True).expand_as(pairs.truth),
                W: laid(cfg, pairs, true=False), "the truth": laid(cfg, pairs, true=True)}
    rows = {row: marks(cfg, pairs, out) for row, out in pictures.items()}
    return rows | {"make-up off": make_up_off(cfg, nets, pairs)}


@torch.no_grad()
def measure_photographs(cfg, nets, bare, made):
    """Photographs have no truth: {row: how much G, and W, change; how that differs by the reference}."""
    rows = {}
    for region, (G, _) in nets.items():
        x, y, w, _ = paper.fixed_batch(paper.Pairs(cfg, bare, made, region), SOURCES, REFERENCES)
        for name, out in (("G", paper.all_pairs(G, x, y)), ("W", w)):
            spread = (out - out.mean(1, keepdim=True)).abs().mean() / 2
            change = (out - x[:, None]).abs().mean() / 2
            rows[f"{region}: {name}"] = {"change": change.item(), "spread": spread.item()}
    return rows


def evaluate(cfg):
    """Transfers between people never trained on, against the truth. Writes evaluation.json.

    L1           distance to the true result, 0 ... 1
    dE           the same in Lab (CIE76), where the true lipstick, eye shadow, blush or liner is (shadow:
                 where no liner is)
    follows      R^2 of the mean colours there, apart from their mean over the references, source by source: 1
                 follows each reference, .75 by half, 0 one look for all; of lips, shadow, blush, and of liner
    edges        L1 of the differences from pixel to pixel to the true ones, where the true liner is
    outside      L1 to the bare face, where the true make-up changes nothing
    style match  how often a result is nearer (L1) to the truth for its own reference than to the others
    identity     cosine to the bare face, by an independent judge: 1 for a copy, less for the truth
    Rows beside G: the bare face; the mean of the true results of each face, about the best that a G without
    reference can do; W; the truth, cut to the networks' square and laid back.
    make-up off  L1 of F(y) and of y itself to the true bare face, where y wears make-up; of F(y) also beside
    back         L1 of F(G(x, y)) to x, also with noise of 2/255 in between (to x with that noise)
    Photographs have no truth: see measure_photographs.
    """
    nets, _ = paper.load(cfg)
    bare, made = paper.photographs(cfg, True) if cfg.data else paper.toy_albums(cfg, True)
    if cfg.data:
        rows = measure_photographs(cfg, nets, bare, made)
        notes = f"no truth for photographs; {len(bare)} bare faces and {len(made)} made up were held out"
    else:
        rows = measure(cfg, nets, bare, made)
        error = judges.judge("identity", paper.load_size(cfg), 2, cfg.device, cfg.cache)[1]
        n, m = min(SOURCES, len(bare)), min(REFERENCES, len(made))
        notes = (f"{n} bare faces with the make-up of {m} others, nobody trained on; chance of style match "
                 f"{1 / m:.2f}; the judge of identity has an equal error rate of {error:.3f}")
    return claims.evaluation(cfg, rows, notes)


# ========================================================================================= ablation

# CycleGAN: its G sees no reference, so [L_S] is the way back to y without one, and there is no D_S.
PARTS = {
    "style": {"CycleGAN": dict(asymmetric=False, lambda_P=0.), "without D_S": dict(lambda_P=0.),
              "D_S": dict(mismatch=False), "D_S, mismatched pairs": dict(mismatch=True)},
    "removal": {"D_S, mismatched pairs": dict(mismatch=True),
                "D_S without [L_S]": dict(lambda_S=0., mismatch=True)},
    "pairs": {"D_S, mismatched pairs": dict(mismatch=True),
              "D_S, true pairs": dict(pairs="true", mismatch=True)},
    "regions": {"whole face": dict(mismatch=True), "parts": dict(regions="parts", mismatch=True)},
}
PAPERS, OURS, CYCLEGAN, WITHOUT = "D_S", "D_S, mismatched pairs", "CycleGAN", "without D_S"


def ablation_run(cfg):
    """One training and its measures (on a CPU in a process of its own): {"row: measure": number}."""
    paper.train(cfg)
    nets, _ = paper.load(one := dataclasses.replace(cfg))
    rows = measure(one, nets, *paper.toy_albums(one, True))
    return {f"{row}: {name}": value for row, values in rows.items() for name, value in values.items()}


def jobs_of(cfg, parts, folder):
    """{(name, seed): Config} of the trainings; those of regions: larger pictures, as many pixels in all."""
    batch_size = max(2, cfg.batch_size)                             # mismatched pairs need another reference
    steps = cfg.steps or cfg.epochs * -(-cfg.people // batch_size)
    base = dataclasses.replace(cfg, fresh=False, part="all", regions="face", pairs="warp", log_every=250,
                               sample_every=1000, batch_size=batch_size, steps=steps)
    changes = {name: change for part in parts for name, change in PARTS[part].items()}
    jobs = claims.trainings(base, folder, changes)
    for (name, _), one in jobs.items():
        if name in PARTS["regions"]:
            one.load_size = paper.load_size(dataclasses.replace(one, regions="parts"))
        sides = [square_size(one.image_size, region) for region in ("face", *paper.regions_of(one))]
        one.steps = max(1, round(one.steps * sides[0] ** 2 / sum(side ** 2 for side in sides[1:])))
        paper.validate(one)
    return jobs


def ablate(cfg):
    """The paper's claims, on toy faces, three seeds; --part picks one. Thresholds were set before running.

    style    with D_S and mismatched pairs: follows at least .7 times W's in the mean; dE (mean of lips,
             shadow, blush) in every seed nearer to W's than to that of a CycleGAN trained as long; outside at
             most W's in every seed.
    D_S      with D_S as in the paper, and again with mismatched pairs: dE at least 5 % lower than without D_S
             in every seed; style match higher in every seed, by 10 points in the mean; identity nearer to the
             truth's than W's is, in the mean.
    removal  error of F(y) where y wears make-up: with [L_S] at least 5 % lower in every seed than without
             (both with D_S and mismatched pairs).
    pairs    D_S taught by warped references: dE in the mean at most 10 % above that with D_S taught by the
             true results, which only toy faces have; that one below one look for all.
    regions  dE of parts (three networks, as many pixels in all) at least 5 % below that of the whole face in
             every seed; both of larger pictures.

    Writes ablation.json, or ablation_<part>.json, a .png beside it, and ablation_<part>_samples.png for each
    part. An interrupted ablation continues.
    """
    paper.validate(cfg)
    folder, parts = claims.ablation_folder(cfg), list(PARTS) if cfg.part == "all" else [cfg.part]
    jobs = jobs_of(cfg, parts, folder)
    study = claims.Ablation(jobs, "*/last.pt")
    for one in {(paper.load_size(one), one.seed): one for one in jobs.values()}.values():
        paper.toy_albums(one), paper.toy_albums(one, True)             # before the processes all draw them
        judges.judge("identity", paper.load_size(one), 2, cfg.device, cfg.cache)
    study.run(ablation_run, cfg.device)
    rows_of(study, list(dict.fromkeys(name for name, _ in jobs)))
    claim = dict(style=claim_style, removal=claim_removal, pairs=claim_pairs, regions=claim_regions)
    for part in parts:
        claim[part](study)
        draw_part({name: jobs[name, study.seeds[0]] for name in PARTS[part]},
                  Path(cfg.run) / f"ablation_{part}_samples.png")
    study.write(cfg)


@torch.no_grad()
def draw_part(runs, path):
    """A bare face in the make-up of six references, a row each: by the G of every training, by W, truly."""
    cfg = next(iter(runs.values()))                                    # the test people of all are the same
    pairs = crossed(cfg, *paper.toy_albums(cfg, True))
    k, y = len(pairs.x) // 4, pairs.y[:6]
    x, b = pairs.x[k].expand_as(y), pairs.made.anchors[:len(y)]
    a = pairs.bare.anchors[k].expand_as(b)
    columns = {"reference": y, "source": x}
    for name, one in runs.items():
        nets, _ = paper.load(one := dataclasses.replace(one))
        columns[name] = (x + paper.painted(one, nets, x, a, y, b)).clamp(-1, 1)
    columns |= {W: laid(cfg, pairs, true=False)[k, :6], "the truth": pairs.truth[k, :6]}
    grid(columns).save(path)


def values(study, name, what, row="G"):
    return study.values(name, f"{row}: {what}")


def dE(study, name, row="G"):
    return np.mean([values(study, name, f"dE {piece}", row) for piece in ("lips", "shadow", "blush")], axis=0)


def rows_of(study, names):
    measures = ("L1", "dE lips", "dE shadow", "dE blush", "dE liner", "follows", "follows liner", "edges",
                "outside", "style match", "identity")
    for name in names:
        study.row(name, **{what: values(study, name, what) for what in measures})
    larger = [name for name in names if name in PARTS["regions"] and names[0] not in PARTS["regions"]][:1]
    for name, title in ((names[0], ""), *((name, ", larger pictures") for name in larger)):
        for row in ("copy the bare face", "one look for all", W, "the truth"):
            study.row(row + title, **{what: values(study, name, what, row) for what in measures})
    for name in names:
        off = ("F(y)", "y itself", "F(y) beside", "back", "back from noise")
        study.row(f"make-up off: {name}", **{what: values(study, name, what, "make-up off") for what in off})


def claim_style(study):
    """Claims "style" and "D_S", the latter once as in the paper and once with mismatched pairs."""
    mine, warped = (values(study, OURS, "follows", row) for row in ("G", W))
    outside, W_outside = (values(study, OURS, "outside", row) for row in ("G", W))
    half_way = (dE(study, CYCLEGAN) + dE(study, OURS, W)) / 2
    study.claim("style", "colours that follow the reference (R^2): CycleGAN, with D_S and mismatched pairs",
                values(study, CYCLEGAN, "follows"), mine,
                at_least_seven_tenths_of_W=mine.mean() >= .7 * warped.mean(),
                dE_nearer_to_W_than_to_CycleGAN_in_every_seed=(dE(study, OURS) < half_way).all(),
                outside_at_most_that_of_W_in_every_seed=(outside <= W_outside).all())
    claim_D_S(study, PAPERS)
    claim_D_S(study, OURS)


def claim_D_S(study, name):
    mine, warped, true = (values(study, name, "identity", row).mean() for row in ("G", W, "the truth"))
    match = values(study, name, "style match") - values(study, WITHOUT, "style match")
    without, with_ = dE(study, WITHOUT), dE(study, name)
    study.claim(name, f"dE to the true make-up: without D_S, with {name}", without, with_,
                dE_5_per_cent_lower_in_every_seed=(with_ <= .95 * without).all(),
                style_match_10_points_higher=match.mean() >= .1 and (match > 0).all(),
                identity_nearer_to_the_truth_than_that_of_W=abs(mine - true) < abs(warped - true))


def claim_removal(study):
    off = [values(study, name, "F(y)", "make-up off") for name in ("D_S without [L_S]", OURS)]
    study.claim("removal", "L1 of F(y) to the true bare face where y wears make-up: without [L_S], "
                "with", *off,
                lower_by_5_per_cent_in_every_seed=(off[1] <= .95 * off[0]).all())


def claim_pairs(study):
    true, warped = dE(study, "D_S, true pairs"), dE(study, OURS)
    study.claim("pairs", "dE to the true make-up: D_S taught by the truth, by warped references", true,
                warped,
                warped_at_most_10_per_cent_worse=warped.mean() <= 1.1 * true.mean(),
                true_pairs_below_one_look_for_all=true.mean() < dE(study, OURS, "one look for all").mean())


def claim_regions(study):
    whole, parts = dE(study, "whole face"), dE(study, "parts")
    study.claim("regions", "dE to the true make-up: one G for the face, eyes, lips and skin apart", whole,
                parts,
                dE_5_per_cent_lower_in_every_seed=(parts <= .95 * whole).all())
