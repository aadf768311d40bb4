"""The toy people of each paper: who is drawn, and what is known of them."""
import math

import torch

from common import crop_box, to_66
from lab import UserError, toyfaces
from lab.formats.attributes import HAIR, class_names
from lab.images import draw_points

EXPRESSIONS = tuple(toyfaces.EXPRESSIONS)                              # the eight of RaFD, alphabetical

# ------------------------------------------------------------------------------------------- StarGAN

OLD = 1.4                                                              # 1 hardly shows at 48 px
ONE_WALL = dict(background=1., light=[.45, -.3, .84], light_strength=.6)


def wild(cfg, count, seed):
    """`count` people anywhere, one picture each, any expression: (names, faces, labels [N, n])."""
    # toy people have no sex
    names = tuple("Beard" if name == "Male" else name for name in cfg.attributes)
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--attributes {' '.join(cfg.attributes)}: {name} twice (toy Male is Beard)")
        if name not in toyfaces.ATTRIBUTES:
            raise UserError(f"--attributes {name}: toy faces have {', '.join(toyfaces.ATTRIBUTES)}")
    makeup = cfg.variety > 0 or "Makeup" in names
    faces = toyfaces.sample(count, seed, cfg.device, pose=cfg.pose, makeup=makeup)
    # young, or so old that a small picture shows it; grey by age alone
    age = torch.where(faces.age < .5, .6 * faces.age, OLD + .4 * (faces.age - .75))
    hair = faces.hair if "Gray_Hair" in names else faces.hair % 3
    # close, as CelebA
    faces = faces.set(zoom=1.25, age=age, hair=hair).alike(cfg.variety, **ONE_WALL)
    labels = toyfaces.attributes(faces)[:, [toyfaces.ATTRIBUTES.index(name) for name in names]]
    return names, faces, labels.cpu()


def studio(cfg, count, seed):
    """`count` people in a studio, frontal, in each of RaFD's expressions, or of cfg.classes: as `wild`."""
    names = class_names(cfg.classes, EXPRESSIONS)
    people = toyfaces.sample(count, seed, cfg.device, pose=.15, expression=False, makeup=False)
    people = people.set(roll=0., shift=0., zoom=1.25, background=.7, light=[0., -.3, .954], light_strength=.4)
    people = people.alike(cfg.variety, **ONE_WALL)
    neutral, g = people.express("neutral"), torch.Generator().manual_seed(seed)
    strength = (.85 + .3 * torch.rand(count, generator=g)).to(cfg.device)
    shows = []
    for full in map(people.express, names):
        shows.append(full.set(**{k: getattr(neutral, k) + strength * (getattr(full, k) - getattr(neutral, k))
                                 for k in toyfaces.EXPRESSION}))
    return names, toyfaces.cat(shows), torch.eye(len(names)).repeat_interleave(count, 0)


def counterfactual(faces, name, on):
    """These faces, truly with expression `name`, or with (on [B] = 1) or without (0) attribute `name`."""
    if name in EXPRESSIONS:
        return faces.express(name)
    yes = toyfaces.with_attribute(faces, name, 1)
    no = yes if name in HAIR else toyfaces.with_attribute(faces, name, 0)
    no = no.set(age=OLD) if name == "Young" else no
    return yes.where(on > .5, no)

# --------------------------------------------------------------------------------------- GANnotation

CLOSE = dict(roll=0., shift=[0., .04], zoom=1.25)        # upright, filling the frame, as a crop by landmarks


def turning_heads(cfg, people, seed):
    """`people` toy people, one after the other, cfg.frames pictures of each in poses and expressions."""
    people = toyfaces.sample(people, seed, cfg.device)
    return toyfaces.frames(people, cfg.frames, seed + 1, cfg.pose).set(**CLOSE)


def sweep(size, n=40):
    """Landmarks of an average face that turns left and right and runs through expressions: [n, 68, 2] px."""
    face = toyfaces.sample(1, 0, pose=0, expression=False)
    face = face.set(**{name: mean for name, (mean, _) in toyfaces.GEOMETRY.items()}, **CLOSE)
    names = ("neutral", "happy", "surprised", "angry", "neutral")
    table, faces = torch.tensor([toyfaces.EXPRESSIONS[name] for name in names]), []
    for k in range(n):
        at = k / (n - 1) * (len(names) - 1)
        j = min(int(at), len(names) - 2)
        values = (table[j] + (at - j) * (table[j + 1] - table[j])).tolist()
        expression = dict(zip(toyfaces.EXPRESSION, values, strict=False)) | {"gaze_x": 0.}
        faces.append(face.set(**expression, yaw=35 * math.sin(2 * math.pi * k / (n - 1))))
    return toyfaces.landmarks(toyfaces.cat(faces), size)


def at_home(shapes, size):
    """Driving shapes [T, 68 or 66, 2] moved and scaled: their median box is that of an average toy face."""
    home = sweep(size, 2)[:1]
    home_low, home_high = crop_box(home if shapes.shape[1] == 68 else to_66(home), 0)
    low, high = (box.median(0).values for box in crop_box(shapes, 0))
    return (shapes - low) / (high - low) * (home_high - home_low) + home_low

# -------------------------------------------------------------------------------------------- DR-GAN

def in_poses(n_people, yaws, copies, seed, device, test=False):
    """People without make-up, `copies` pictures at each yaw, in a light, place, dress and mood of their own.

    White wall. test: the first picture at yaw 0 is the gallery's, neutral and in a plain light. Returns
    faces, one person after the other, and who, pose, copy [N]: indices of person, yaw, picture.
    """
    people = toyfaces.sample(n_people, seed, device, pose=0, makeup=False)
    faces = toyfaces.frames(people, len(yaws) * copies, seed + 1, pose=.3,
                            vary=("light", "light_strength", "clothes"))
    who = torch.arange(n_people).repeat_interleave(len(yaws) * copies)
    pose = torch.arange(len(yaws)).repeat_interleave(copies).repeat(n_people)
    copy = torch.arange(copies).repeat(n_people * len(yaws))
    yaw = torch.tensor(yaws, dtype=torch.float32)[pose]
    faces = faces.set(yaw=yaw, zoom=1.2 * faces.zoom, background=1.)
    if test:
        gallery = (copy == 0) & (pose == yaws.index(0))
        plain = faces.express("neutral").set(light=[0., -.3, .954], light_strength=.4)
        faces = plain.where(gallery, faces)
    return faces, who, pose, copy

# ---------------------------------------------------------------------------------------- IACycleGAN

# Colours of which a pencil tells nothing, for everybody
SHAPES_ALONE = dict(skin_rgb=[.86, .64, .46], iris_rgb=[.42, .27, .12], hair_tint=[0., 0., 0.])


def known_by_shape(cfg):
    """The `alike` of judges for cfg's people: with variety 0 they know people by their shapes alone."""
    return None if cfg.variety else SHAPES_ALONE


def sittings(cfg, count, seed):
    """People in two sittings: (before the camera, as the artist remembers them), two batches of faces.

    White wall and no make-up. Mood, light, and the slight turn of the head are of each sitting.
    """
    sitting = toyfaces.sample(count, seed, cfg.device, pose=.15, makeup=False)
    sitting = sitting.set(background=1.).alike(cfg.variety, **SHAPES_ALONE)
    other = toyfaces.sample(count, seed + 1, cfg.device, pose=.15)
    memory = sitting.take(other, toyfaces.EXPRESSION + toyfaces.POSE + ("light", "light_strength"))
    return sitting, memory


def pencil(faces, size):
    """Pencil drawings of faces as they are, no caricatures: [B, 3, S, S] in [-1, 1], three equal channels."""
    return toyfaces.sketch(faces, size, 1.).expand(-1, 3, -1, -1)


def caricatures(cfg, faces, size):
    """What the artist makes of the faces: every proportion exaggerated, uint8 [n, 3, size, size]."""
    return toyfaces.images(cfg, toyfaces.exaggerate(faces, cfg.exaggeration), size, pencil)

# --------------------------------------------------------------------------------- pix2pix, CycleGAN

def portraits(cfg, count, seed):
    """People, close, as CelebA, before pale walls: no map of regions tells a wall's shades.

    Of CycleGAN's people cfg.variety is left in what no sketch tells: with 0 a white wall, one skin and iris,
    no make-up. Otherwise generators hide these colours in their drawings, as dots.
    """
    plain = cfg.model == "cyclegan" and not cfg.variety
    faces = toyfaces.sample(count, seed, cfg.device, pose=cfg.pose, makeup=not plain)
    faces = faces.set(zoom=1.25, background=.6 + .25 * (faces.background - .6))
    return faces.alike(cfg.variety, background=1., **SHAPES_ALONE) if cfg.model == "cyclegan" else faces


def dots(faces, size):
    """The 68 landmarks as white dots on black: [B, 3, S, S] in [-1, 1]."""
    return draw_points(toyfaces.landmarks(faces, size), size)


def bare(faces, size):
    """The picture without glasses."""
    return toyfaces.render(toyfaces.with_attribute(faces, "Eyeglasses", 0), size)


def spectacled(faces, size):
    """The picture with glasses."""
    return toyfaces.render(toyfaces.with_attribute(faces, "Eyeglasses", 1), size)


# How A and B are painted from the same face
TASKS = {"colours": (toyfaces.colour_map, toyfaces.render), "regions": (toyfaces.region_map, toyfaces.render),
         "landmarks": (dots, toyfaces.render), "sketch": (toyfaces.render, pencil),
         "glasses": (bare, spectacled)}


def painters(cfg):
    """(paint x, paint y) of the toy task; auto: for pix2pix colours, for CycleGAN sketch."""
    auto = "colours" if cfg.model == "pix2pix" else "sketch"
    A, B = TASKS[auto if cfg.toy == "auto" else cfg.toy]
    return (A, B) if cfg.direction == "AtoB" else (B, A)


# ------------------------------------------------------------------------------------ PairedCycleGAN

def any_hue(n, g):
    """n strong colours of every hue, [n, 3] in [0, 1]."""
    hue, saturation, value = torch.rand(3, n, 1, generator=g)
    pure = ((6 * hue + torch.tensor([0., 4., 2.])) % 6 - 3).abs().sub(1).clamp(0, 1)
    return (.45 + .45 * value) * (1 - (.6 + .4 * saturation) * (1 - pure))


def made_up(cfg, n, seed, made):
    """n calm people without beard and glasses, upright and near; made: all in make-up, else none.

    cfg.bold: lips and lids of any hue, which covers the skin, and skins without moles and lines.
    """
    g = torch.Generator().manual_seed(seed + 1)
    faces = toyfaces.sample(n, seed, cfg.device, pose=cfg.pose, expression=False)
    faces = faces.set(beard=0., glasses=0., zoom=1.3, shift=[0., -.02], smile=torch.rand(n, generator=g) - .2)
    faces = faces.alike(cfg.variety, skin_rgb=[.8, .6, .48], light=[.2, -.3, .93], light_strength=.45,
                        background=1.)
    alphas = (("lip_alpha", .5, 1.), ("shadow_alpha", .4, .9),
              ("liner_alpha", .3, 1.), ("blush_alpha", .15, .6))
    alphas = {name: low + (high - low) * torch.rand(n, generator=g) for name, low, high in alphas}
    if cfg.bold:
        faces = faces.set(moles=0., age=.3 * faces.age, lip_rgb=any_hue(n, g), shadow_rgb=any_hue(n, g))
        alphas |= {name: .75 + .25 * torch.rand(n, generator=g) for name in ("lip_alpha", "shadow_alpha")}
    return faces.set(**alphas) if made else faces.no_makeup()
