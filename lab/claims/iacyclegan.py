"""IACycleGAN's claims: likeness to the true pictures, and recognition across photo and sketch."""
import dataclasses
import re
import shutil
from pathlib import Path

import piq
import torch
import torch.nn.functional as F

import iacyclegan
from common import n_parameters
from lab import claims, judges, say, toysets
from lab.chain import rounds_of
from lab.images import grid, ssim, to_unit


# ====================================================================================== recognisers

def recognisers_after(cfg):
    """phi_X, phi_Y as they were after the round in cfg.run.

    If that round did not tune them: those of the newest round before it that did, or untuned ones; a line
    says so.
    """
    folder, name = Path(cfg.run), Path(cfg.run).name
    before = []
    if re.fullmatch(r"round\d+", name):
        before = [folder.parent / f"round{r}" for r in (*range(int(name[5:]) - 1, -1, -1), "warm")]
    files = [one / "recognisers.pt" for one in (folder, *before)]
    path = next((file for file in files if file.exists()), None)
    if path is None or path.parent != folder:
        whose = f"of {path.parent}" if path else "that no round has tuned"
        say(f"{folder}: holds no recognisers tuned after it; its drawings are read by those {whose}")
    if path is None:
        return tuple(iacyclegan.Recogniser(cfg).to(cfg.device) for _ in "XY")
    return iacyclegan.load_recognisers(cfg, path)


def readers(cfg, phi, what):
    """Who recognises a "sketch" or a "photo": {name: function of pictures}. phi: the tuned one.

    See `evaluate`.
    """
    found = {"own": phi, "untuned": iacyclegan.Recogniser(cfg).to(cfg.device)}
    if not cfg.data:
        other = found["other"] = other_judge(cfg, what)[0]
        if what == "photo":
            found["other grey"] = lambda x: other(grey_of(x).expand(-1, 3, -1, -1))
    return found


def other_judge(cfg, what):
    """A judge of toy people that took part in no loss, and its equal error rate."""
    kind = "identity" if what == "photo" else what
    return judges.judge(kind, cfg.image_size, 2, cfg.device, cfg.cache, toysets.known_by_shape(cfg))


def recognised(gallery, probes, k=1):
    """Share of probes [n, f] whose own gallery feature, of the same index, is among the k nearest."""
    similarity = F.normalize(probes, dim=1) @ F.normalize(gallery, dim=1).T
    rank = (similarity >= similarity.diagonal()[:, None]).sum(1)       # 0 of features that are not finite
    return (rank.ge(1) & rank.le(k)).float().mean().item()


# ========================================================================================= measures

def grey_of(x):
    """[B, 3, S, S] -> [B, 1, S, S], luma."""
    return (x * x.new_tensor([.299, .587, .114])[:, None, None]).sum(1, keepdim=True)


def likeness(made, truth):
    """SSIM, FSIM, SSIM of the inner face (brows to mouth), all of grey pictures, and L1 (0 ... 1): [4, B]."""
    S, grey = made.shape[-1], [grey_of(made), grey_of(truth)]
    inner = [x[..., int(.3 * S):int(.85 * S), int(.2 * S):int(.8 * S)] for x in grey]
    fsim = piq.fsim(*map(to_unit, grey), data_range=1., chromatic=False, reduction="none").float()
    return torch.stack([ssim(*grey), fsim, ssim(*inner), (made - truth).abs().flatten(1).mean(1) / 2])


def measure_one(cfg, what, G, phi, data, source, target, true):
    """What G makes of the images `source`: likeness to `true`, and recognition among `target`.

    what: "sketch" or "photo", which it makes. G None: the true pictures in place of its own. phi: the tuned
    recogniser of that modality.
    """
    quality, read_by = [], readers(cfg, phi, what)
    gallery, probes = {name: [] for name in read_by}, {name: [] for name in read_by}
    for index in torch.arange(len(data)).split(16):
        truth, sought = data.middle(true, index), data.middle(target, index)
        made = truth if G is None else G(data.middle(source, index))
        quality.append(likeness(made, truth))
        for name, reader in read_by.items():
            gallery[name].append(reader(sought))
            probes[name].append(reader(made))
    values = torch.cat(quality, 1).mean(1).tolist()
    out = dict(zip(("SSIM", "FSIM", "SSIM inner", "L1"), values, strict=True))
    for name in read_by:
        for k in (1, 5):
            out[f"rank-{k} {name}"] = recognised(torch.cat(gallery[name]), torch.cat(probes[name]), k)
    return {f"{what} {measure}": value for measure, value in out.items()}


@torch.no_grad()
def measure(cfg, G, phi, data):
    """G = (G_X, G_Y), or None for the true pictures, on people never trained on: {measure: number}.

    See `evaluate`.
    """
    (G_X, G_Y), (phi_X, phi_Y) = G or (None, None), phi
    drawn = measure_one(cfg, "sketch", G_X, phi_Y, data, data.X, data.Y, data.true_Y)
    return drawn | measure_one(cfg, "photo", G_Y, phi_X, data, data.Y, data.X, data.true_X)


def evaluate(cfg):
    """Every round of cfg.run, on people never trained on. Writes evaluation.json and evaluation.png.

    SSIM, FSIM and L1 (0 ... 1) to the true sketch or photo, grey; inner: from the brows to the mouth. rank-1,
    rank-5: the paper's protocol, one modality is translated and the nearest of all true pictures of that
    modality is looked for. own: by the recogniser tuned after that round; untuned: by the one before all
    rounds, the same in every row; other (toy faces): by one that took part in no loss; other grey: the same,
    shown photos without their colours, which no sketch tells. Toy faces: the truth of SSIM, FSIM, L1 is the
    very sitting; the pictures to be found are of another one. The last row says what the recognisers make of
    true pictures.
    """
    rows, drawn = {}, {}
    for r in [None] if cfg.weights else rounds_of(cfg) or [None]:
        G, one = iacyclegan.load(cfg, r)
        data = iacyclegan.make_data(one, test=True)
        name = "weights" if r is None else f"round {r}" if r else "CycleGAN"
        rows[name] = measure(one, G, recognisers_after(one), data)
        drawn[name] = G
    Path(cfg.run).mkdir(parents=True, exist_ok=True)                   # not there with --weights
    draw_rounds(drawn, data, Path(cfg.run) / "evaluation.png")
    if not one.data:
        rows["the true pictures"] = measure(one, None, recognisers_after(one), data)
    notes = (f"{len(data)} people never trained on; G_X {n_parameters(G[0]):,} parameters; "
             f"chance of rank-1 {1 / len(data):.4f}")
    if not one.data:
        errors = [other_judge(one, what)[1] for what in ("sketch", "photo")]
        notes += f"; other readers: equal error rate {errors[0]:.3f} on sketches, {errors[1]:.3f} on photos"
    return claims.evaluation(cfg, rows, notes)


@torch.no_grad()
def draw_rounds(drawn, data, path):
    """Some people: photo, sketches by the rounds' G_X, the true one; sketch, photos by G_Y, the real one."""
    x, y = iacyclegan.fixed_batch(data)
    true_x, true_y = iacyclegan.fixed_batch(iacyclegan.Pairs(data.cfg, data.true_X, data.true_Y))
    columns = {"photo": x} | {name: G_X(x) for name, (G_X, _) in drawn.items()} | {"artist's sketch": true_y}
    back = {"sketch": y} | {name: G_Y(y) for name, (_, G_Y) in drawn.items()} | {"real photo": true_x}
    grid([*columns.values(), *back.values()], [*columns, *back]).save(path)


# ========================================================================================= ablation

OURS, POOR, UNTUNED = "IACycleGAN", "poor first round, 5 %", "untuned recogniser"
# Chains of rounds. first: the share of its steps that round 0, CycleGAN, gets; tuned: whether the recognisers
# are tuned after a round.
CHAINS = {
    OURS: dict(rounds=2),
    "shuffled identities": dict(rounds=1, identities="shuffled"),
    UNTUNED: dict(rounds=1, tuned=False),
    "tuned on real pictures only": dict(rounds=1, tuned=False, warm_recogniser=True),
    "poor first round, 20 %": dict(rounds=1, first=.2),
    POOR: dict(rounds=1, first=.05),
}
# The chains of each part; one that two parts need is trained once.
PARTS = {"rounds": [OURS, "shuffled identities"],
         "tuning": [OURS, UNTUNED, "tuned on real pictures only"],
         "poor": [UNTUNED, *(name for name, change in CHAINS.items() if "first" in change)]}


def ablate(cfg):
    """The paper's claims, on toy faces, three seeds; --part picks: "poor" the last, "rounds" the others,
    "tuning" rows without a bar: recognisers tuned after the round, not at all, or on real pictures only. The
    thresholds stand here, and were set before running.

    identity  rank-1 sketch to photo by the recogniser that no loss ever used: round 1 at least 5 points above
              CycleGAN; with shuffled identities less than 2 points above.
    rounds    round 2 at least 1 point above round 1, by the same recogniser.
    pictures  FSIM to the true sketch above CycleGAN's in every seed, SSIM not more than .01 below, SSIM of
              the inner face at least .02 above.
    poor      (not a claim of the paper) round 1 after a first round of a twentieth of the steps is above
              CycleGAN of full length in every seed, and in the mean not below round 1 with recognisers that
              were not tuned at all.

    Writes ablation.json, or ablation_<part>.json, and a .png beside it. An interrupted ablation continues.
    """
    iacyclegan.validate(cfg)
    folder, parts = claims.ablation_folder(cfg), list(PARTS) if cfg.part == "all" else [cfg.part]
    steps = cfg.steps or cfg.epochs * -(-cfg.people // cfg.batch_size)
    base = dataclasses.replace(cfg, fresh=False, part="all", first=1., tuned=True, identities="right",
                               steps=steps)
    names = list(dict.fromkeys(name for part in parts for name in PARTS[part]))
    jobs = claims.trainings(base, folder, {name: CHAINS[name] for name in names})
    study = claims.Ablation(jobs)
    draw_and_judge(base)
    share_first_rounds(base, jobs, folder)
    study.run(ablation_run, cfg.device)
    rows(study, names)
    if "rounds" in parts:
        claim_identity(study)
        claim_rounds(study)
        claim_pictures(study)
    if "poor" in parts:
        claim_poor(study)
    study.write(cfg)


def draw_and_judge(base):
    """Pictures and judges, before the processes would all make them."""
    for seed in claims.SEEDS:
        iacyclegan.make_data(dataclasses.replace(base, seed=seed))
    iacyclegan.make_data(base, test=True)
    iacyclegan.Recogniser(base)
    for what in ("sketch", "photo"):
        other_judge(base, what)


def share_first_rounds(base, jobs, folder):
    """One CycleGAN a seed begins all chains whose round 0 has its full length."""
    first = claims.trainings(base, folder, {"first": dict(rounds=0)})
    claims.in_parallel(first_round, list(first.values()), base.device)
    for (name, seed), one in jobs.items():
        if "first" in CHAINS[name] or (Path(one.run) / "round0").exists():
            continue
        beside = Path(one.run) / "round0.part"                         # a kill leaves no half of a round
        shutil.rmtree(beside, ignore_errors=True)
        left_out = None if one.tuned else shutil.ignore_patterns("recognisers.pt")
        shutil.copytree(Path(first["first", seed].run) / "round0", beside, ignore=left_out)
        beside.rename(Path(one.run) / "round0")


def first_round(cfg):
    iacyclegan.train(cfg)                                              # no network goes between processes


def ablation_run(cfg):
    """One chain (in a process of its own on a CPU) and its measures, {"round r: measure": number}."""
    iacyclegan.train(cfg)
    data, out = iacyclegan.make_data(cfg, test=True), {}
    for r in rounds_of(cfg):
        G, one = iacyclegan.load(cfg, r)
        phi = recognisers_after(one)
        out |= {f"round {r}: {name}": value for name, value in measure(one, G, phi, data).items()}
    return out | {f"true: {name}": value for name, value in measure(one, None, phi, data).items()}


def rows(study, names):
    """A row for each round of each chain, and one for the true pictures."""
    numbers = "SSIM", "FSIM", "SSIM inner", "L1", "rank-1 own", "rank-1 untuned", "rank-1 other"
    measures = [f"{what} {number}" for what in ("sketch", "photo") for number in numbers]
    measures.append("photo rank-1 other grey")
    for name in names:
        for r in range(CHAINS[name]["rounds"] + 1):
            title = f"{name}: round {r}" if r else f"{name}: CycleGAN"
            study.row(title, **{k: study.values(name, f"round {r}: {k}") for k in measures})
    study.row("the true pictures", **{k: study.values(names[0], f"true: {k}") for k in measures})


def rank_1(study, name, r):
    """Sketch to photo after round r of a chain, by the recogniser that no loss ever used: a number a seed."""
    return study.values(name, f"round {r}: photo rank-1 other")


def claim_identity(study):
    plain, one = rank_1(study, OURS, 0), rank_1(study, OURS, 1)
    shuffled = rank_1(study, "shuffled identities", 1)
    study.claim("identity", "rank-1 sketch to photo by an independent recogniser: CycleGAN, with identity "
                "loss (round 1)", plain, one, True, at_least_5_points_above=one.mean() - plain.mean() >= .05,
                with_shuffled_identities_no_gain=shuffled.mean() - plain.mean() < .02)


def claim_rounds(study):
    one, two = rank_1(study, OURS, 1), rank_1(study, OURS, 2)
    study.claim("rounds", "the same: round 1, round 2", one, two, True,
                at_least_1_point_above=two.mean() - one.mean() >= .01)


def claim_pictures(study):
    fsim, ssims, inner = ([study.values(OURS, f"round {r}: sketch {what}") for r in (0, 1)]
                          for what in ("FSIM", "SSIM", "SSIM inner"))
    study.claim("pictures", "FSIM to the true sketch: CycleGAN, round 1", *fsim,
                FSIM_above_in_every_seed=(fsim[1] > fsim[0]).all(),
                SSIM_not_below=ssims[1].mean() >= ssims[0].mean() - .01,
                inner_SSIM_above=inner[1].mean() >= inner[0].mean() + .02)


def claim_poor(study):
    plain, poor = rank_1(study, UNTUNED, 0), rank_1(study, POOR, 1)
    untuned = rank_1(study, UNTUNED, 1)                                # begins with the CycleGAN of `plain`
    study.claim("poor", "rank-1 sketch to photo: CycleGAN of full length, round 1 after a first round of a "
                "twentieth", plain, poor, True, above_CycleGAN_in_every_seed=(poor > plain).all(),
                not_below_untuned_recognisers=poor.mean() >= untuned.mean())
