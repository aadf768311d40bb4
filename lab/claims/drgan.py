"""DR-GAN's claims: recognition by pose, drawings against the true face in that pose, fusion by confidence."""
import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import drgan
from common import n_parameters
from lab import albums, claims, judges
from lab.albums import YAWS
from lab.formats.people import official_pairs
from lab.images import grid, ssim
from lab.recognition import identify, pose_probe, share, spearman, verification, verification_pairs

# ========================================================================================= measures

FEW = (2, 1), (3, 2)                       # small sets: how many pictures, and how many of them are degraded


def judge(cfg, kind):
    """The judge of yaw or identity that measures, and its own error."""
    return judges.judge(kind, cfg.image_size, 2, cfg.device, cfg.cache)


@torch.no_grad()
def encode_all(G, album, cfg):
    """f [N, n_f] and w [N] of all pictures of an album, on the CPU."""
    out = [G.encode(albums.pictures(album, k, cfg)) for k in torch.arange(len(album.who)).split(128)]
    return torch.cat([f for f, _ in out]).cpu(), torch.cat([w for _, w in out]).cpu()


def gallery_of(album):
    """One picture a person: the first of those that are least turned. [n people] indices."""
    everyone = [(album.who == person).nonzero()[:, 0] for person in range(len(album.people))]
    return torch.stack([mine[album.yaw[mine].argmin()] for mine in everyone])


def others_than(album, gallery):
    """Which pictures are not the gallery's, [N] bool."""
    return ~torch.isin(torch.arange(len(album.who)), gallery)


def measure(cfg, G, album):
    """All measures of one model on an album of held-out people, as rows of a table. See `evaluate`."""
    G.eval()
    f, w = encode_all(G, album, cfg)
    gallery, toy, g = gallery_of(album), album.faces is not None, torch.Generator().manual_seed(5)
    drawn, far = {}, {}
    if toy and len(album.poses) == G.n_poses and cfg.pretrain < 1:     # a classifier's decoder knows nothing
        drawn, far = rotation(cfg, G, album, f, gallery)
    rows = by_pose(album, f, w, gallery, drawn)
    for title, prefix in (("turned by 30 and more", ""), ("the input instead", "copy "),
                          ("another true picture", "other "), ("the true faces", "truth ")):
        if far:
            rows[title] = {k: far[prefix + k] for k in ("reached", "L1", "SSIM", "who")}
    if toy:
        known, who, pose = f[album.clean], album.who[album.clean], album.pose[album.clean]
        rows["features"] = {"pose in f": pose_probe(known, pose, who),
                            "share of the pose": share(known, pose), "share of who": share(known, who)}
    rows |= verified(cfg, album, f, g)
    for n in range(1, 7):
        sets = sets_of(album, gallery, n, g)
        if len(sets):
            rows[f"{n} pictures a person"] = fusions(album, f, w, gallery, sets)
    for n, k in ((1, 0), (1, 1), *((6, k) for k in range(5)), *FEW, *((n, 0) for n, _ in FEW)) if toy else ():
        rows[f"{n} pictures, {k} degraded"] = fusions(album, f, w, gallery, sets_of(album, gallery, n, g, k))
    if G.multi:
        rows["confidence against"] = trust(album, w)
    return rows


def by_pose(album, f, w, gallery, drawn):
    """Rank 1 and mean confidence of each pose, its measures of drawings, and the mean of all poses."""
    probe, rows = album.clean & others_than(album, gallery), {}
    right = identify(f[gallery], f) == album.who
    for k, pose in enumerate(album.poses):
        mine = probe & (album.pose == k)
        if mine.any():
            row = {"rank-1": right[mine].float().mean().item(), "confidence": w[mine].mean().item()}
            rows[f"pose {pose}"] = row | drawn.get(pose, {})
    measures = next(iter(rows.values()))
    rows["mean of the poses"] = {k: float(np.mean([row[k] for row in rows.values()])) for k in measures}
    return rows


def verified(cfg, album, f, g):
    """CFP's verification, frontal-frontal and frontal-profile: its own pairs, or pairs drawn by its rule."""
    frontal, side = album.clean & (album.pose == album.frontal), album.clean & (album.yaw >= 60)
    folds, rows, f = min(10, len(album.people) // 2), {}, F.normalize(f, dim=1)
    for kind, second in (("FF", frontal), ("FP", side)):
        official = official_pairs(album.paths, album.poses, cfg.data, kind) if cfg.data else None
        pairs = official or verification_pairs(album.who, frontal, second, folds, g)
        if pairs and pairs[2].any() and not pairs[2].all():
            a, b, same, fold = pairs
            rows[f"verification {kind}" + ", CFP's pairs" * bool(official)] = verification(
                (f[a] * f[b]).sum(1), same, fold)
    return rows


def trust(album, w):
    """Rank correlation of confidences w [N] with |yaw|; toy faces also with blur and cover, each alone."""
    row = {"yaw": spearman(w[album.clean], album.yaw[album.clean])}
    if album.faces is not None:                                        # a covered picture is not blurred
        blurred, covered = album.cover[:, 2] == 0, album.blur == 0
        row["blur"] = spearman(w[blurred], album.blur[blurred])
        row["cover"] = spearman(w[covered], album.cover[covered, 2])
    return row


def sets_of(album, gallery, n, g, degraded=None, each=20):
    """`each` sets of n pictures a person, without the gallery's, in random order: [M, n] indices.

    degraded: how many of them are (toy faces).
    """
    def some(pool, k):
        return pool[torch.randperm(len(pool), generator=g)[:k]]

    out, free = [], others_than(album, gallery)
    for person in range(len(album.people)):
        mine = ((album.who == person) & free).nonzero()[:, 0]
        good = album.clean[mine]
        for _ in range(each):
            if degraded is None:
                pick = some(mine, n)
            else:
                pick = torch.cat([some(mine[~good], degraded), some(mine[good], n - degraded)])
            if len(pick) == n:
                out.append(some(pick, n))
    return torch.stack(out) if out else torch.empty(0, n, dtype=torch.long)


def fusions(album, f, w, gallery, sets):
    """Rank 1 of sets [M, n] of pictures: fused by plain mean, by confidence, and the most trusted one alone.

    The last two where there are confidences.
    """
    who, ways = album.who[sets[:, 0]], {"mean": f[sets].mean(1)}
    if (w < 1).any():
        best = sets.gather(1, w[sets].argmax(1, keepdim=True))[:, 0]
        ways |= {"by confidence": drgan.fuse(f[sets], w[sets]), "best one": f[best]}
    return {way: (identify(f[gallery], fused) == who).float().mean().item() for way, fused in ways.items()}


@torch.no_grad()
def rotation(cfg, G, album, f, gallery):
    """Toy faces: drawings against the true face in that pose, {pose: {measure: mean}}; and of turns of 30
    degrees or more, {measure: mean}, also of the input ("copy ") and others instead of the drawing.

    Input: for each pose and person one picture at random, not degraded, not the gallery's. Other: one of that
    person in that very pose, in another light and mood, which f does not hold either. Reached: a judge reads
    a yaw nearer to the pose asked for than to any other. Who: rank 1 of the picture among the true gallery
    pictures, by an independent recogniser, as it does with true ones.
    """
    yaw_of, identity = (judge(cfg, kind)[0] for kind in ("yaw", "identity"))
    known, g = identity(albums.pictures(album, gallery, cfg)), torch.Generator().manual_seed(4)
    usable, yaws = album.clean & others_than(album, gallery), torch.tensor(YAWS, device=cfg.device)

    def one_of_each(mask, n):
        """n pictures of each person at random among `mask` [N]: [people, n]."""
        out = []
        for person in range(len(album.people)):
            mine = (mask & (album.who == person)).nonzero()[:, 0]
            out.append(mine[torch.randint(len(mine), (n,), generator=g)])
        return torch.stack(out)

    inputs, rows, far = one_of_each(usable, len(YAWS)), {}, []
    for k, pose in enumerate(album.poses):
        index = inputs[:, k]
        x, true = albums.pictures(album, index, cfg), albums.truth(album, index, k, cfg)
        y = drgan.turned(G, f[index].to(x.device), torch.full((len(index),), k, device=x.device), cfg)
        other = albums.pictures(album, one_of_each(usable & (album.pose == k), 1)[:, 0], cfg)
        found = {}
        for name, shown in (("", y), ("copy ", x), ("other ", other), ("truth ", true)):
            found[name + "reached"] = ((yaw_of(shown)[:, None] - yaws).abs().argmin(1) == k).float()
            found[name + "L1"] = (shown - true).abs().flatten(1).mean(1) / 2
            found[name + "SSIM"] = ssim(shown, true)
            found[name + "who"] = (identify(known, identity(shown)).cpu() == album.who[index]).float()
        rows[pose] = {name: found[name].mean().item() for name in ("reached", "L1", "SSIM", "who")}
        turned = (torch.tensor(YAWS)[album.pose[index]] - YAWS[k]).abs() >= 30
        far.append({name: value.cpu()[turned] for name, value in found.items()})
    return rows, {name: torch.cat([values[name] for values in far]).mean().item() for name in found}


def evaluate(cfg):
    """Recognition and rotation, on people never trained on. Writes evaluation.json.

    rank-1: share of probes whose nearest gallery picture (one frontal picture a person, cosine of f) is of
    the same person, by pose (as on Multi-PIE); confidence: mean w. Verification: frontal-frontal and
    frontal-profile (toy: 60 degrees) as in CFP; with CFP's own pairs where Protocol/ is there and at least
    two of its folds are held out, else with pairs drawn by the same rule. 1 to 6 pictures a person: rank-1 of
    features fused by confidence, by mean, or of the most trusted picture alone. Toy faces also: reached, L1,
    SSIM, who: see `rotation`; pose in f: see `pose_probe` (chance 1/9; it weighs every direction of f alike,
    the cosine does not), and what part of f's variance lies between poses and between people; degraded
    pictures in a set; rank correlation of w with |yaw|, blur and cover. `reached` and `who` of the true faces
    show how much their judges err.
    """
    G, about = drgan.load(cfg)
    _, album = drgan.make_data(cfg, about["people"])
    rows, n = measure(cfg, G, album), len(album.people)
    notes = f"{n} people never trained on, {len(album.who)} pictures; chance of rank-1 {1 / n:.3f}"
    notes += f"; G {n_parameters(G):,} parameters"
    if cfg.data and not any("CFP's pairs" in row for row in rows):
        notes += "; pairs for verification drawn by CFP's rule (no Protocol/ of which two folds are held out)"
    if not cfg.data:
        yaw, who = (judge(cfg, kind)[1] for kind in ("yaw", "identity"))
        notes += f"; the judge of yaw errs by {yaw:.1f} degrees"
        notes += f", that of identity has an equal error rate of {who:.3f}"
    return claims.evaluation(cfg, rows, notes)


# ========================================================================================= ablation

# The trainings of each part; a training that two parts need is done once.
PARTS = {
    # few people: of many a classifier learns turned heads by itself, and nothing is left to gain
    "pose": {"80 people": dict(people=80),
             "classifier": dict(people=80, pretrain=1., lambda_pair=0., average=0.)},
    "rotation": {"single": {}, "no pose code": dict(pose_code=False, lambda_pose=0.)},
    "fusion": {"single": {}, "multi": dict(images_per_subject=6)},
}
SIDES = [f"pose {pose}: rank-1" for pose in (-60, 60)]


def train_single(cfg):
    """A training alone: no network goes from one process to another."""
    drgan.train(cfg)


def ablation_run(cfg):
    """One training of the ablation and its measures (in a process of its own on a CPU)."""
    rows = measure(cfg, drgan.train(cfg), drgan.make_data(cfg)[1])
    return {f"{row}: {name}": value for row, values in rows.items() for name, value in values.items()}


def ablate(cfg):
    """The papers' claims, on toy faces, three seeds; --part picks one. Thresholds were set before running.

    pose      (80 people) rank-1 against the same encoder trained as a softmax classifier for as many steps:
              at least 3 points better at 60 degrees, at least 1 in the mean of the nine poses, above it in
              every seed; a linear probe reads the pose from f less well, by half of the way from the
              classifier to chance.
    rotation  drawings reach the pose asked for in at least 80 % (without the pose code and D's pose loss at
              most 25 %), and at turns of 30 degrees and more are nearer to the true face than the input is.
    fusion    (the single-image model goes on with six pictures a person for as many steps) two pictures of
              which one is degraded, three of which two are: fused by confidence above the mean in every seed,
              and a third of what the mean loses to them is regained; within 1 point of the mean with none
              degraded. Rank correlation of the confidence with blur and with |yaw| at most -0.5. (The first
              bar was of six pictures, which are recognised whatever is degraded: rows without a bar now. The
              new ones were set when those had been seen, before these.)

    Writes ablation.json, or ablation_<part>.json, a .png beside it, for rotation also a sheet of drawings. An
    interrupted ablation continues.
    """
    drgan.validate(cfg)
    folder = claims.ablation_folder(cfg)
    parts = list(PARTS) if cfg.part == "all" else [cfg.part]
    base = dataclasses.replace(cfg, fresh=False, part="all", images_per_subject=1, pose_code=True)
    changes = {name: change for part in parts for name, change in PARTS[part].items()}
    jobs = claims.trainings(base, folder, changes)
    for (name, seed), one in jobs.items():
        if name == "multi":                                            # the single-image model goes on
            one.weights = str(Path(jobs["single", seed].run) / "last.pt")
        drgan.validate(one)
    study = claims.Ablation(jobs)
    albums_of = {(one.people, one.seed): one for one in jobs.values()}
    for one in albums_of.values():                                     # before the processes all make them
        drgan.make_data(one)
    for kind in ("yaw", "identity"):
        judge(cfg, kind)
    if "fusion" in parts:
        claims.in_parallel(train_single, [jobs["single", seed] for seed in study.seeds], cfg.device)
    study.run(ablation_run, cfg.device)
    all_rows(study, list(changes))
    for part in parts:
        globals()[f"claim_{part}"](study)
    path = study.write(cfg)
    if "rotation" in parts:
        draw_turns(study, path.with_name(f"{path.stem}_samples.png"))


def all_rows(study, names):
    """What every training measures."""
    values, row = study.values, study.row
    for name in names:
        mean = {"mean": values(name, "mean of the poses: rank-1")}
        for yaw in (0, 15, 30, 45, 60):
            mean[str(yaw)] = np.mean([values(name, f"pose {sign * yaw}: rank-1") for sign in (-1, 1)], axis=0)
        row(f"{name}: rank-1 at |yaw|", **mean)
    for name in names:
        if name != "classifier":
            row(f"{name}: turned by 30 and more", **drawings(study, name, "turned by 30 and more"))
        known = ("pose in f", "share of the pose", "share of who")
        known = {k: values(name, f"features: {k}") for k in known}
        known |= {kind: values(name, f"verification {kind}: accuracy") for kind in ("FF", "FP")}
        row(f"{name}: features", **known)
        row(f"{name}: one picture", clean=values(name, "1 pictures, 0 degraded: mean"),
            degraded=values(name, "1 pictures, 1 degraded: mean"))
    for title in ("the input instead", "another true picture", "the true faces"):
        row(title, **drawings(study, names[0], title))


def drawings(study, name, title):
    return {k: study.values(name, f"{title}: {k}") for k in ("reached", "who", "L1", "SSIM")}


def claim_pose(study):
    values, names = study.values, ("classifier", "80 people")
    plain, ours = (np.mean([values(name, side) for side in SIDES], axis=0) for name in names)
    plain_mean, ours_mean = (values(name, "mean of the poses: rank-1") for name in names)
    leak, ours_leak = (values(name, "features: pose in f") for name in names)
    study.claim("pose", "rank-1 at 60 degrees: the encoder as a classifier, DR-GAN", plain, ours, True,
                at_60_degrees_3_points_better=ours.mean() - plain.mean() >= .03,
                in_the_mean_1_point_better=ours_mean.mean() - plain_mean.mean() >= .01,
                above_in_every_seed=((ours > plain) & (ours_mean > plain_mean)).all())
    study.claim("leak", "pose read from f by a linear probe: the classifier's, DR-GAN's", leak, ours_leak,
                True, half_of_the_way_to_chance=ours_leak.mean() <= (leak.mean() + 1 / 9) / 2)


def claim_rotation(study):
    values = study.values
    reached, blind = (values(name, "mean of the poses: reached") for name in PARTS["rotation"])
    ours = drawings(study, "single", "turned by 30 and more")
    copy = drawings(study, "single", "the input instead")
    nearer = (ours["L1"] < copy["L1"]) & (ours["SSIM"] > copy["SSIM"])
    what = "drawings that reach the pose asked for: without pose code and D's pose loss, with"
    study.claim("rotation", what, blind, reached, True, reached_in_80_per_cent=reached.mean() >= .8,
                without_pose_code_at_most_25_per_cent=blind.mean() <= .25,
                nearer_to_the_truth_than_the_input=nearer.all())


@torch.no_grad()
def draw_turns(study, path, n=2):
    """Held-out people in every pose: drawn without the pose code, drawn with it, and truly."""
    rows = []
    for name in ("no pose code", "single"):
        one = dataclasses.replace(study.jobs[name, study.seeds[0]])
        G, _ = drgan.load(one)
        x, true, poses = drgan.fixed_batch(drgan.make_data(one)[1], one, n)
        rows.append(drgan.in_every_pose(G, G.encode(x)[0], one))
    sheet, blank = torch.stack([*rows, true], 1).flatten(0, 1), torch.ones_like(x)
    inputs = torch.stack([x, blank, blank], 1).flatten(0, 1)
    grid([inputs, *sheet.unbind(1)], ["input", *poses]).save(path)


def claim_fusion(study):
    values, ways = study.values, ("by confidence", "mean", "best one")
    for n, k in (*((6, k) for k in range(5)), *((n, k) for n, some in FEW for k in (0, some))):
        study.row(f"multi: {n} pictures, {k} degraded",
                  **{way: values("multi", f"{n} pictures, {k} degraded: {way}") for way in ways})
    (mean, by_w), (clean, clean_by_w) = (
        [np.mean([values("multi", f"{n} pictures, {k * some} degraded: {way}") for n, k in FEW], axis=0)
         for way in ("mean", "by confidence")] for some in (True, False))
    yaw, blur, cover = (values("multi", f"confidence against: {k}") for k in ("yaw", "blur", "cover"))
    study.claim("fusion", "rank-1 of two pictures, one degraded, and three, two degraded: fused by mean, by "
                "confidence", mean, by_w, True, above_the_mean_in_every_seed=(by_w > mean).all(),
                a_third_of_the_loss_regained=(by_w - mean).mean() >= (clean - mean).mean() / 3,
                within_1_point_where_none_is_degraded=abs((clean_by_w - clean).mean()) <= .01,
                confidence_falls_with_blur=blur.mean() <= -.5, confidence_falls_with_yaw=yaw.mean() <= -.5)
    study.row("multi: confidence against", yaw=yaw, blur=blur, cover=cover)
