"""PairedCycleGAN: putting on someone else's make-up, and taking it off.

Huiwen Chang, Jingwan Lu, Fisher Yu, Adam Finkelstein. "PairedCycleGAN: Asymmetric Style Transfer for Applying
and Removing Makeup", CVPR 2018. The authors published neither code nor data. Readers' questions are answered
in notebooks/05_pairedcyclegan.ipynb.

The idea. Two functions that are not alike: G(x, y) puts the make-up of the reference y on the bare face x and
needs both; F(y) takes make-up off and needs one. Taken off again, the bare face must be found. And G, given
the reference's own bare face, and the first result as reference, must give the reference back; for that the
style has to be in the first result. A discriminator D_S looks at two faces and says whether they wear the
*same* make-up. It learns that from pairs made by warping the reference onto the source, W(x, y): nearly the
right colours, the wrong face.

The claim. CycleGAN learns one look for all; here the reference is followed, and D_S makes its detail follow.

Equations (the paper's order; its numbers we could not confirm); L in `train_region` is their weighted sum:
    [L_G] adversarial, made-up faces
    [L_F] adversarial, bare faces
    [L_I] identity: the bare face again
    [L_S] style: the reference again
    [L_P] pairs: the same make-up?
    [L_R] sparsity of the change

Run it:
    python pairedcyclegan.py --train                                    toy faces, one G for the whole face
    python pairedcyclegan.py --train --regions parts --run runs/parts   eyes, lips and skin by three pairs
    python pairedcyclegan.py --train --data MT --run runs/mt            photographs, with maps or .pts files
    python pairedcyclegan.py --evaluate                                 colours, edges, identity, removal
    python pairedcyclegan.py --ablate --part style                      with and without D_S, three seeds
    python pairedcyclegan.py --infer me.jpg --reference star.jpg        also --strength .5
    python pairedcyclegan.py --infer star.jpg --remove                  the other way

Differs from the paper, because:
    regions     the paper's come from face parsing, eyes in circles; here squares placed upright by landmarks
    skin        its network sees the whole face here; eyes and lips are laid over it
    W           toned, make-up and all, by the ratio of the two skins; the paper's recipe may blend by Poisson
    blending    the paper pastes by Poisson's equation; here G's change is added, where make-up can be
    warm-up     the paper takes F from a CycleGAN; here F learns first, with a G that sees no reference
    together    the paper trains F and G in turns after the warm-up; here one step moves both
    logarithms  as in the paper, but G and F minimise the usual non-saturating form
Unknown, so ours: widths, learning rate, batch size, mirroring and turning, the weights' ramp; that D_Y is
not shown W as false. Faces are drawn at random in every step.
"""
import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

import common
from common import PatchGAN, ResidualBlock, conv_block, linear_decay
from lab import UserError, say, toyfaces, toysets
from lab.cli import cli
from lab.files import load_weights, out_folder, read_checkpoint, reads_checkpoint
from lab.formats import makeup as formats, unused
from lab.images import decode_all, draw, grid, picture_size, report_found
from lab.machine import resolve_device
from lab.run import Run, Settings, autocast, choice, frozen, logged, require, restore_config, to_device
from lab.warp import (REGIONS, Photo, blended, disc, lay, look, loose_squares, make_up_area, pixels, place,
                      skin_colour, square_size, thin_plate)


@dataclass
class Config(Settings):
    """The paper's recipe, as far as it is known."""
    # data
    image_size: int = 256             # ours: the paper's faces have 400 px or more; its crops are not known
    load_size: int = 0                # ours: side of stored pictures; 0 = 5/4 of image_size, for parts 7/4
    people: int = 2000                # ours: toy people without make-up, and as many others with
    pose: float = .25                 # ours: range of the toy poses; 1 = yaw up to 60 degrees
    variety: float = 1.               # ours: how much skin, light and wall of toys differ; 0 = not at all
    bold: bool = False                # ours: toy lips and lids of any hue, opaque; no moles, no lines of age
    regions: str = choice("parts", "face")   # the paper: parts; face = one G for the whole face
    # networks
    width: int = 64                   # ours: a public port's; the paper's is not known
    d_width: int = 64                 # 70 x 70 PatchGAN's
    asymmetric: bool = True           # the paper: G sees x and y; False = x alone, CycleGAN (ablation)
    # losses
    lambda_adv: float = .1            # the paper, as a public port quotes it: [L_G], [L_F] and [L_P] at first
    lambda_adv_end: float = .5        # the paper, as a public port quotes it: ... at the end
    lambda_P: float = 1.              # ours: [L_P] times this as well; 0 = no D_S (ablation)
    lambda_I: float = 1.              # the paper, as a public port quotes it
    lambda_S: float = 1.              # the paper, as a public port quotes it; 0 = ablation
    lambda_R: float = .1              # the paper, as a public port quotes it
    mismatch: bool = False            # ours, off: D_S also sees false pairs, W(x, y) beside another reference
    noise: float = 0.                 # ours, off: std of noise between the two stages, against hidden signals
    pairs: str = choice("warp", "true")      # the paper: warp; true = toy faces only, the truth itself
    # training
    warm_up: float = .1               # ours: share of the steps for F first, and again as much for G alone
    ramp_from: float = .25            # ours (unconfirmed: 50 of 200 epochs), of all steps: then the ramp
    epochs: int = 200                 # ours (unconfirmed: 200)
    steps: int = 0                    # ours: 0 = epochs
    batch_size: int = 1               # ours: CycleGAN's
    lr: float = 1e-4                  # ours: unconfirmed as the paper's
    betas: tuple = (.5, .999)         # CycleGAN
    decay_from: float = 1.            # ours: constant; below 1: from this share of the steps on linear to 0
    part: str = choice("all", "style", "removal", "pairs", "regions")    # ours: of --ablate


# Minutes on a processor. All of it is ours.
SMALL = dict(
    image_size=64, width=16, d_width=16,    # a quarter of the paper's size and widths
    regions="face",                         # three networks take half as long again
    people=1000, variety=.3, bold=True,     # between very different skins W has the wrong colours
    batch_size=2, mismatch=True,            # else D_S may tell W from G by its seams alone
    steps=4000, lr=3e-4, decay_from=.5,     # few steps, so large ones
    lambda_adv=.3, lambda_adv_end=.3,       # for few steps heavier at first; as it rose, skins got ripples
    lambda_R=1., noise=.1,                  # else G tints the whole picture and F takes the tint off
)
# Minutes on a GPU, hours on two cores. All of it is ours.
MEDIUM = SMALL | dict(image_size=128, width=32, d_width=32, batch_size=4, people=1500, steps=3500)
INFER_FLAGS = {
    "--reference": dict(nargs="+", default=[], metavar="FILE", help="faces whose make-up is wanted"),
    "--remove": dict(action="store_true", help="take the make-up off instead"),
    "--strength": dict(type=float, default=1., metavar="S", help="0: nothing changes ... 1: as drawn"),
    "--out": dict(default="", metavar="DIR", help="where to write (default: inferred/ in the run folder)"),
}
HEALTH = {"style-ignored": "the same make-up whatever the reference",
          "copying": "output hardly differs from the bare face", "nan": "a loss is not finite"}


# ============================================================================================== data

class Album:
    """Pictures of faces. images: uint8 [N, 3, L, L]; anchors: [N, 30, 2] in their pixels, see lab.warp.

    skin: [N, 3], see skin_colour; faces: of toy pictures, the toyfaces.Face.
    """

    def __init__(self, images, anchors, faces=None):
        self.images, self.anchors, self.faces = images, anchors, faces
        parts = torch.arange(len(images)).split(64)
        self.skin = torch.cat([skin_colour(self.pictures(k), anchors[k.to(anchors.device)]) for k in parts])

    def __len__(self):
        return len(self.images)

    def pictures(self, index):
        return draw(self.images, index, self.anchors.device)


class Pairs:
    """Bare faces and made-up ones (toy faces: of other people), cut to one region.

    sample(B): x, y, w [B, 3, s, s]. x is bare, y made up; w is y's make-up in x's place, warped or (toy
    faces, pairs "true") as it truly is on x.
    """

    def __init__(self, cfg, bare, made, region):
        self.cfg, self.bare, self.made, self.region = cfg, bare, made, region
        self.size = square_size(cfg.image_size, region)
        self.generator = torch.Generator().manual_seed(cfg.seed)

    def __len__(self):
        return len(self.bare) + len(self.made)

    def view(self, pictures, anchors, mirror=None, turn=None):
        """The region of pictures [B, 3, L, L]: (squares [B, 3, s, s], anchors in them)."""
        inner, to_picture, _ = place(anchors, self.region, self.size, mirror, turn)
        where = to_picture(pixels(self.size, self.size, anchors.device))
        return look(pictures, where, self.size), inner

    def cut(self, album, index, mirror=None, turn=None):
        anchors = album.anchors[index.to(album.anchors.device, non_blocking=True)]
        return self.view(album.pictures(index), anchors, mirror, turn)

    def warped(self, i, j, mirror=None, turn=None):
        """W(x, y): made[j] bent so that its anchors fall on those of bare[i], blended in. [B, 3, s, s]"""
        s, (x, x_inner) = self.size, self.cut(self.bare, i, mirror, turn)
        on_i, on_j = (k.to(x.device, non_blocking=True) for k in (i, j))
        y_inner, to_picture, _ = place(self.made.anchors[on_j], self.region, s, mirror, turn)
        where = thin_plate(x_inner, y_inner)(pixels(s, s, x.device).expand(len(x), -1, -1))
        bent = look(self.made.pictures(j), to_picture(where), s)
        mask = make_up_area(x_inner, s)
        mask = mask if self.region in ("face", "skin") else mask * disc(s, x.device)
        return blended(x, bent, mask, self.bare.skin[on_i] / self.made.skin[on_j])

    def true(self, i, j, mirror=None, turn=None):
        """The bare toy faces i, truly wearing the make-up of the faces j. [B, 3, s, s]"""
        i, j = i.to(self.cfg.device), j.to(self.cfg.device)
        faces = self.bare.faces[i].take(self.made.faces[j], toyfaces.MAKEUP)
        pictures = toyfaces.render(faces, self.bare.images.shape[-1])
        return self.view(pictures, self.bare.anchors[i], mirror, turn)[0]

    def sample(self, batch_size):
        g, device = self.generator, self.cfg.device
        i, j = (torch.multinomial(torch.ones(len(album)), batch_size, batch_size > len(album), generator=g)
                for album in (self.bare, self.made))                   # nobody twice, for mismatched pairs

        def one_for_all(low, high):                                    # or D_S would know a false pair by it
            value = torch.empty(1).uniform_(low, high, generator=g)
            return value.to(device, non_blocking=True).expand(batch_size)

        mirror = one_for_all(-1, 1) > 0
        turn = one_for_all(-15, 15) if self.region == "eyes" else None           # ours: eyes turn, too
        x, y = self.cut(self.bare, i, mirror, turn)[0], self.cut(self.made, j, mirror, turn)[0]
        pair = self.true if self.cfg.pairs == "true" else self.warped
        return x, y, pair(i, j, mirror, turn) if self.cfg.lambda_P else x        # without D_S nobody needs w


TRAIN_SEED, TEST_SEED, TEST_PEOPLE = 20_000, 50_000, 40                # other seeds draw other people


def load_size(cfg):
    """Side of the stored pictures: a face in its square is then about as large as it is stored."""
    return cfg.load_size or cfg.image_size * (7 if cfg.regions == "parts" else 5) // 4


def toy_albums(cfg, test=False):
    """(bare, made) of different people."""
    n, seed = (TEST_PEOPLE, TEST_SEED) if test else (cfg.people, TRAIN_SEED + 10 * cfg.seed)
    albums, L = [], load_size(cfg)
    for made in (False, True):
        faces = toysets.made_up(cfg, n, seed + 2 * made, made)
        points = toyfaces.landmarks(faces, L).cpu()
        anchors = torch.stack([formats.anchors_of_points(p) for p in points]).to(cfg.device)
        albums.append(Album(toyfaces.images(cfg, faces, L), anchors, faces))
    return albums


def scan(cfg):
    """What is under cfg.data: lists `images`, `made`, `annotations`, `test`, and what --check prints."""
    return formats.scan(Path(cfg.data)) | {"bytes_per_image": 3 * load_size(cfg) ** 2}


def photographs(cfg, test):
    """(bare, made) of the training or the test part of cfg.data: loose squares around faces, decoded once."""
    found, anchors = scan(cfg), {}
    report_found(found, cfg.skip_bad)
    mine = [k for k, is_test in enumerate(found["test"]) if is_test == test]

    def locate(n):
        return formats.anchors_of(found["annotations"][mine[n]], picture_size(found["images"][mine[n]]))

    decode_all(mine, locate, anchors, cfg.skip_bad)
    albums = []
    for kind in (0, 1):
        keep = sorted(n for n in anchors if found["made"][mine[n]] == kind)
        if not keep:
            which, part = ("without", "with")[kind], ("training", "test")[test]
            raise UserError(f"{cfg.data}: no picture {which} make-up can be used in the {part} part")
        points, files = torch.stack([anchors[n] for n in keep]), [found["images"][mine[n]] for n in keep]
        images, inner = loose_squares(cfg, files, points, load_size(cfg))
        albums.append(Album(images, inner.to(cfg.device)))
    return albums


def make_data(cfg, region, test=False):
    return Pairs(cfg, *(photographs(cfg, test) if cfg.data else toy_albums(cfg, test)), region)


# ========================================================================================== networks

class Generator(nn.Module):
    """G (inputs=2: source and reference) and F (inputs=1): the source plus the change that is drawn.

    A stem for each picture, residual blocks of dilation 1, 2, 4, a convolution of dilation 2 against the grid
    that these leave, and the change. No U-Net: its skips assume x and y aligned to the pixel. 1,055,491
    parameters, G and F alike. forward(x [B, 3, H, W], y or nothing) -> [B, 3, H, W], in [-1, 1].
    """

    def __init__(self, inputs=2, width=64):
        super().__init__()
        w, act, norm, reflect = 2 * width, nn.ReLU(), "instance", dict(padding_mode="reflect")
        self.stems = nn.ModuleList(nn.Sequential(*conv_block(3, w // inputs, 7, 1, 3, norm, act, **reflect))
                                   for _ in range(inputs))
        self.trunk = nn.Sequential(
            *(ResidualBlock(w, **reflect, dilation=d) for d in (1, 2, 4)),
            *conv_block(w, w, 3, 1, 2, norm, act, **reflect, dilation=2),
            *conv_block(w, 3, 3, 1, 1, act=nn.Tanh(), **reflect))

    def forward(self, x, *reference):
        pictures = (x, *reference)[:len(self.stems)]                   # CycleGAN's G looks at no reference
        maps = [stem(picture) for stem, picture in zip(self.stems, pictures, strict=True)]
        change = self.trunk(torch.cat(maps, 1))
        return (x + change.float()).clamp(-1, 1)

    def receptive_field(self):
        """Side of the square that one output pixel sees: 41. A colour 21 px away is out of reach."""
        return common.receptive_field(nn.Sequential(self.stems[0], self.trunk))


def build(cfg):
    """G, F, D_X, D_Y, D_S; weights from N(0, .02). D_X and D_Y have 2,764,737 parameters, D_S 2,767,809."""
    widths = [cfg.d_width * min(2 ** k, 8) for k in range(4)]
    Ds = [PatchGAN(channels, widths, (2, 2, 2, 1), norm="instance") for channels in (3, 3, 6)]
    nets = Generator(1 + cfg.asymmetric, cfg.width), Generator(1, cfg.width), *Ds
    return [common.init_normal(net) for net in nets]


# ============================================================================================ losses
# The D's maximise, G and F minimise what the paper writes. Here all minimise: D's sign is turned, and G and F
# have the non-saturating -log D(fake) for log(1 - D(fake)) (Goodfellow et al. 2014). Given are D's scores, of
# any shape, or pictures. || . ||_1: mean over batch, channels and pixels.

def loss_G_D(real, fake):
    """[L_G]  E_y[log D_Y(y)] + E_{x,y}[log(1 - D_Y(G(x, y)))], D's side"""
    return common.vanilla_D(real, fake)


def loss_G_G(fake):
    """[L_G]  G's side: -E log D_Y(G(x, y)). Weight: lambda_adv"""
    return common.vanilla_G(fake)


def loss_F_D(real, fake):
    """[L_F]  E_x[log D_X(x)] + E_y[log(1 - D_X(F(y)))], D's side"""
    return common.vanilla_D(real, fake)


def loss_F_F(fake):
    """[L_F]  F's side: -E log D_X(F(y)). Weight: lambda_adv"""
    return common.vanilla_G(fake)


def loss_I(x, x_back):
    """[L_I]  E ||F(G(x, y)) - x||_1: the bare face is found again. Weight: lambda_I"""
    return (x_back - x).abs().mean()


def loss_S(y, y_back):
    """[L_S]  E ||G(F(y), G(x, y)) - y||_1: the reference again; source F(y), style that of the *result*.

    So the result must carry the style. (L_I = L_S = 0 without any change: D forbids it.) Weight: lambda_S
    """
    return (y_back - y).abs().mean()


def loss_P_D(real, fake, other=None):
    """[L_P]  E[log D_S(y, W(x, y))] + E[log(1 - D_S(y, G(x, y)))], D's side

    W wears the same make-up, G's result not yet. real: scores of (y, W); fake: of (y, G(x, y)). other, ours:
    of (another reference, W); then half of the false pairs are these, and to look at W alone is not enough.
    """
    return common.vanilla_D(real, fake if other is None else torch.cat([fake, other]))


def loss_P_G(fake):
    """[L_P]  G's side: -E log D_S(y, G(x, y)). Weight: lambda_adv, times lambda_P"""
    return common.vanilla_G(fake)


def loss_R(x, y_fake):
    """[L_R]  E ||G(x, y) - x||_1: as little change as will do. Weight: lambda_R"""
    return (y_fake - x).abs().mean()


# ========================================================================================== training

def validate(cfg):
    """Raises UserError for settings that do not fit together."""
    for name in ("width", "d_width", "people"):
        require(cfg, name, getattr(cfg, name) > 0, "at least 1")
    S, truth = cfg.image_size, "warp with --data: only toy faces have a truth"
    require(cfg, "image_size", S % 2 == 0 and S >= 48, "an even number, at least 48")
    require(cfg, "load_size", load_size(cfg) >= S, f"at least --image-size {S}")
    require(cfg, "epochs", cfg.epochs or cfg.steps, "at least 1, or --steps")
    require(cfg, "pairs", cfg.pairs == "warp" or not cfg.data, truth)
    require(cfg, "variety", cfg.variety <= 1, "at most 1")
    require(cfg, "mismatch", cfg.batch_size > 1 or not cfg.mismatch,
            "--batch-size 2 or more, for another reference in the batch; or --no-mismatch")
    require(cfg, "warm_up", cfg.warm_up <= .5, "at most 0.5")
    require(cfg, "ramp_from", cfg.ramp_from <= 1, "at most 1")


def regions_of(cfg):
    return ("skin", "eyes", "lips") if cfg.regions == "parts" else ("face",)


def train(cfg):
    """A G and an F for each region, one by one. Writes cfg.run/<region>; returns {region: (G, F)}."""
    validate(cfg)
    resolve_device(cfg)
    if cfg.weights:
        raise UserError("--weights: training starts from scratch; the flag is for --evaluate and --infer")
    for region in set(REGIONS) - set(regions_of(cfg)):
        if not cfg.fresh and (Path(cfg.run) / region / "last.pt").exists():
            raise UserError(f"{cfg.run} holds a run of the region {region}, which is not one of --regions "
                            f"{cfg.regions}; give another --run folder, or --fresh")
    data, held_out = make_data(cfg, "face"), make_data(cfg, "face", test=True)
    for region in REGIONS if cfg.fresh else ():                        # all: later ones are not finished
        shutil.rmtree(Path(cfg.run) / region, ignore_errors=True)
    steps = cfg.steps or cfg.epochs * -(-max(len(data.bare), len(data.made)) // cfg.batch_size)
    nets = {}
    for region in regions_of(cfg):
        one = dataclasses.replace(cfg, run=str(Path(cfg.run) / region), steps=steps, fresh=False)
        parts = (Pairs(one, part.bare, part.made, region) for part in (data, held_out))
        nets[region] = train_region(one, *parts)
        if 0 < cfg.stop_after < steps:
            break
    return nets


def adversarial_weight(cfg, step):
    """lambda_adv until ramp_from, then linearly to lambda_adv_end."""
    share = max(0., step / cfg.steps - cfg.ramp_from) / max(1e-9, 1 - cfg.ramp_from)
    return cfg.lambda_adv + (cfg.lambda_adv_end - cfg.lambda_adv) * share


def train_region(cfg, data, held_out):
    """The paper's training, for one region. Writes cfg.run; returns G, F (on cfg.device)."""
    torch.manual_seed(cfg.seed)
    G, F, D_X, D_Y, D_S = to_device(cfg, *build(cfg))
    say(f"{data.region}: {data.size} px, {len(data.bare)} bare faces, {len(data.made)} made up; G and F of "
        f"{common.n_parameters(G):,} parameters see {G.receptive_field()} px, D's {D_X.receptive_field()}")
    of_Ds = [*D_X.parameters(), *D_Y.parameters(), *D_S.parameters()]
    opt_GF = torch.optim.Adam([*G.parameters(), *F.parameters()], cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam(of_Ds, cfg.lr, cfg.betas, fused=True)
    run = Run(cfg, data, {"G": G, "F": F, "D_X": D_X, "D_Y": D_Y, "D_S": D_S}, {"GF": opt_GF, "D": opt_D},
              HEALTH, about_of(data))
    shown = fixed_batch(held_out)
    warm_up_F(cfg, run, G, F, D_X, D_Y, D_S, opt_GF, opt_D, shown)
    warm_up_G(cfg, run, G, F, D_X, D_Y, D_S, opt_GF, opt_D, shown)

    for step, (x, y, w) in run.batches(cfg.batch_size):
        run.set_lr(cfg.lr * linear_decay(step, cfg.steps, cfg.decay_from))
        lambda_adv = adversarial_weight(cfg, step)

        # 1. G and F: put on, take off, and each again -----------------------------------------------------
        with frozen(D_X, D_Y, D_S), autocast(cfg):
            y_fake = G(x, y)
            x_fake = F(y)
            x_seen, y_goal = add_same_noise(cfg.noise, x_fake, y)           # ours: 0 in Config, on in SMALL
            y_seen, x_goal = add_same_noise(cfg.noise, y_fake, x)           # the same noise on both
            x_back = F(y_seen)
            y_back = G(x_seen, y_seen)
            score_made_up = D_Y(y_fake)
            score_bare = D_X(x_fake)
            score_same = D_S(y, y_fake)
        L_G = loss_G_G(score_made_up)                                                            # [L_G]
        L_F = loss_F_F(score_bare)                                                               # [L_F]
        L_I = loss_I(x_goal, x_back)                                                             # [L_I]
        L_S = loss_S(y_goal, y_back)                                                             # [L_S]
        L_P = loss_P_G(score_same)                                                               # [L_P]
        L_R = loss_R(x, y_fake)                                                                  # [L_R]
        L = (lambda_adv * L_G + lambda_adv * L_F + cfg.lambda_I * L_I + cfg.lambda_S * L_S
             + lambda_adv * cfg.lambda_P * L_P + cfg.lambda_R * L_R)
        opt_GF.zero_grad()
        L.backward()
        opt_GF.step()

        # 2. The D's: made up, or not; bare, or not; the same make-up, or not --------------------------------
        with autocast(cfg):
            made_up_real = D_Y(y)
            made_up_fake = D_Y(y_fake.detach())
            bare_real = D_X(x)
            bare_fake = D_X(x_fake.detach())
            same_real = D_S(y, w)
            same_fake = D_S(y, y_fake.detach())
            same_other = D_S(y.roll(1, 0), w) if cfg.mismatch else None         # ours: on in SMALL
        L_D_Y = loss_G_D(made_up_real, made_up_fake)                                             # [L_G]
        L_D_X = loss_F_D(bare_real, bare_fake)                                                   # [L_F]
        L_D_S = loss_P_D(same_real, same_fake, same_other)                                       # [L_P]
        L_D = L_D_Y + L_D_X + (L_D_S if cfg.lambda_P else 0.)          # lambda_P = 0: D_S is not trained
        opt_D.zero_grad()
        L_D.backward()
        opt_D.step()

        if run.logs(step):
            losses = logged(G=L_G, F=L_F, I=L_I, S=L_S, P=L_P, R=L_R, D_Y=L_D_Y, D_X=L_D_X, D_S=L_D_S)
            run.log(step, **health(G, F, shown), lambda_adv=lambda_adv, **losses)
        if run.samples(step):
            run.sample(step, sample_grid(G, F, shown))
    return G, F


def warm_up_F(cfg, run, G, F, D_X, D_Y, D_S, opt_GF, opt_D, shown):
    """Ours, for what the paper has from a CycleGAN: F learns to take make-up off. So do G, D_X and D_Y.

    G sees no reference, G(x, x), and F learns from its way back to x. There is no way back to y: F would have
    to keep in F(y) what such a G cannot know, the make-up. With false pairs D_S learns meanwhile.
    """
    for step, (x, y, w) in run.batches(cfg.batch_size, until=int(cfg.warm_up * cfg.steps)):
        run.set_lr(cfg.lr * linear_decay(step, cfg.steps, cfg.decay_from))
        with frozen(D_X, D_Y), autocast(cfg):
            y_fake = G(x, x)
            x_fake = F(y)
            y_seen, x_goal = add_same_noise(cfg.noise, y_fake, x)
            x_back = F(y_seen)
            score_made_up = D_Y(y_fake)
            score_bare = D_X(x_fake)
        L_G, L_F = loss_G_G(score_made_up), loss_F_F(score_bare)                          # [L_G], [L_F]
        L_I, L_R = loss_I(x_goal, x_back), loss_R(x, y_fake)                              # [L_I], [L_R]
        L = adversarial_weight(cfg, step) * (L_G + L_F) + cfg.lambda_I * L_I + cfg.lambda_R * L_R
        opt_GF.zero_grad()
        L.backward()
        opt_GF.step()
        with autocast(cfg):
            made_up_real, made_up_fake = D_Y(y), D_Y(y_fake.detach())
            bare_real, bare_fake = D_X(x), D_X(x_fake.detach())
            if cfg.mismatch and cfg.lambda_P:
                same_real, same_other = D_S(y, w), D_S(y.roll(1, 0), w)
        L_D_Y, L_D_X = loss_G_D(made_up_real, made_up_fake), loss_F_D(bare_real, bare_fake)
        L_D_S = loss_P_D(same_real, same_other) if cfg.mismatch and cfg.lambda_P else 0.
        opt_D.zero_grad()
        (L_D_Y + L_D_X + L_D_S).backward()
        opt_D.step()
        if run.logs(step):
            run.log(step, **logged(G=L_G, F=L_F, I=L_I, R=L_R, D_Y=L_D_Y, D_X=L_D_X, D_S=L_D_S))
        if run.samples(step):
            run.sample(step, sample_grid(G, F, shown))


def warm_up_G(cfg, run, G, F, D_X, D_Y, D_S, opt_GF, opt_D, shown):
    """Ours, for as many steps as F had: G learns the paper's objective but [L_F]; F stays, the D's learn."""
    for step, (x, y, w) in run.batches(cfg.batch_size, until=int(2 * cfg.warm_up * cfg.steps)):
        run.set_lr(cfg.lr * linear_decay(step, cfg.steps, cfg.decay_from))
        with frozen(F, D_X, D_Y, D_S), autocast(cfg):
            y_fake = G(x, y)
            x_fake = F(y)
            x_seen, y_goal = add_same_noise(cfg.noise, x_fake, y)
            y_seen, x_goal = add_same_noise(cfg.noise, y_fake, x)
            x_back = F(y_seen)
            y_back = G(x_seen, y_seen)
            score_made_up = D_Y(y_fake)
            score_same = D_S(y, y_fake)
        L_G, L_P = loss_G_G(score_made_up), loss_P_G(score_same)                          # [L_G], [L_P]
        L_I, L_S, L_R = loss_I(x_goal, x_back), loss_S(y_goal, y_back), loss_R(x, y_fake)
        L = (adversarial_weight(cfg, step) * (L_G + cfg.lambda_P * L_P) + cfg.lambda_I * L_I
             + cfg.lambda_S * L_S + cfg.lambda_R * L_R)
        opt_GF.zero_grad()
        L.backward()
        opt_GF.step()
        with autocast(cfg):
            made_up_real, made_up_fake = D_Y(y), D_Y(y_fake.detach())
            bare_real, bare_fake = D_X(x), D_X(x_fake)                 # F is frozen: nothing to detach
            same_real, same_fake = D_S(y, w), D_S(y, y_fake.detach())
            same_other = D_S(y.roll(1, 0), w) if cfg.mismatch else None
        L_D_Y, L_D_X = loss_G_D(made_up_real, made_up_fake), loss_F_D(bare_real, bare_fake)
        L_D_S = loss_P_D(same_real, same_fake, same_other)
        opt_D.zero_grad()
        (L_D_Y + L_D_X + (L_D_S if cfg.lambda_P else 0.)).backward()
        opt_D.step()
        if run.logs(step):
            losses = logged(G=L_G, I=L_I, S=L_S, P=L_P, R=L_R, D_Y=L_D_Y, D_X=L_D_X, D_S=L_D_S)
            run.log(step, **health(G, F, shown), **losses)
        if run.samples(step):
            run.sample(step, sample_grid(G, F, shown))


def add_same_noise(std, *pictures):
    """The same normal noise on source and target, as it comes through to the latter: hidden signals drown."""
    noise = std * torch.randn_like(pictures[0]) if std else 0.
    return [picture + noise for picture in pictures]


def about_of(data):
    """What inference needs to know: toy or not, and the mean toy anchors as shares of a picture's side."""
    if data.bare.faces is None:
        return {"toy": False, "anchors": None}
    mean = (data.bare.anchors.cpu().mean(0) + .5) / data.bare.images.shape[-1]
    return {"toy": True, "anchors": [[round(v, 3) for v in point] for point in mean.tolist()]}


@torch.no_grad()
def fixed_batch(held_out, n=4, m=6):
    """What log lines and grids show: people that nobody trains on, the same every time.

    Returns x [n, 3, s, s] bare; y [m, 3, s, s] made up; the truth [n, m, 3, s, s] of every pair (photographs:
    W); y's true bare faces [m, 3, s, s] (photographs: None).
    """
    i, j = (torch.linspace(0, len(album) - 1, min(k, len(album))).round().long()
            for album, k in ((held_out.bare, n), (held_out.made, m)))
    toy, bare = held_out.bare.faces is not None, None
    pair = held_out.true if toy else held_out.warped
    truth = torch.stack([pair(one.expand(len(j)), j) for one in i])
    if toy:
        k = j.to(held_out.cfg.device)
        pictures = toyfaces.render(held_out.made.faces[k].no_makeup(), held_out.made.images.shape[-1])
        bare = held_out.view(pictures, held_out.made.anchors[k])[0]
    return held_out.cut(held_out.bare, i)[0], held_out.cut(held_out.made, j)[0], truth, bare


def all_pairs(G, x, y):
    """G of every x with every y: [n, m, 3, s, s]."""
    return torch.stack([G(one.expand_as(y), y) for one in x])


@torch.no_grad()
def health(G, F, shown):
    """The health word, and mean distances (0 ... 1).

    change: of G(x, y) to x; spread: of G(x, y) to its mean over the references; error, copy: of G(x, y) and
    of x to the truth; removed, kept (toy faces): of F(y) and of y to the true bare face. W of photographs
    differs by the references' faces, too, so there little spread is asked.
    """
    x, y, truth, bare = shown
    out = all_pairs(G, x, y)

    def L1(a, b):
        return (a - b).abs().mean() / 2

    def spread(pictures):
        return L1(pictures, pictures.mean(1, keepdim=True))

    values = {"change": L1(out, x[:, None]), "spread": spread(out), "error": L1(out, truth),
              "copy": L1(x[:, None], truth)}
    if bare is not None:
        values |= {"removed": L1(F(y), bare), "kept": L1(y, bare)}
    word = "copying" if values["change"] < .1 * values["copy"] else "ok"
    if word == "ok" and values["spread"] < (.03 if bare is None else .2) * spread(truth):
        word = "style-ignored"
    return {"health": word} | values


@torch.no_grad()
def sample_grid(G, F, shown):
    """References; sources with their make-up, the truth below (photographs: W); last F(y) and the truth."""
    x, y, truth, bare = shown
    out, blank = all_pairs(G, x, y), torch.ones_like(x[:1])
    removed = [F(y)] if bare is None else [F(y), bare]
    sources = [part for one in x for part in (one[None], blank)]
    columns = [torch.cat([blank, *sources, *[blank] * len(removed)])]
    for k in range(len(y)):
        pairs = torch.stack([out[:, k], truth[:, k]], 1).flatten(0, 1)
        columns.append(torch.cat([y[k:k + 1], pairs, *(r[k:k + 1] for r in removed)]))
    titles = ["source", *(f"reference {k + 1}" for k in range(len(y)))]
    return grid(columns, titles)


# ========================================================================================= inference

@torch.no_grad()
def painted(cfg, nets, x, x_anchors, y=None, y_anchors=None):
    """What G changes in pictures x [B, 3, L, L] for references y; without y, what F changes. [B, 3, L, L]

    nets: {region: (G, F)}. Each change is laid in its place with a soft rim, eyes and lips over skin; only
    where make-up can be, not on hair, brows, walls and eyeballs.
    """
    total = torch.zeros_like(x)
    for region, (G, F) in nets.items():
        s = square_size(cfg.image_size, region)
        for left in (False, True)[:1 + (region == "eyes")]:
            mirror, where = torch.full((len(x),), left, device=x.device), pixels(s, s, x.device)
            _, to_picture, to_square = place(x_anchors, region, s, mirror)
            square = look(x, to_picture(where), s)
            if y is None:
                drawn = F(square)
            else:
                drawn = G(square, look(y, place(y_anchors, region, s, mirror)[1](where), s))
            laid, mask = lay(drawn - square, to_square, x.shape[-2:])
            total = total + mask * (laid - total)
    return total * make_up_area(x_anchors, x.shape[-1])


@reads_checkpoint
def load(cfg):
    """({region: (G, F)} of cfg.run, about). cfg.weights: one file instead, of networks for the whole face.

    cfg takes over what G and its data depend on.
    """
    resolve_device(cfg)
    nets, parts = {}, not cfg.weights and (Path(cfg.run) / "skin" / "last.pt").exists()
    for region in ("skin", "eyes", "lips") if parts else ("face",):
        path = Path(cfg.weights or Path(cfg.run) / region / "last.pt")
        saved = read_checkpoint(path, __file__)
        restore_config(cfg, saved, ("image_size", "load_size", "regions", "width", "asymmetric", "pose",
                                    "variety", "bold"))
        G, F = (load_weights(Generator(inputs, cfg.width), saved["nets"].get(name, {}), path).eval()
                for name, inputs in (("G", 1 + cfg.asymmetric), ("F", 1)))
        nets[region] = tuple(to_device(cfg, G, F))
    return nets, {k: saved["about"][k] for k in ("toy", "anchors")}


def infer(cfg, files, reference, remove, strength, out):
    """FILE...: bare faces for the make-up of every --reference; with --remove, faces to take it off.

    Writes <name>_<reference>.png, or <name>_bare.png, of the picture's own size, and sheet.png with all of
    them. Photographs of any size need landmarks: NAME.pts beside, or a map in segs/.
    """
    if bool(reference) == remove:
        raise UserError("--infer: give --reference FILE, whose make-up is wanted, or --remove to take it off")
    if not 0 <= strength <= 1:
        raise UserError(f"--strength {strength}: expected 0 to 1")
    nets, about = load(cfg)
    L = load_size(cfg)
    photos, styles = ([Photo(file, L, cfg.device, about) for file in names] for names in (files, reference))
    folder, taken = out_folder(cfg, out), set()
    rows = [[torch.ones(1, 3, L, L, device=cfg.device), *(style.x for style in styles)]] if styles else []
    for photo in photos:
        rows.append([photo.x])
        for style in styles or [None]:
            given = (style.x, style.anchors) if style else ()
            total = strength * painted(cfg, nets, photo.x, photo.anchors, *given)
            stem = f"{photo.path.stem}_{style.path.stem if style else 'bare'}"
            taken.add(name := unused(stem, taken))
            photo.with_(total).save(folder / f"{name}.png")
            print(folder / f"{name}.png")
            rows[-1].append((photo.x + total).clamp(-1, 1))
    titles = ["source", *([style.path.stem for style in styles] or ["bare"])]
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    grid(columns, titles, max(1, 160 // L)).save(folder / "sheet.png")
    print(folder / "sheet.png")


if __name__ == "__main__":
    cli(__name__)
