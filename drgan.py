"""DR-GAN: who it is without how the head is turned, from one picture or from many.

C: Luan Tran, Xi Yin, Xiaoming Liu. "Disentangled Representation Learning GAN for Pose-Invariant Face Recognition", CVPR 2017.
T: the same authors. "Representation Learning by Rotating Your Faces", IEEE TPAMI 2018, arXiv 1705.11136.
Authors' code: tranluan/DR-GAN (2019; a later variant: yaw as a number, AM-Softmax; not the code of the papers' tables).

The idea. An encoder makes a feature f of a face; a decoder must draw the same person from f in the pose that a code c asks for.
A discriminator with several tasks says real or drawn, who, and which pose. Since the decoder is *told* the pose, f need not hold
it; since D reads who is shown, f must hold that. With several pictures of a person the encoder also says how much it trusts
each (a confidence w), and the features are averaged with these weights.

The claim. f recognises a face from the side better than features without this training; fusing several pictures by confidence
is better than their mean; w falls with yaw and blur. (We could not confirm the papers' tables to the digit, so none is printed
here.) `--ablate` measures it on faces whose identity, pose and blur are known.

Equations. Both papers *maximise* sums of log-likelihoods; here the cross-entropies are minimised, which is the same. Numbers of
equations and sections are as we remember them; (7) and (11) of T, (4) and (5) of C are the sums in `train`:
    [T(4)] real or drawn, for D
    [T(5)] identity of real faces, for D
    [T(6)] pose of real faces, for D
    [T(8)] real or drawn, for G
    [T(9)] identity of drawn faces, for G
    [T(10)] pose of drawn faces, for G
    [C(4)] one softmax over N_d + 1 classes, "drawn" the last, for D
    [C(5)] the same for G
    [fusion] confidence-weighted feature
    [softmax] identity by the encoder alone: the rival, and a start for the encoder

Run it:
    python drgan.py --train                                   toy faces: one picture a person (n = 1)
    python drgan.py --train --images-per-subject 6 --weights runs/drgan/last.pt --run runs/six       fused from six; goes on from the model before
    python drgan.py --train --data CFP --run runs/cfp [--images-per-subject 4]
    python drgan.py --evaluate                                identification by yaw, verification, rotation, fusion, confidence
    python drgan.py --evaluate --data CFP --run RUN           a model trained on other data, on all ten folds of CFP
    python drgan.py --ablate [--part fusion]                  the papers' claims, three seeds
    python drgan.py --infer a.png b.png [--pose -30] [--to c.png]   one person in every pose; towards another person

Data sets: CFP as distributed (Data/Images/001/{frontal,profile}/01.jpg, Fiducials, Protocol): two poses, frontal and profile.
CASIA-WebFace or any folders of people (0000045/001.jpg) with poses.txt, a line "0000045/001.jpg -32.5" for each picture: yaw
in degrees, put into 13 poses of 15 degrees (CASIA comes without poses; the authors estimated them by fitting a 3-D face).
Multi-PIE by its file names (001_01_01_051_07.png: person, session, recording, camera, light): the nine cameras from -60 to 60.
The last tenth of the people (CFP's fold 10; of Multi-PIE all after the 200th) is never trained on. Faces are cut by CFP's
fiducials where they are there, from the brows to the chin; else the central square is taken: align your pictures before.

Where papers and code differ. C has one softmax of N_d + 1 classes, T a real-or-drawn output of its own: the same width; T's is
the default, `--head cvpr` gives the other, whose only weight is that of the pose. Dropout on the confidences is in the paper and
in no code we read; here it is done (one picture always stays). Fusion is divided by the sum of the confidences (one port forgets
it: its features grow with n). The last layer of the encoder has no ELU (authors' code; two ports have it): features may be
negative, a confidence may come near 0. Drawings of fused features are shown to D too (paper; one port shows it only single ones).
No L1 between output and input (one port's single mode): it asks for the pose of the input. Colour, though C's tables are of grey
pictures. The authors' code trains the encoder as a classifier first: `--pretrain`; here D learns who and which pose in these
steps, too. Ours, and no part of the paper's recipe: noise on all that D sees, falling to 0 (--d-noise), and --upsampling nearest.
The small recipe, which runs without a GPU, uses all three. A multi-image model may begin as a single-image one (--weights): its
encoder and decoder go on, D starts anew, and nobody is a classifier again. C and T sum G's terms over a person's n single drawings
and the fused one; here all drawings of a batch share one mean: only the scale differs. Multi-PIE's second code, for the light, and
D's outputs for it are left out: the poses alone are told.

Why is D never asked for the pose of a drawn face? Its pose is a wish, not a label: early drawings show any pose, and D would
learn wrong answers. And if D learned from drawings, the two could agree on a private mark for each code: no pose loss, and
nothing turns. Trained on real faces alone D stays an honest judge. The same for identity. Why the extra class? C's D must put
drawings somewhere; the price is that "who" and "drawn" share one softmax. Cross-entropy where the paper has log-likelihoods?
The same with the sign turned. Is the random code a bug? No: c is drawn anew each time and has nothing to do with the input's
pose; what must be right are the labels of *real* pictures. The drawings stay noise? See that the last layer is a tanh, that D is
trained as often as G at first, and that fusion is divided by the sum of the confidences. All drawings in one pose? Look at D's
pose accuracy on real faces first (`D_pose` in the log), then at the health word. Two coarse poses (CFP) are a weak teacher; more
angles are a better one.
"""
import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import common
import toyfaces
from common import Run, UserError, draw_crops, frozen, grid, prepare, say

YAWS = tuple(range(-60, 61, 15))                                       # degrees; the nine poses of Multi-PIE and of the toy faces
CAMERAS = {"090": -60, "080": -45, "130": -30, "140": -15, "051": 0, "050": 15, "041": 30, "190": 45, "200": 60}     # of Multi-PIE; which side is which: ours


@dataclass
class Config(common.Settings):
    """The papers' recipe."""
    # data
    image_size: int = 96              # C 4.1
    load_size: int = 0                # C 4.1: 96 px cut at random from 100; 0 = in this proportion
    people: int = 500                 # ours: toy people to train on
    copies: int = 8                   # ours: toy pictures of each person at each of nine yaws
    spoilt: float = .25               # ours: share of toy pictures that the encoder sees blurred or covered, so that there is something to distrust
    test_people: int = 0              # 0 = as the data sets have it (CFP: fold 10 of 10; Multi-PIE: after 200); else the last so many
    # networks
    feature: int = 320                # C Table 1
    noise: int = 50                   # C 3.2: z uniform in [-1, 1]^50
    width: float = 1.                 # C Table 1: widths of all layers times this
    head: str = field(default="tpami", metadata={"choices": ("tpami", "cvpr")})    # T 3.1: three outputs; C 3.2: one softmax of N_d + 1
    images_per_subject: int = 1       # C 3.3: n; 1 = the single-image model; T: 6
    upsampling: str = field(default="transposed", metadata={"choices": ("transposed", "nearest")})   # C Table 1 (FConv); nearest: no checkerboard
    pose_code: bool = True            # C 3.2; --no-pose-code: the decoder is not told (ablation)
    # losses
    lambda_gan: float = 1.            # T (7), (11)
    lambda_id: float = 1.             # T (7), (11)
    lambda_pose: float = 1.           # T (7), (11); 0: D has no pose to tell (ablation)
    drop: float = .5                  # C 3.3 has the dropout on confidences; its share is ours
    # training
    steps: int = 100_000              # ours: the papers' length is not known
    pretrain: float = 0.              # authors' code: classifiers first, for this share of the steps; the papers: no
    batch_size: int = 64              # C 4.1
    lr: float = 2e-4                  # C 4.1
    betas: tuple = (.5, .999)         # C 4.1
    decay_from: float = 1.            # the papers: constant; below 1: from this share of the steps on linear to 0
    d_noise: float = 0.               # the papers: none. Standard deviation of noise on all that D sees; linear to 0
    g_steps: int = 4                  # C 4.1: G's steps for one of D once D is near its optimum
    # evaluation
    part: str = field(default="all", metadata={"choices": ("all", "pose", "rotation", "fusion")})   # ours: of --ablate


# For a processor: 48 px and a quarter of the widths (z's too, or it drowns f), all of it ours. A batch stays as large as the paper's (batch
# norm, and a softmax over people). Few steps, so a larger learning rate, linear to 0 from half-way. The encoder and D are classifiers first:
# the encoder learns who only through D, which knows hardly anybody before step 1000. D steps as often as G to the end: whenever G was given four
# steps for one of D's the drawings broke into patterns. Noise on what D sees: without it the first 500 steps were spent on patterns that D
# refused at once; it has to go by the end: where half or a fifth of it stayed, specks came that D could not see. Nearest upsampling: with
# transposed convolutions a checkerboard stayed to the end.
SMALL = dict(image_size=48, width=.25, noise=12, people=300, copies=8, steps=3000, pretrain=1 / 3, lr=5e-4, decay_from=.5, g_steps=1,
             upsampling="nearest", d_noise=.2)
INFER_FLAGS = {
    "--pose": dict(nargs="+", default=None, metavar="POSE", help="degrees, or frontal and profile for a model of CFP; default: every pose"),
    "--to": dict(nargs="+", default=None, metavar="FILE", help="pictures of another person: seven steps from the one feature to the other"),
    "--out": dict(default="", metavar="DIR", help="where to write (default: the run folder)"),
}
HEALTH = {"pose-ignored": "drawings under all codes look alike", "identity-lost": "drawings of all people look alike",
          "D-won": "D tells every real picture from every drawn one, by far", "nan": "a loss is not finite"}


# ========================================================================================================== data

@dataclass
class Album:
    """Pictures of people in poses, one person after the other.

    bank: uint8 [N, 3, L, L]; who, pose: [N] indices into people and poses (names; yaw in degrees as text, or frontal, profile).
    frontal: index of the frontal pose; yaw [N]: |yaw| in degrees (profile: 90). paths: the files of photographs. Toy pictures:
    faces, what they were drawn from; blur [N] and cover [N, 3], how they are spoilt (see `spoil`); clean [N]: they are not.
    """
    bank: torch.Tensor
    who: torch.Tensor
    pose: torch.Tensor
    people: tuple
    poses: tuple
    faces: toyfaces.Face | None = None
    blur: torch.Tensor | None = None
    cover: torch.Tensor | None = None
    paths: tuple = ()

    @property
    def frontal(self):
        return self.poses.index("frontal" if "frontal" in self.poses else "0")

    @property
    def yaw(self):
        return torch.tensor([{"frontal": 0, "profile": 90}.get(pose) if pose.isalpha() else abs(int(pose)) for pose in self.poses])[self.pose]

    @property
    def clean(self):
        return torch.ones(len(self.who), dtype=torch.bool) if self.blur is None else (self.blur == 0) & (self.cover[:, 2] == 0)


class Faces:
    """An album to train on. sample(): n pictures of each of batch_size / n people: x and x_seen [B, n, 3, S, S], y_d [B], y_p [B, n].

    x_seen is what the encoder gets: x, but that some toy pictures are spoilt. (D is shown x. When it was shown spoilt pictures as
    real ones, G came to draw blurred heads, which were real, too.)
    """

    def __init__(self, cfg, album):
        self.cfg, self.album = cfg, album
        self.generator = torch.Generator().manual_seed(cfg.seed)
        self.count = torch.bincount(album.who, minlength=len(album.people))
        self.first = self.count.cumsum(0) - self.count

    def __len__(self):
        return len(self.album.who)

    def sample(self, batch_size):
        g, n, cfg, a = self.generator, self.cfg.images_per_subject, self.cfg, self.album
        who = a.who[torch.randint(len(a.who), (max(1, batch_size // n),), generator=g)]
        index = self.first[who, None] + (torch.rand(len(who), n, generator=g) * self.count[who, None]).long()      # with replacement
        room = a.bank.shape[-1] - cfg.image_size + 1
        x = draw_crops(a.bank, index.flatten(), *torch.randint(room, (2, index.numel()), generator=g), cfg.image_size, cfg.device)
        x_seen = x if a.faces is None else spoil(x, *(t.to(cfg.device, non_blocking=True) for t in some_spoilt(len(x), cfg.spoilt, g)))
        return x.unflatten(0, index.shape), x_seen.unflatten(0, index.shape), *(t.to(cfg.device, non_blocking=True) for t in (who, a.pose[index]))


def pictures(album, index, cfg):
    """Pictures `index` for testing: [b, 3, S, S], the middle of each, spoilt as the album says."""
    x = middle(common.draw(album.bank, index, cfg.device), cfg)
    return x if album.blur is None else spoil(x, album.blur[index].to(x.device), album.cover[index].to(x.device))


def middle(x, cfg):
    """The middle image_size x image_size of stored pictures [B, 3, L, L]."""
    edge = (x.shape[-1] - cfg.image_size) // 2
    return x[..., edge:edge + cfg.image_size, edge:edge + cfg.image_size]


def some_spoilt(n, share, g):
    """How to spoil n pictures, a `share` of them: blur [n] and cover [n, 3] as in `spoil`. Half are blurred, half covered."""
    chosen, blurred = torch.rand(2, n, generator=g) < torch.tensor([[share], [.5]])
    blur = (.015 + .04 * torch.rand(n, generator=g)) * (chosen & blurred)
    x, y, radius = torch.rand(3, n, generator=g)
    cover = torch.stack([.3 + .4 * x, .3 + .5 * y, (.2 + .2 * radius) * (chosen & ~blurred)], 1)
    return blur, cover


def spoil(x, blur, cover):
    """Gaussian blur and a grey disc. x: [B, 3, S, S]; blur: [B], its sigma; cover: [B, 3], x, y, radius; in parts of the side; 0 = none."""
    B, _, S, _ = x.shape
    t = torch.arange(-round(.12 * S), round(.12 * S) + 1, device=x.device)
    kernel = torch.exp(-t ** 2 / (2 * (blur[:, None] * S).clamp(min=.05) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    y = F.pad(x, (len(t) // 2,) * 4, mode="replicate").flatten(0, 1)[None]
    y = F.conv2d(F.conv2d(y, kernel[..., None, :], groups=3 * B), kernel[..., None], groups=3 * B)[0].unflatten(0, (B, 3))
    axis = (torch.arange(S, device=x.device) + .5) / S
    distance = ((axis - cover[:, 0, None])[:, None, :] ** 2 + (axis - cover[:, 1, None])[:, :, None] ** 2).sqrt()
    return y * (1 - ((cover[:, 2, None, None] - distance) * S + .5).clamp(0, 1) * (cover[:, 2, None, None] > 0))[:, None]


TRAIN_SEED, TEST_SEED, TEST_PEOPLE, TEST_COPIES = 40_000, 39_000, 100, 6    # people drawn from other seeds are other people


def toy_album(cfg, n_people, copies, seed, test=False):
    """People without make-up, `copies` pictures at each of nine yaws: each in a light, place, dress and mood of its own. White wall.

    test: the first picture at yaw 0 is the gallery's, neutral, in a plain light, unspoilt; of the others every second is spoilt.
    """
    people = toyfaces.sample(n_people, seed, cfg.device, pose=0, makeup=False)
    faces = toyfaces.frames(people, len(YAWS) * copies, seed + 1, pose=.3, vary=("light", "light_strength", "clothes"))
    pose = torch.arange(len(YAWS)).repeat_interleave(copies).repeat(n_people)
    faces = faces.set(yaw=torch.tensor(YAWS, dtype=torch.float32)[pose], zoom=1.2 * faces.zoom, background=1.)
    blur, cover = some_spoilt(len(pose), 1., torch.Generator().manual_seed(seed)) if test else (None, None)
    if test:
        copy = torch.arange(copies).repeat(n_people * len(YAWS))
        blur, cover = blur * (copy % 2), cover * (copy % 2)[:, None]
        gallery = (copy == 0) & (pose == YAWS.index(0))
        faces = faces.express("neutral").set(light=[0., -.3, .954], light_strength=.4).where(gallery, faces)
    bank = common.toy_bank(cfg, faces, load_size(cfg))
    who = torch.arange(n_people).repeat_interleave(len(YAWS) * copies)
    return Album(bank, who, pose, tuple(f"toy/{seed}/{k}" for k in range(n_people)), tuple(map(str, YAWS)), faces, blur, cover)


def load_size(cfg):
    """Side of the stored pictures, of which training cuts image_size at random."""
    return cfg.load_size or cfg.image_size * 25 // 24


def scan(cfg):
    """What is under cfg.data: images, who and pose of each, people, poses, kind; for --check bad, notes, bytes_per_image."""
    root = Path(cfg.data)
    found = scan_cfp(root) or scan_multipie(root) or scan_folders(root)
    if not found:
        n = len(common.files_below(root))
        raise UserError(f"{root}: found {n} pictures, but neither 001/frontal/ and 001/profile/ (CFP), nor names like 001_01_01_051_07.png (Multi-PIE), "
                        "nor folders of people with poses.txt beside them; see --help")
    items, poses, bad = found["items"], found["poses"], found["bad"]
    if found["kind"] != "multipie":                                    # a person is a folder, named from where the folders part
        above = os.path.commonpath([person for _, person, _ in items])
        items = [(path, Path(os.path.relpath(person, above)).as_posix(), k) for path, person, k in items]
    people = sorted({person for _, person, _ in items})
    counts = np.bincount([k for *_, k in items], minlength=len(poses))
    number = {person: k for k, person in enumerate(people)}
    items = sorted(items, key=lambda item: (item[1], item[2], not item[0].stem.endswith("_07"), str(item[0])))   # Multi-PIE's gallery: light 07
    n_test = held_out(cfg, found["kind"], len(people))
    return dict(images=[path for path, *_ in items], who=[number[person] for _, person, _ in items], pose=[k for *_, k in items], n_test=n_test,
                people=tuple(f"{found['kind']}/{person}" for person in people), poses=poses, kind=found["kind"], bad=bad,
                bytes_per_image=3 * load_size(cfg) ** 2,
                notes={"kind": found["kind"], "people": f"{len(people)} ({', '.join(people[:3])} ...), the last {n_test} held out",
                       "poses": ", ".join(f"{pose} ({n})" for pose, n in zip(poses, counts, strict=True))} | found.get("notes", {}))


def held_out(cfg, kind, n):
    """How many people are tested on: Multi-PIE trains on 200; else a tenth, as CFP's tenth fold, but ten of a small set."""
    return cfg.test_people or (n - 200 if kind == "multipie" and n > 210 else max(n // 10, min(10, n // 3)))


def scan_cfp(root):
    """<anything>/001/{frontal,profile}/01.jpg."""
    below = common.folders_below(root)
    folders = [f for name in ("frontal", "profile") for f in below if f.name == name and f != root and "Fiducials" not in f.parts]
    items = [(p, f.parent, ("frontal", "profile").index(f.name)) for f in folders for p in common.pictures_in(f)]
    return items and dict(items=items, poses=("frontal", "profile"), kind="cfp", bad=[])


def scan_multipie(root):
    """Names like 001_01_01_051_07.png anywhere below; cameras beyond 60 degrees and the two high ones are left out."""
    named = [(p, re.fullmatch(r"(\d{3})_\d\d_\d\d_(\d{3})_\d\d", p.stem)) for p in common.files_below(root)]
    items = [(p, m[1], YAWS.index(CAMERAS[m[2]])) for p, m in named if m and m[2] in CAMERAS]
    return items and dict(items=items, poses=tuple(map(str, YAWS)), kind="multipie", bad=[])


def scan_folders(root):
    """A folder for each person, and poses.txt: a line "folder/file yaw" for each picture, degrees."""
    path, items, bad = root / "poses.txt", {}, []
    if not path.exists():
        return None
    bins = tuple(range(-90, 91, 15))
    for line in common.text_of(path).splitlines():
        if not line.strip():
            continue
        name, _, yaw = re.sub(r"[,\s]+(?=\S*$)", "\t", line.strip()).rpartition("\t")
        try:
            nearest = min(range(len(bins)), key=lambda k: abs(bins[k] - float(yaw)))                  # noqa: B023
            if not abs(float(yaw)) <= 97.5:
                raise ValueError
        except ValueError:
            bad.append(f"{path}: {line.strip()!r}; expected a picture and its yaw from -90 to 90 degrees, e.g. 0000045/001.jpg -32.5")
            continue
        if not (root / name).exists():
            bad.append(f"{path}: {name} is not there")
        else:
            items[root / name] = (root / name, (root / name).parent, nearest)
    if not items:
        raise UserError((bad + [f"{path}: empty; expected a line with a picture and its yaw in degrees for each picture"])[0])
    there = len(common.files_below(root))
    return dict(items=list(items.values()), poses=tuple(map(str, bins)), kind="folders", bad=bad,
                notes={"pictures without a line in poses.txt": there - len(items)})


def fiducials_of(path):
    """CFP's file of 30 points for a picture, or None if there is none."""
    parts = list(path.with_suffix(".txt").parts)
    if "Images" not in parts:
        return None
    parts[len(parts) - 1 - parts[::-1].index("Images")] = "Fiducials"
    return Path(*parts) if Path(*parts).exists() else None


def face_square(path, image):
    """(low, high) of the square to cut: by CFP's fiducials if they are there; else the central one.

    In the files the points run from the brows to the chin; of a frontal face they cover its left half and the middle line.
    """
    file = fiducials_of(path)
    if file is None:
        centre, half = np.array(image.size) / 2 - .5, min(image.size) / 2
    else:
        try:
            points = np.array([[float(v) for v in line.replace(",", " ").split()] for line in common.text_of(file).splitlines() if line.strip()])
            low, high = points.min(0), points.max(0)
            if points.shape != (30, 2) or not (low > -np.array(image.size)).all() or not (high < 2 * np.array(image.size)).all() or not high[1] - low[1] > 4:
                raise ValueError
        except ValueError:
            raise UserError(f"{file}: expected 30 lines 'x,y' on the picture of {image.width} x {image.height}") from None
        half = .85 * (high[1] - low[1])
        centre = np.array([high[0] if path.parent.name == "frontal" else (low[0] + high[0]) / 2, .55 * low[1] + .45 * high[1]])
    return torch.tensor(centre - half), torch.tensor(centre + half)


def photographs(cfg, keep, found):
    """The pictures of the people for whom keep(index, name) holds, decoded once."""
    L = load_size(cfg)
    mine = [k for k, who in enumerate(found["who"]) if keep(who, found["people"][who])]
    images = [found["images"][k] for k in mine]

    def decode(k):
        image = common.open_image(images[k])
        return np.asarray(common.crop(image, *face_square(images[k], image), L)).transpose(2, 0, 1)

    key = [file and (file.stat().st_size, file.stat().st_mtime_ns) for file in map(fiducials_of, images)]
    bank, good = common.decoded_bank(cfg, images, (3, L, L), decode, key)
    kept = sorted({found["who"][mine[k]] for k in good})                # with --skip-bad a person may have gone
    number = {k: new for new, k in enumerate(kept)}
    who, pose = torch.tensor([number[found["who"][mine[k]]] for k in good]), torch.tensor([found["pose"][mine[k]] for k in good])
    return Album(bank, who, pose, tuple(found["people"][k] for k in kept), found["poses"], paths=tuple(images[k] for k in good))


def make_data(cfg, known=None):
    """(album to train on, album of people never trained on).

    known: names of the people that a finished model was trained on; then the first album is None, and all people of a data set
    that none of them belongs to are strangers.
    """
    if not cfg.data:
        train = None if known else toy_album(cfg, cfg.people, cfg.copies, TRAIN_SEED + 10 * cfg.seed)
        return train, toy_album(cfg, TEST_PEOPLE, TEST_COPIES, TEST_SEED, True)
    found = scan(cfg)
    common.report_bad(found["bad"], len(found["images"]) + len(found["bad"]), cfg.skip_bad)
    everyone, n_train = set(found["people"]), len(found["people"]) - found["n_test"]
    if known and not everyone & set(known):
        n_train = 0
    elif not 2 <= n_train <= len(everyone) - 4:
        raise UserError(f"{cfg.data}: {len(everyone)} people, {found['n_test']} of them held out; expected at least 2 to train on and 4 to test on; "
                        "see --test-people")
    test = photographs(cfg, lambda k, name: k >= n_train and name not in (known or ()), found)
    if len(test.people) < 4 or len(test.who) == len(test.people):
        raise UserError(f"{cfg.data}: {len(test.who)} pictures of {len(test.people)} people to test on; expected at least 4 people, some with several")
    return None if known else photographs(cfg, lambda k, name: k < n_train, found), test


# ====================================================================================================== networks

class Encoder(nn.Module):
    """G_enc of C Table 1 (and D's trunk): 3 x 3 convolutions, batch norm, ELU, mean. [B, 3, S, S] -> f [B, n_out].

    No ELU after the last (D has one): features may be negative, and a confidence use all of (0, 1). 2,861,984 parameters for 320.
    """
    #        32-64 | 64-64-128 | 128-96-192 | 192-128-256 | 256-160-n_out; stride 2 at the first of each but the first
    LAYERS = ((32, 1), (64, 1), (64, 2), (64, 1), (128, 1), (128, 2), (96, 1), (192, 1), (192, 2), (128, 1), (256, 1), (256, 2), (160, 1))

    def __init__(self, n_out=320, channels=3, width=1.):
        super().__init__()
        layers, c = [], channels
        for w, stride in (*((max(1, round(w * width)), s) for w, s in self.LAYERS), (n_out, 1)):
            # "SAME" of the authors' framework: with stride 2 the extra row and column are below and on the right
            layers += [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(c, w, 3, 2, bias=False)] if stride == 2 else [nn.Conv2d(c, w, 3, 1, 1, bias=False)]
            layers += [nn.BatchNorm2d(w), nn.ELU()]
            c = w
        self.main = nn.Sequential(*layers[:-1])

    def forward(self, x):
        return self.main(x).float().mean((2, 3))


class Decoder(nn.Module):
    """G_dec of C Table 1: [f, c, z] -> picture [B, 3, S, S] in [-1, 1]. 7,238,944 parameters for 320, 9 poses, 50 of noise, 96 px."""
    LAYERS = ((160, 1), (256, 1), (256, 2), (128, 1), (192, 1), (192, 2), (96, 1), (128, 1), (128, 2), (64, 1), (64, 1), (64, 2), (32, 1))

    def __init__(self, n_in, image_size=96, channels=3, width=1., upsampling="transposed"):
        super().__init__()
        self.side, c = image_size // 16, max(1, round(320 * width))
        self.fc = nn.Linear(n_in, c * self.side ** 2)
        layers = []
        for w, stride in ((max(1, round(w * width)), s) for w, s in self.LAYERS):
            if stride == 1:
                conv = [nn.Conv2d(c, w, 3, 1, 1, bias=False)]
            elif upsampling == "transposed":
                conv = [nn.ConvTranspose2d(c, w, 3, 2, 1, output_padding=1, bias=False)]
            else:
                conv = [nn.Upsample(scale_factor=2), nn.Conv2d(c, w, 3, 1, 1, bias=False)]
            layers += [*conv, nn.BatchNorm2d(w), nn.ELU()]
            c = w
        self.main = nn.Sequential(*layers, nn.Conv2d(c, channels, 3, 1, 1, bias=False), nn.Tanh())

    def forward(self, f, c, z):
        h = self.fc(torch.cat([f, c, z], 1))
        return self.main(h.unflatten(1, (-1, self.side, self.side)))


class Generator(nn.Module):
    """G: encoder and decoder. encode(x [B, 3, S, S]) -> f [B, n_f], w [B] in (0, 1): feature and confidence.

    decode(f, c one-hot [B, N_p], z [B, N_z] in [-1, 1]) -> [B, 3, S, S]. Single-image models have no confidence: w = 1.
    """

    def __init__(self, cfg, n_poses):
        super().__init__()
        self.n_f, self.n_poses, self.multi = max(1, round(cfg.feature * cfg.width)), n_poses, cfg.images_per_subject > 1
        self.enc = Encoder(self.n_f + self.multi, width=cfg.width)
        self.dec = Decoder(self.n_f + n_poses + cfg.noise, cfg.image_size, 3, cfg.width, cfg.upsampling)

    def encode(self, x):
        out = self.enc(x)
        return out[:, :self.n_f], torch.sigmoid(out[:, self.n_f]) if self.multi else torch.ones_like(out[:, 0])

    def decode(self, f, c, z):
        return self.dec(f, c, z)


class Discriminator(nn.Module):
    """D: the encoder's body, and 1 + N_d + N_p outputs: real or drawn, who, which pose. 2,929,394 parameters for 200 people, 9 poses.

    forward(x) -> three tensors of logits: T's (r [B, 1], d [B, N_d], p [B, N_p]). For C's head r and d are one softmax, joined as
    [d, r]: "drawn" is the last of N_d + 1 classes.
    """

    def __init__(self, n_people, n_poses, feature=320, width=1.):
        super().__init__()
        self.sizes = (1, n_people, n_poses)
        self.trunk, self.fc = Encoder(max(1, round(feature * width)), width=width), nn.Linear(max(1, round(feature * width)), sum(self.sizes))

    def forward(self, x):
        h = F.elu(self.trunk.main(x)).float().mean((2, 3))
        with torch.autocast(h.device.type, enabled=False):             # a softmax over many people needs its digits
            return self.fc(h).split(self.sizes, 1)


# ======================================================================================================== losses
# Every loss is minimised. Logits [B, n]; y_d, y_p, c: [B] indices of the person, of the pose shown, of the pose asked for.
# D is never asked for the person or the pose of a *drawn* face: it would learn to read G's mistakes as that person, and to see
# a pose where G drew none, and G would be paid for both.

def loss_gan_D(r_real, r_fake):
    """[T(4)]  L^D_gan = E[log D^r(x)] + E[log(1 - D^r(G(x, c, z)))], maximised by D. Weight: lambda_gan"""
    return common.vanilla_D(r_real, r_fake)


def loss_id_D(d_real, y_d):
    """[T(5)]  L^D_id = E[log D^d_{y^d}(x)], maximised by D: softmax over the N_d people. Weight: lambda_id"""
    return F.cross_entropy(d_real, y_d)


def loss_pose_D(p_real, y_p):
    """[T(6)]  L^D_pos = E[log D^p_{y^p}(x)], maximised by D. Weight: lambda_pose"""
    return F.cross_entropy(p_real, y_p)


def loss_gan_G(r_fake):
    """[T(8)]  L^G_gan = E[log D^r(G(x, c, z))], maximised by G. Weight: lambda_gan"""
    return common.vanilla_G(r_fake)


def loss_id_G(d_fake, y_d):
    """[T(9)]  L^G_id = E[log D^d_{y^d}(G(x, c, z))], maximised by G: D must recognise the person of the input. Weight: lambda_id"""
    return F.cross_entropy(d_fake, y_d)


def loss_pose_G(p_fake, c):
    """[T(10)]  L^G_pos = E[log D^p_{y^t}(G(x, c, z))], maximised by G: the pose asked for, not the input's. Weight: lambda_pose"""
    return F.cross_entropy(p_fake, c)


def loss_cvpr_D(real, fake, y_d, y_p, lambda_pose=1.):
    """[C(4)]  V_D = E[log D^d_{y^d}(x) + log D^p_{y^p}(x)] + E[log D^d_{N^d+1}(G(x, c, z))], maximised by D

    real, fake: D's three outputs. One softmax over the people and, as the last class, "drawn".
    """
    drawn = torch.full_like(fake[0][:, 0], fake[1].shape[1], dtype=torch.long)
    who = F.cross_entropy(torch.cat(real[1::-1], 1), y_d) + F.cross_entropy(torch.cat(fake[1::-1], 1), drawn)
    return who + lambda_pose * F.cross_entropy(real[2], y_p)


def loss_cvpr_G(fake, y_d, c, lambda_pose=1.):
    """[C(5)]  V_G = E[log D^d_{y^d}(G(x, c, z)) + log D^p_{y^t}(G(x, c, z))], maximised by G."""
    return F.cross_entropy(torch.cat(fake[1::-1], 1), y_d) + lambda_pose * F.cross_entropy(fake[2], c)


def fuse(f, w):
    """[fusion]  f(x_1, ..., x_n) = sum_i w_i f(x_i) / sum_i w_i.   f: [B, n, n_f]; w: [B, n] in [0, 1] -> [B, n_f]."""
    return (w[..., None] * f).sum(1) / (w.sum(1, keepdim=True) + 1e-6)


def some_confidences(w, drop):
    """C 3.3: dropout on the confidences, so that any number of pictures takes part; one always stays. w: [B, n]."""
    keep = torch.rand(w.shape, device=w.device) >= drop
    keep |= F.one_hot(torch.randint(w.shape[1], (len(w),), device=w.device), w.shape[1]).bool() & ~keep.any(1, keepdim=True)
    return w * keep


def loss_softmax(logits, y_d):
    """[softmax]  -E[log softmax(W f(x))_{y^d}]: the encoder and one linear layer, nothing else. Not the papers' loss: their rival's."""
    return F.cross_entropy(logits, y_d)


# ====================================================================================================== training

class Balance(nn.Module):
    """C 4.1: once D is near its optimum, G gets more steps than D. A module, so that it stands in the checkpoint.

    pretrained: steps as classifiers, fixed when the training begins: a longer --steps must not fall back into them.
    "near": right in 9 of 10 cases in the worst of its tasks, real, drawn and who; the paper gives no number, one port this one,
    for the mean. (With "who" alone G got ahead as soon as D knew the people, however well it was fooled.) Looked at now and
    then only, and kept on the processor: a GPU would have to wait for every look.
    """

    def __init__(self, g_steps, pretrained=0):
        super().__init__()
        self.g_steps = g_steps
        self.register_buffer("pretrained", torch.tensor(pretrained))
        self.register_buffer("accuracy", torch.zeros(3))

    def D_is_due(self, step):
        return step % self.g_steps == 0 or self.accuracy.min() < .9

    def note(self, step, real, fake, y_d, head):
        """real, fake: D's outputs; y_d: [B]."""
        if step % (4 * self.g_steps) == 0:
            right = realness(real, head) > 0, realness(fake, head) < 0, real[1].argmax(1) == y_d
            self.accuracy.lerp_(torch.stack([r.float().mean() for r in right]).cpu(), .2)


def validate(cfg):
    """Raises UserError for settings that do not fit together."""
    positive = ("width", "feature", "people", "copies", "images_per_subject", "g_steps")
    for name, fits, expected in (*((name, getattr(cfg, name) > 0, "more than 0") for name in positive),
                                 ("people", cfg.people > 1 or cfg.data, "at least 2"), ("drop", cfg.drop < 1, "a share below 1"),
                                 *((name, getattr(cfg, name) <= 1, "a share, at most 1") for name in ("spoilt", "pretrain")),
                                 ("image_size", cfg.image_size % 16 == 0, "a multiple of 16"),
                                 ("load_size", load_size(cfg) >= cfg.image_size, f"at least --image-size {cfg.image_size}"),
                                 ("batch_size", cfg.batch_size // max(1, cfg.images_per_subject) > 1,
                                  f"at least {2 * cfg.images_per_subject}, two people: batch norm"),
                                 *((name, cfg.head == "tpami" or getattr(cfg, name) == 1, "1 with --head cvpr: a single softmax has no weights")
                                   for name in ("lambda_gan", "lambda_id"))):
        if not fits:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: expected {expected}")


def build(cfg, n_people, n_poses):
    """G and D, weights from N(0, .02), on cfg.device. D's last layer: the fewer its inputs, the larger, or it learns who far too slowly (ours)."""
    G, D = common.init_normal(Generator(cfg, n_poses)), common.init_normal(Discriminator(n_people, n_poses, cfg.feature, cfg.width))
    nn.init.normal_(D.fc.weight, std=.02 / cfg.width)
    for net in (G.enc, G.dec, D):
        prepare(net, cfg).to(memory_format=torch.channels_last)        # with batch norm a fourth faster, also on a processor
    return G, D


def draws(G, x, n_poses, cfg):
    """All that G draws of a batch of people x [B, n, 3, S, S]: pictures [M, 3, S, S], their codes [M], whose they are [M] (0 ... B - 1).

    One picture from every single feature, each in a pose of its own, and with n > 1 one from the fused feature: M = B n or B (n + 1).
    """
    B, n = x.shape[:2]
    f, w = G.encode(x.flatten(0, 1))
    who = torch.arange(B, device=x.device)
    features, whose = f, who.repeat_interleave(n)
    if n > 1:
        w = some_confidences(w.unflatten(0, (B, n)), cfg.drop)
        features, whose = torch.cat([f, fuse(f.unflatten(0, (B, n)), w)]), torch.cat([whose, who])                # [fusion]
    c = torch.randint(n_poses, (len(features),), device=x.device)
    z = torch.rand(len(features), cfg.noise, device=x.device) * 2 - 1
    return G.decode(features, code(c, n_poses, cfg), z), c, whose


def code(c, n_poses, cfg):
    """Indices [B] -> one-hot [B, N_p]; all zero without pose code."""
    return F.one_hot(c, n_poses).float() * cfg.pose_code


def hazy(x, std):
    """x with normal noise: in it pictures that differ in every detail still look alike, so D cannot win before G can draw."""
    return x + std * torch.randn_like(x) if std else x


def train(cfg):
    """The papers' training, step by step. Writes cfg.run; returns G (on cfg.device)."""
    validate(cfg)
    torch.manual_seed(cfg.seed)
    album, strangers = make_data(cfg)
    data, n_poses = Faces(cfg, album), len(album.poses)
    G, D = build(cfg, len(album.people), n_poses)
    about = {"people": sorted(album.people), "poses": list(album.poses)}
    pretrained = 0 if cfg.weights and cfg.pretrain < 1 else int(cfg.pretrain * cfg.steps)          # weights are pretrained
    balance, who = Balance(cfg.g_steps, pretrained), nn.Linear(G.n_f, len(album.people)).to(cfg.device)          # `who`: of --pretrain
    if cfg.weights:
        state, before = G_of(cfg.weights)
        grown = {k: torch.cat([v, own[-1:].cpu()]) if (own := G.state_dict().get(k, v)).shape[:1] == (len(v) + 1,) else v
                 for k, v in state.items() if v.dim()} if G.multi else {}                  # a single-image model has no confidence yet
        common.load_weights(G, state | grown, cfg.weights)
        about["people"] = sorted({*album.people, *before["about"]["people"]})              # never to be tested on
    say(f"{len(album.who)} pictures of {len(album.people)} people, poses {' '.join(album.poses)}; {cfg.images_per_subject} a person in a batch; "
        f"G {common.n_parameters(G):,} parameters, D {common.n_parameters(D):,}")
    opt_G = torch.optim.Adam([*G.parameters(), *who.parameters()], cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam(D.parameters(), cfg.lr, cfg.betas, fused=True)
    run = Run(cfg, {"G": G, "D": D, "who": who, "balance": balance}, {"G": opt_G, "D": opt_D}, data, HEALTH, about)

    first = cfg.steps if cfg.pretrain == 1 else balance.pretrained.item()
    log, real, fake = {}, None, None
    for step, (x, x_seen, y_d, y_p) in run.batches(cfg.batch_size):                        # [B, n, 3, S, S], twice; [B]; [B, n]
        run.learning_rate(cfg.lr * common.linear_decay(step, cfg.steps, cfg.decay_from))
        L, x_all, y_all, p_all = {}, x.flatten(0, 1), y_d.repeat_interleave(x.shape[1]), y_p.flatten()
        if step <= first:                                                                           # authors' code: a recogniser first
            L["softmax"] = loss_softmax(who(G.encode(x_seen.flatten(0, 1))[0]), y_all)                            # [softmax]
            run.update("G", L["softmax"])
            _, d_real, p_real = D(x_all)                               # ours: D too, or the encoder forgets with a teacher who knows nothing yet
            L["D_id"], L["D_pose"] = cfg.lambda_id * loss_id_D(d_real, y_all), cfg.lambda_pose * loss_pose_D(p_real, p_all)   # T(5), T(6)
            run.update("D", L["D_id"] + L["D_pose"])
            log = {"D_pose": (p_real.argmax(1) == p_all).float().mean()}                   # does D itself know the poses?
        else:
            log = log if step > first + 1 else {}
            x_hat, c, whose = draws(G, x_seen, n_poses, cfg)                               # in poses that have nothing to do with the input's
            haze = cfg.d_noise * common.linear_decay(step, cfg.steps, 0)

            # 1. D: real faces are real, this person, this pose; drawn ones are drawn: nothing else is asked of them -- T(7)
            if balance.D_is_due(step):
                real, fake = D(hazy(x_all, haze)), D(hazy(x_hat.detach(), haze))
                if cfg.head == "tpami":
                    L["D_gan"] = cfg.lambda_gan * loss_gan_D(real[0], fake[0])                                    # T(4)
                    L["D_id"] = cfg.lambda_id * loss_id_D(real[1], y_all)                                         # T(5)
                    L["D_pose"] = cfg.lambda_pose * loss_pose_D(real[2], p_all)                                   # T(6)
                else:
                    L["D"] = loss_cvpr_D(real, fake, y_all, p_all, cfg.lambda_pose)                               # C(4)
                run.update("D", sum(L.values()))
                balance.note(step, real, fake, y_all, cfg.head)
                log["D_pose"] = (real[2].argmax(1) == p_all).float().mean()

            # 2. G: real, the person of the input, the pose asked for ---------------------------------------------- T(11)
            with frozen(D):
                shown, L_G = D(hazy(x_hat, haze)), {}
                if cfg.head == "tpami":
                    L_G["gan"] = cfg.lambda_gan * loss_gan_G(shown[0])                                            # T(8)
                    L_G["id"] = cfg.lambda_id * loss_id_G(shown[1], y_d[whose])                                   # T(9)
                    L_G["pose"] = cfg.lambda_pose * loss_pose_G(shown[2], c)                                      # T(10)
                else:
                    L_G["G"] = loss_cvpr_G(shown, y_d[whose], c, cfg.lambda_pose)                                 # C(5)
                run.update("G", sum(L_G.values()))
            L |= L_G
        log |= {f"L_{name}": value.detach() for name, value in L.items()}

        # 3. What happened --------------------------------------------------------------------------------------------
        if run.logs(step):
            run.log(step, **report(G, strangers, cfg, real, fake) if step > first else {"health": "ok"},           # nothing is drawn before
                    **dict(zip(("D_real", "D_fake", "D_id"), balance.accuracy, strict=True)), **log)
        if run.samples(step):
            run.sample(step, sample_grid(G, strangers, cfg))
    return G


def realness(out, head):
    """How real D finds pictures: log-odds [B] of T's first output, or of "any person" against C's last class."""
    return out[0][:, 0] if head == "tpami" else out[1].logsumexp(1) - out[0][:, 0]


def noise(n, cfg):
    """The same z for every picture of a sheet, so that only the code differs."""
    return (torch.rand(cfg.noise, generator=torch.Generator().manual_seed(1)) * 2 - 1).to(cfg.device).expand(n, -1)


def turned(G, f, n_poses, cfg):
    """Features [n, n_f] drawn in every pose: [n, N_p, 3, S, S]."""
    c = torch.arange(n_poses, device=f.device).repeat(len(f))
    return G.decode(f.repeat_interleave(n_poses, 0), code(c, n_poses, cfg), noise(len(c), cfg)).unflatten(0, (len(f), n_poses))


def some(album, n, cfg):
    """Indices of n held-out pictures, each of another person, the same every time: toy faces unspoilt, their poses from left to right."""
    people = torch.linspace(0, len(album.people) - 1, min(n, len(album.people))).round().long()
    index = []
    for k, person in enumerate(people):
        mine = ((album.who == person) & album.clean).nonzero()[:, 0]
        index.append(mine[min(len(mine) - 1, k * len(mine) // len(people))])
    return torch.stack(index)


def truth(album, index, pose, cfg):
    """The toy faces `index` truly in pose [n] (or one for all), all else equal: [n, 3, S, S]."""
    yaw = torch.tensor(YAWS, dtype=torch.float32)[pose].to(cfg.device).expand(len(index))
    return middle(toyfaces.render(album.faces[index.to(album.faces.yaw.device)].set(yaw=yaw), load_size(cfg)), cfg)


@torch.no_grad()
def report(G, album, cfg, real, fake, n=8):
    """The health word, and the numbers behind it, on held-out pictures (in units of the full range, 0 ... 1). G is left in training mode.

    turn: how much drawings of one input differ from code to code; people: how much those of one code differ from person to
    person; apart: how much the inputs differ among themselves, the yardstick of both. real, fake: what D said in its last step.
    Toy faces: error and baseline, L1 to the true face in every pose, of G and of the input itself.
    """
    G.eval()
    index, word = some(album, n, cfg), "ok"
    x = pictures(album, index, cfg)
    y = turned(G, G.encode(x)[0], len(album.poses), cfg)
    values = {"turn": (y - y.mean(1, keepdim=True)).abs().mean() / 2, "people": (y - y.mean(0, keepdim=True)).abs().mean() / 2,
              "apart": (x - x.mean(0, keepdim=True)).abs().mean() / 2}
    if album.faces is not None:
        true = common.once(album, "true", lambda: torch.stack([truth(album, index, k, cfg) for k in range(len(album.poses))], 1))
        values |= {"error": (y - true).abs().mean() / 2, "baseline": (x[:, None] - true).abs().mean() / 2}
    if real is not None and (sure := realness(real, cfg.head)).min() > (unsure := realness(fake, cfg.head)).max() and sure.mean() - unsure.mean() > 15:
        word = "D-won"                                                 # first: of this the other two may come
    elif values["turn"] < .15 * values["apart"]:
        word = "pose-ignored"
    elif values["people"] < .2 * values["apart"]:
        word = "identity-lost"
    G.train()
    return {"health": word} | values


@torch.no_grad()
def sample_grid(G, album, cfg, n=6):
    """Held-out people: input, and drawn in every pose (below toy faces' drawings: the truth)."""
    G.eval()
    index = some(album, n, cfg)
    x = pictures(album, index, cfg)
    columns = {"input": x}
    for k, drawn in enumerate(turned(G, G.encode(x)[0], len(album.poses), cfg).unbind(1)):
        columns[album.poses[k]] = drawn
    if album.faces is not None:
        under = {"input": torch.ones_like(x)} | {pose: common.once(album, (n, k), truth, album, index, k, cfg) for k, pose in enumerate(album.poses)}
        columns = {name: torch.stack([column, under[name]], 1).flatten(0, 1) for name, column in columns.items()}
    G.train()
    return grid(list(columns.values()), list(columns), scale=max(1, 96 // x.shape[-1]))


# ==================================================================================================== evaluation

def G_of(path):
    """(the generator's weights, the whole checkpoint) of a checkpoint of ours."""
    saved = common.load_checkpoint(path)
    common.check_paper(saved, path, Path(__file__).stem)
    return saved["nets"].get("G", {}), saved


@common.reads_checkpoint
def trained(cfg):
    """(G, about) of cfg.run or cfg.weights: about holds the people trained on and the poses. cfg takes over what G and its data depend on."""
    path = cfg.weights or Path(cfg.run) / "last.pt"
    state, saved = G_of(path)
    common.adopt(cfg, saved, ("image_size", "load_size", "feature", "noise", "width", "upsampling", "images_per_subject",
                              "pose_code", "pretrain", *(() if cfg.data else ("test_people",))))
    G, _ = build(cfg, 1, len(saved["about"]["poses"]))
    common.load_weights(G, state, path)
    return G.eval(), saved["about"]


@torch.no_grad()
def encode_all(G, album, cfg):
    """f [N, n_f] and w [N] of all pictures of an album, on the CPU."""
    out = [G.encode(pictures(album, k, cfg)) for k in torch.arange(len(album.who)).split(128)]
    return torch.cat([f for f, _ in out]).cpu(), torch.cat([w for _, w in out]).cpu()


def gallery_of(album):
    """One picture a person: the first of those that are least turned. [n people] indices."""
    everyone = [(album.who == person).nonzero()[:, 0] for person in range(len(album.people))]
    return torch.stack([mine[album.yaw[mine].argmin()] for mine in everyone])


def identify(gallery, probes):
    """Rank 1 by cosine distance: index of the nearest gallery feature for each probe. [P, n_f], [M, n_f] -> [M]."""
    return (F.normalize(probes, dim=1) @ F.normalize(gallery, dim=1).T).argmax(1)


def verification_pairs(album, first, second, folds, g):
    """CFP's rule: people in folds, and for each person seven pairs of the same and seven of different people, all within the fold.

    first, second: which pictures [N] bool may stand on either side; returns a, b: indices, same: bool, fold. Fewer pictures, fewer pairs.
    """
    rows = []
    of = [[(side & (album.who == person)).nonzero()[:, 0].tolist() for side in (first, second)] for person in range(len(album.people))]
    for fold, people in enumerate(torch.arange(len(album.people)).tensor_split(folds)):
        for person in people.tolist():
            left, right = of[person]
            pairs = sorted({(min(i, j), max(i, j)) if left == right else (i, j) for i in left for j in right if i != j})
            rows += [(*pairs[k], True, fold) for k in torch.randperm(len(pairs), generator=g)[:7].tolist()]
            others = [(i, j) for other in people.tolist() if other != person for i in left for j in of[other][1]]
            rows += [(*others[k], False, fold) for k in torch.randperm(len(others), generator=g)[:min(7, len(pairs))].tolist()]
    return [torch.tensor(column) for column in zip(*rows, strict=True)] if rows else None


def official_pairs(album, root, kind):
    """CFP's own pairs of `kind` (FF or FP) among the people of an album, or None without Protocol/ or with fewer than two folds of them.

    Pair_list_F.txt and Pair_list_P.txt number the pictures; Split/FF/01 ... 10 hold same.txt and diff.txt, a line "a,b" for each
    pair: a of list F, b of list F or, for FP, of list P.
    """
    protocol = next((p for p in (root / "Protocol", root.parent / "Protocol", root.parent.parent / "Protocol") if p.is_dir()), None)
    if protocol is None or "frontal" not in album.poses:
        return None
    place = {(*path.parts[-3:-1], path.stem): k for k, path in enumerate(album.paths)}     # ("001", "frontal", "01") -> picture of the album

    def numbered(path):
        rows = (line.split() for line in common.text_of(path).splitlines() if line.strip())
        return {int(number): (*Path(file).parts[-3:-1], Path(file).stem) for number, file in rows}

    rows = []
    try:
        lists = [numbered(protocol / f"Pair_list_{letter}.txt") for letter in ("F", kind[1])]
        for fold, folder in enumerate(sorted((protocol / "Split" / kind).glob("[0-9]*"))):
            for same in (True, False):
                for line in common.text_of(folder / f"{'same' if same else 'diff'}.txt").split():
                    pair = [place.get(table[int(i)]) for table, i in zip(lists, line.split(","), strict=True)]
                    if None not in pair:
                        rows.append((*pair, same, fold))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{protocol}: not as CFP distributes it ({str(error).splitlines()[0]}); expected Pair_list_F.txt, Pair_list_P.txt, "
                        "Split/FF/01/same.txt; or leave Protocol/ out: pairs are then drawn by its rule") from None
    return [torch.tensor(column) for column in zip(*rows, strict=True)] if len({fold for *_, fold in rows}) > 1 else None


def verification(score, same, fold):
    """Are two pictures the same person? score: [M], higher = more alike; same: [M] bool; fold: [M].

    accuracy and std over the folds, each at the threshold that is best on the others (CFP's protocol); AUC; EER, the equal error rate.
    """
    score, same, fold = score.double().numpy(), same.numpy(), fold.numpy()

    def curve(mask):                                                   # at every threshold: same below it, different at or above it
        values, place = np.unique(score[mask], return_inverse=True)
        missed, passed = (np.concatenate([[0], np.bincount(place[same[mask] == kind], minlength=len(values)).cumsum()]) for kind in (True, False))
        between = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
        return between, missed, passed[-1] - passed

    accuracy = []
    for one in np.unique(fold):
        between, missed, let_in = curve(fold != one)
        accuracy.append(((score >= between[(missed + let_in).argmin()]) == same)[fold == one].mean())
    _, missed, let_in = curve(np.ones(len(fold), dtype=bool))
    missed, let_in = missed / max(1, same.sum()), let_in / max(1, (~same).sum())
    k = np.abs(missed - let_in).argmin()
    AUC = ((let_in[:-1] - let_in[1:]) * (2 - missed[1:] - missed[:-1])).sum() / 2
    return {"accuracy": float(np.mean(accuracy)), "std": float(np.std(accuracy)), "AUC": float(AUC), "EER": float((missed[k] + let_in[k]) / 2)}


def spearman(a, b):
    """Rank correlation; equal values share their mean rank. 0 where one side is constant."""
    ranks = []
    for v in (a, b):
        _, inverse, counts = np.unique(np.asarray(v, dtype=np.float64), return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    return float(np.corrcoef(*ranks)[0, 1]) if all(np.ptp(r) > 0 for r in ranks) else 0.


def pose_probe(f, pose, who):
    """How much of the pose can be read in f: accuracy of a linear classifier of the poses, learned on half of the people, tested on the others."""
    learn = who % 2 == 0
    x = (f - f[learn].mean(0)) / f[learn].std(0).clamp(min=1e-6)
    n = int(pose.max()) + 1
    W = torch.zeros(x.shape[1] + 1, n, requires_grad=True)
    optimiser = torch.optim.LBFGS([W], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = F.cross_entropy(x[learn] @ W[:-1] + W[-1], pose[learn]) + 1e-3 * W[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    W = W.detach()
    return ((x[~learn] @ W[:-1] + W[-1]).argmax(1) == pose[~learn]).float().mean().item()


def share(f, label):
    """Part of the variance of f [N, n_f] that lies between the means of the groups that share a label [N]."""
    means = torch.stack([f[label == k].mean(0) for k in label.unique()])[label.unique(return_inverse=True)[1]]
    return ((means - f.mean(0)).square().sum() / (f - f.mean(0)).square().sum()).item()


def sets_of(album, gallery, n, g, spoilt=None, each=20):
    """`each` sets of n pictures a person, without the gallery's: [M, n] indices, in random order. spoilt: how many of them are (toy faces)."""
    out = []
    for person in range(len(album.people)):
        mine = ((album.who == person) & (torch.arange(len(album.who)) != gallery[person])).nonzero()[:, 0]
        for _ in range(each):
            if spoilt is None:
                pick = mine[torch.randperm(len(mine), generator=g)[:n]]
            else:
                good = album.clean[mine]
                pick = torch.cat([part[torch.randperm(len(part), generator=g)[:k]] for part, k in ((mine[~good], spoilt), (mine[good], n - spoilt))])
            if len(pick) == n:
                out.append(pick[torch.randperm(n, generator=g)])
    return torch.stack(out) if out else torch.empty(0, n, dtype=torch.long)


def fusions(album, f, w, gallery, sets):
    """Rank 1 of sets [M, n] of pictures, each fused by plain mean; and if there are confidences also by them, and the most trusted one alone."""
    who, fused = album.who[sets[:, 0]], {"mean": f[sets].mean(1)}
    if (w < 1).any():
        best = sets.gather(1, w[sets].argmax(1, keepdim=True))[:, 0]
        fused |= {"by confidence": fuse(f[sets], w[sets]), "best one": f[best]}
    return {name: (identify(f[gallery], feature) == who).float().mean().item() for name, feature in fused.items()}


@torch.no_grad()
def rotation(cfg, G, album, f, gallery):
    """Toy faces: drawings against the true face in that pose. {pose: {measure: mean}} and the same for turns of 30 degrees or more.

    Input: for each pose and person one unspoilt picture at random, not the gallery's. Other: one of that person in that very pose, in another
    light and mood, which f does not hold either. Reached: a judge reads a yaw nearer to the pose asked for than to any other. Who:
    rank 1 of the drawing among the true gallery pictures, by an independent recogniser, as it does with true ones.
    """
    yaw_of, identity = (toyfaces.judge(kind, cfg.image_size, 2, cfg.device, cfg.cache)[0] for kind in ("yaw", "identity"))
    faces_known, g = identity(pictures(album, gallery, cfg)), torch.Generator().manual_seed(4)
    usable = album.clean & ~torch.isin(torch.arange(len(album.who)), gallery)
    inputs = torch.stack([mine[torch.randint(len(mine), (len(YAWS),), generator=g)] for person in range(len(album.people))
                          for mine in [(usable & (album.who == person)).nonzero()[:, 0]]])             # [people, N_p]
    rows, far, yaws = {}, [], torch.tensor(YAWS, device=cfg.device)
    for k, pose in enumerate(album.poses):
        index = inputs[:, k]
        x, true = pictures(album, index, cfg), truth(album, index, k, cfg)
        c = torch.full((len(index),), k, device=x.device)
        y = G.decode(f[index].to(x.device), code(c, len(album.poses), cfg), noise(len(index), cfg))
        other = torch.stack([mine[torch.randint(len(mine), (1,), generator=g)[0]] for person in range(len(album.people))
                             for mine in [(usable & (album.who == person) & (album.pose == k)).nonzero()[:, 0]]])
        turned_far, found = (torch.tensor(YAWS)[album.pose[index]] - YAWS[k]).abs() >= 30, {}
        for name, picture in (("", y), ("copy ", x), ("other ", pictures(album, other, cfg)), ("truth ", true)):
            found |= {name + "reached": ((yaw_of(picture)[:, None] - yaws).abs().argmin(1) == k).float(),
                      name + "L1": (picture - true).abs().flatten(1).mean(1) / 2,
                      name + "SSIM": common.ssim(picture, true),
                      name + "who": (identify(faces_known, identity(picture)).cpu() == album.who[index]).float()}
        rows[pose] = {name: value.mean().item() for name, value in found.items()}
        far.append({name: value.cpu()[turned_far] for name, value in found.items()})
    return rows, {name: torch.cat([values[name] for values in far]).mean().item() for name in found}


def measure(cfg, G, album):
    """All measures of one model on an album of strangers, as rows of a table. See `evaluate`."""
    G.eval()
    f, w = encode_all(G, album, cfg)
    gallery, g, toy = gallery_of(album), torch.Generator().manual_seed(5), album.faces is not None
    probe = album.clean & ~torch.isin(torch.arange(len(album.who)), gallery)
    right = identify(f[gallery], f) == album.who
    draws_too = toy and len(album.poses) == G.n_poses and cfg.pretrain < 1                 # a classifier's decoder knows nothing
    drawn, far = rotation(cfg, G, album, f, gallery) if draws_too else ({}, {})
    rows = {}
    for k, pose in enumerate(album.poses):
        mine = probe & (album.pose == k)
        if mine.any():
            rows[f"pose {pose}"] = {"rank-1": right[mine].float().mean().item(), "confidence": w[mine].mean().item(),
                                    **{name: v for name, v in drawn.get(pose, {}).items() if not name.startswith(("copy", "other", "truth"))}}
    rows["mean of the poses"] = {name: float(np.mean([row[name] for row in rows.values()])) for name in next(iter(rows.values()))}
    for name, prefix in (("turned by 30 and more", ""), ("the input instead", "copy "), ("another true picture", "other "), ("the true faces", "truth ")):
        if far:
            rows[name] = {k: far[prefix + k] for k in ("reached", "L1", "SSIM", "who")}
    if toy:
        known = f[album.clean], album.pose[album.clean], album.who[album.clean]
        rows["features"] = {"pose in f": pose_probe(*known), "share of the pose": share(*known[:2]), "share of who": share(*known[::2])}
    frontal, side = album.clean & (album.pose == album.frontal), album.clean & (album.yaw >= 60)
    for kind, second in (("FF", frontal), ("FP", side)):
        official = official_pairs(album, Path(cfg.data), kind) if cfg.data else None
        pairs = official or verification_pairs(album, frontal, second, min(10, len(album.people) // 2), g)
        if pairs and pairs[2].any() and not pairs[2].all():
            a, b = (F.normalize(f[k], dim=1) for k in pairs[:2])
            rows[f"verification {kind}" + ", CFP's pairs" * bool(official)] = verification((a * b).sum(1), *pairs[2:])
    for n in range(1, 7):
        sets = sets_of(album, gallery, n, g)
        if len(sets):
            rows[f"{n} pictures a person"] = fusions(album, f, w, gallery, sets)
    if toy:
        for n, k in ((1, 0), (1, 1), *((6, k) for k in range(5))):
            rows[f"{n} pictures, {k} spoilt"] = fusions(album, f, w, gallery, sets_of(album, gallery, n, g, k))
    if G.multi:
        rows["confidence against"] = {"yaw": spearman(w[album.clean], album.yaw[album.clean])}
        if toy:                                                        # each alone: a covered picture is not blurred, and no better for it
            blurred, covered = album.cover[:, 2] == 0, album.blur == 0
            rows["confidence against"] |= {"blur": spearman(w[blurred], album.blur[blurred]), "cover": spearman(w[covered], album.cover[covered, 2])}
    return rows


def evaluate(cfg):
    """Recognition and rotation, on people never trained on. Writes evaluation.json.

    rank-1: share of probes whose nearest gallery picture (one frontal picture a person, cosine of f) is of the same person, by
    pose (as on Multi-PIE); confidence: mean w. Verification: frontal-frontal and frontal-profile (toy: 60 degrees) as in
    CFP; with CFP's own pairs where Protocol/ is there and at least two of its folds are strangers, else with pairs drawn by the
    same rule. 1 to 6 pictures a person: rank-1 of features fused by confidence, by mean, or of the most trusted picture alone.
    Toy faces also: reached, L1, SSIM, who: see `rotation`; pose in f: see `pose_probe` (chance 1/9; it weighs every direction of f alike, the
    cosine does not), and what part of f's variance lies between poses and between people; spoilt pictures in a set;
    rank correlation of w with |yaw|, blur and cover. `reached` and `who` of the true faces show how much their judges err.
    """
    G, about = trained(cfg)
    _, album = make_data(cfg, about["people"])
    rows = measure(cfg, G, album)
    notes = f"{len(album.people)} people never trained on, {len(album.who)} pictures; chance of rank-1 {1 / len(album.people):.3f}"
    notes += f"; G {common.n_parameters(G):,} parameters"
    if cfg.data and not any("CFP's pairs" in row for row in rows):
        notes += "; pairs for verification drawn by CFP's rule (no Protocol/ of which two folds are strangers)"
    if not cfg.data:
        errors = [toyfaces.judge(kind, cfg.image_size, 2, cfg.device, cfg.cache)[1] for kind in ("yaw", "identity")]
        notes += f"; the judge of yaw errs by {errors[0]:.1f} degrees, that of identity has an equal error rate of {errors[1]:.3f}"
    return common.evaluation(cfg, rows, notes)


# ====================================================================================================== ablation

SEEDS = (0, 1, 2)
# The trainings of each part; a training that two parts need is done once.
PARTS = {
    "pose": {"single": {}, "classifier": dict(pretrain=1.)},
    "rotation": {"single": {}, "no pose code, no pose head": dict(pose_code=False, lambda_pose=0.), "no pose head": dict(lambda_pose=0.)},
    "fusion": {"single": {}, "multi": dict(images_per_subject=6)},
}


def _single(cfg):
    train(cfg)                                                         # and hand no network from one process to another


def _ablation_run(cfg):
    """One training of the ablation and its measures (in a process of its own on a CPU), as {"row: measure": number}."""
    rows = measure(cfg, train(cfg), make_data(cfg)[1])
    return {f"{row}: {name}": value for row, values in rows.items() for name, value in values.items()}


def ablate(cfg):
    """The papers' claims, on toy faces, three seeds; --part picks one. The thresholds stand here, and were set before running.

    pose      rank-1 against the same encoder trained as a softmax classifier for as many steps: at least 3 points better at 60
              degrees, at least 1 in the mean of the nine poses, above it in every seed; a linear probe reads the pose from f at least
              20 points worse.
    rotation  drawings reach the pose asked for in at least 80 % (without D's pose head, with and without pose code, at most 25 %), and
              at turns of 30 degrees and more are nearer to the true face than the input is.
    fusion    (the single-image model goes on with six pictures a person for as many steps) six pictures of which 2, 3 or 4 are spoilt: fused by
              confidence at least 1 point above the mean, and within 1 point of it with none spoilt; rank correlation of the confidence with
              blur and with |yaw| at most -0.5.

    Writes ablation.json, or ablation_<part>.json, and a .png beside it. An interrupted ablation continues.
    """
    validate(cfg)
    folder = common.ablation_folder(cfg)
    parts = list(PARTS) if cfg.part == "all" else [cfg.part]
    base = dataclasses.replace(cfg, fresh=False, part="all", images_per_subject=1, pose_code=True)
    jobs = {}
    for seed in SEEDS:
        for name, change in {name: change for part in parts for name, change in PARTS[part].items()}.items():
            jobs[name, seed] = dataclasses.replace(base, seed=seed, run=str(folder / f"{name.replace(',', '').replace(' ', '-')}-{seed}"), **change)
        if "fusion" in parts:
            jobs["multi", seed].weights = f"{jobs['single', seed].run}/last.pt"            # the single-image model goes on
    for one in jobs.values():
        validate(one)
    study = common.Ablation(jobs)
    for seed in SEEDS:                                                 # before the processes, which would all draw and train them
        make_data(dataclasses.replace(base, seed=seed))
    for kind in ("yaw", "identity"):
        toyfaces.judge(kind, cfg.image_size, 2, cfg.device, cfg.cache)
    if "fusion" in parts:
        common.in_parallel(_single, [jobs["single", seed] for seed in SEEDS], cfg.device)
    study.run(_ablation_run, cfg.device)
    values, row, claim = study.values, study.row, study.claim
    sides = [f"pose {pose}: rank-1" for pose in (-60, 60)]

    names = list(dict.fromkeys(name for name, _ in jobs))
    for name in names:
        row(f"{name}: rank-1 at |yaw|", mean=values(name, "mean of the poses: rank-1"), **{
            str(yaw): np.mean([values(name, f"pose {sign * yaw}: rank-1") for sign in (-1, 1)], axis=0) for yaw in (0, 15, 30, 45, 60)})
    for name in names:
        if name != "classifier":
            row(f"{name}: turned by 30 and more", **{k: values(name, f"turned by 30 and more: {k}") for k in ("reached", "who", "L1", "SSIM")})
        row(f"{name}: features", **{what: values(name, f"features: {what}") for what in ("pose in f", "share of the pose", "share of who")},
                                 **{kind: values(name, f"verification {kind}: accuracy") for kind in ("FF", "FP")})
        row(f"{name}: one picture", **{title: values(name, f"1 pictures, {k} spoilt: mean") for k, title in enumerate(("clean", "spoilt"))})
    for title in ("the input instead", "another true picture", "the true faces"):
        row(title, **{k: values(names[0], f"{title}: {k}") for k in ("reached", "who", "L1", "SSIM")})
    if "pose" in parts:
        plain, ours = (np.mean([values(name, side) for side in sides], axis=0) for name in ("classifier", "single"))
        plain_mean, ours_mean = (values(name, "mean of the poses: rank-1") for name in ("classifier", "single"))
        leak, ours_leak = (values(name, "features: pose in f") for name in ("classifier", "single"))
        claim("pose", "rank-1 at 60 degrees: the encoder as a classifier, DR-GAN", plain, ours, True,
              at_60_degrees_3_points_better=ours.mean() - plain.mean() >= .03, in_the_mean_1_point_better=ours_mean.mean() - plain_mean.mean() >= .01,
              above_in_every_seed=((ours > plain) & (ours_mean > plain_mean)).all())
        claim("leak", "pose read from f by a linear probe: the classifier's, DR-GAN's", leak, ours_leak, True,
              twenty_points_less_pose_in_f=leak.mean() - ours_leak.mean() >= .2)
    if "rotation" in parts:
        reached, blind, untold = (values(name, "mean of the poses: reached") for name in PARTS["rotation"])
        claim("rotation", "drawings that reach the pose asked for: without pose code and D's pose head, with", blind, reached, True,
              reached_in_80_per_cent=reached.mean() >= .8, without_pose_code_at_most_25_per_cent=blind.mean() <= .25,
              without_pose_head_at_most_25_per_cent=untold.mean() <= .25,
              nearer_to_the_truth_than_the_input=((values("single", "turned by 30 and more: L1") < values("single", "the input instead: L1"))
                                                  & (values("single", "turned by 30 and more: SSIM") > values("single", "the input instead: SSIM"))).all())
    if "fusion" in parts:
        fused = {(k, name): values("multi", f"6 pictures, {k} spoilt: {name}") for k in range(5) for name in ("by confidence", "mean", "best one")}
        for k in range(5):
            row(f"multi: 6 pictures, {k} spoilt", **{name: value for (spoilt, name), value in fused.items() if spoilt == k})
        mean, by_w = (np.mean([fused[k, name] for k in (2, 3, 4)], axis=0) for name in ("mean", "by confidence"))
        claim("fusion", "rank-1 of six pictures, 2 to 4 of them spoilt: fused by mean, by confidence", mean, by_w, True,
              by_confidence_1_point_better_and_within_1_where_none_is_spoilt=(
                  by_w.mean() - mean.mean() >= .01 and abs((fused[0, "by confidence"] - fused[0, "mean"]).mean()) <= .01),
              confidence_falls_with_blur=values("multi", "confidence against: blur").mean() <= -.5,
              confidence_falls_with_yaw=values("multi", "confidence against: yaw").mean() <= -.5)
        row("multi: confidence against", **{k: values("multi", f"confidence against: {k}") for k in ("yaw", "blur", "cover")})
    study.write(cfg)


# ===================================================================================================== inference

@torch.no_grad()
def infer(cfg, files, pose, to, out):
    """FILE...: pictures of one person. Writes <first>.png, a sheet of that person in every pose, and <first>.gif, the head turning.

    Several pictures are fused; each one's confidence is printed. --to: pictures of another person; one row for each of seven
    steps between the two features, and <first>_to_<second>.gif. Pictures are cut as those that were trained on.
    """
    groups = [[common.open_image(file) for file in group] for group in (files, to or [])]
    G, about = trained(cfg)
    poses, L = about["poses"], load_size(cfg)
    wanted = poses if pose is None else pose
    for one in wanted:
        if one not in poses:
            raise UserError(f"--pose {one}: this model draws {', '.join(poses)}")
    features, inputs = [], []
    for names, photos in zip((files, to or []), groups, strict=True):
        if photos:
            cut = [common.crop(photo, *face_square(Path(name), photo), L) for name, photo in zip(names, photos, strict=True)]
            x = middle(torch.stack([common.to_tensor(photo) for photo in cut]).to(cfg.device), cfg)
            f, w = G.encode(x)
            for name, photo, one in zip(names, photos, w, strict=True):
                print(f"{name}: {photo.width} x {photo.height}, {'square around the fiducials' if fiducials_of(Path(name)) else 'central square'}"
                      + (f", confidence {one:.3f}" if G.multi else ""))
            features.append(torch.cat([f, fuse(f[None], w[None])])), inputs.append(x)
    blank = torch.ones_like(inputs[0][:1])
    if to:                                                             # from one fused feature to the other
        t = torch.linspace(0, 1, 7, device=cfg.device)[:, None]
        f = features[0][-1:] * (1 - t) + features[1][-1:] * t
        first = torch.cat([inputs[0][:1], blank.expand(5, -1, -1, -1), inputs[1][:1]])
    else:                                                              # each picture alone and, below, all of them fused
        f, first = (features[0], torch.cat([inputs[0], blank])) if len(files) > 1 else (features[0][:1], inputs[0])
    y = turned(G, f, len(poses), cfg)[:, [poses.index(one) for one in wanted]]
    folder = Path(out or Path(cfg.run) / "inferred")
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(files[0]).stem + (f"_to_{Path(to[0]).stem}" if to else "")
    scale = max(1, 96 // cfg.image_size)
    grid([first, *y.unbind(1)], ["input", *wanted], scale).save(folder / f"{name}.png")
    print(folder / f"{name}.png")
    shown = y.transpose(0, 1)[:, :, None] if to else y[-1][:, None, None]                      # [poses, steps or 1, 1, 3, S, S]
    front = next((wanted.index(one) for one in ("0", "frontal") if one in wanted), len(wanted) // 2)
    frames = list(shown[front]) if to else list(shown.flatten(1, 2))
    frames = frames + frames[-2:0:-1]
    common.write_gif([grid([frame], None, 2 * scale) for frame in frames], folder / f"{name}.gif", 160)
    print(folder / f"{name}.gif")


if __name__ == "__main__":
    common.cli(__name__)
