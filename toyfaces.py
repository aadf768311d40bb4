"""Toy faces: drawn people whose every property is known exactly.

A `Face` is a batch of parameters: who (proportions, skin, hair, moles, beard, glasses, age), how (expression, gaze),
from where (yaw, pitch, roll), in what light, before what, with which make-up. From the same numbers come, exactly,

    render(face, size)     the picture                     [B, 3, S, S] in [-1, 1]
    landmarks(face, size)  the 68 iBUG points              [B, 68, 2], pixels, (x, y), 0-based, may lie outside
    regions(face, size)    skin, hair, brows, eyes, ...    [B, S, S], int64, indices into REGIONS
    sketch(face, size)     an artist's pencil drawing      [B, 1, S, S] in [-1, 1]
    attributes(face)       hair colour, beard, glasses ... [B, 10], 0 or 1, in the order of ATTRIBUTES

and, because every parameter can be changed alone, the *counterfactual*: the same person with another expression, pose,
hair colour or make-up. That picture is the truth that a translation is measured against.

How it is drawn. The head is an ellipsoid-like solid. Each pixel's ray is intersected with it in closed form, which
gives the point of the head that the pixel sees; eyes, lips, brows, make-up are functions on the head's own front
plane (u to the viewer's right, v down, crown -1, chin about +1). So foreshortening, occlusion and make-up follow the
pose by themselves. Only nose, ears, neck, and hair volume are separate shapes. Everything is evaluated at twice the
size and averaged, which smooths the edges.

    python toyfaces.py [--size 128] [--seed 0] [--out toyfaces.png]      one contact sheet of all of this
"""
import argparse
import hashlib
import math
import os
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

REGIONS = ("background", "skin", "hair", "brows", "eyes", "lips", "inner mouth", "beard", "glasses", "clothes")
ATTRIBUTES = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Long_Hair", "Beard", "Eyeglasses", "Young",
              "Smiling", "Makeup")
REGION_RGB = ((20, 24, 60), (240, 200, 170), (110, 70, 40), (60, 30, 20), (250, 250, 250), (200, 60, 80), (120, 0, 20), (90, 80, 60),
              (0, 0, 0), (70, 130, 180))                                                         # how region_map paints REGIONS
HAIR_RGB = ((.09, .08, .09), (.88, .70, .36), (.40, .23, .12), (.72, .72, .73))                 # in ATTRIBUTES' order

# The eight expressions of RaFD, in alphabetical order. Units: 1 is as much as a cartoon can bear.
#                smile  open  sneer contempt raise frown lids  gaze_y
EXPRESSIONS = {
    "angry":        (-.55, .00, .30, .00, -.30, 1.00, .80, .00),
    "contemptuous": (.05, .00, .00, 1.00, .10, .15, .70, .00),
    "disgusted":    (-.45, .22, 1.0, .00, -.15, .60, .50, .20),
    "fearful":      (-.60, .45, .00, .00, .75, -.90, 1.30, .00),
    "happy":        (1.00, .45, .00, .00, .15, .00, .78, .00),
    "neutral":      (.00, .00, .00, .00, .00, .00, 1.00, .00),
    "sad":          (-.90, .00, .00, .00, .10, -1.00, .68, .45),
    "surprised":    (.05, 1.00, .00, .00, 1.00, .00, 1.35, .00),
}
# Which fields of Face say what. `face.take(other, EXPRESSION)` gives this person the other's expression.
EXPRESSION = ("smile", "mouth_open", "sneer", "contempt", "brow_raise", "frown", "eye_open", "gaze_y", "gaze_x")
POSE = ("yaw", "pitch", "roll", "shift", "zoom")
SCENE = ("light", "light_strength", "background", "clothes")
MAKEUP = ("lip_rgb", "lip_alpha", "shadow_rgb", "shadow_alpha", "liner_alpha", "liner_wing", "blush_rgb", "blush_alpha")
# Geometry of the identity: mean and half range of a uniform draw, in units of half a head's height.
GEOMETRY = {
    "head_width": (.76, .07), "head_depth": (.85, .05), "jaw": (2.7, .6), "chin": (.99, .06),
    "eye_y": (.06, .04), "eye_x": (.345, .03), "eye_width": (.17, .025), "eye_height": (.105, .028),
    "eye_slant": (.02, .05), "iris_size": (.095, .012), "brow_y": (-.17, .035), "brow_thick": (.042, .02),
    "brow_slant": (0., .05), "brow_asym": (0., .05), "nose_y": (.42, .035), "nose_len": (.27, .07),
    "nose_width": (.125, .03), "mouth_y": (.665, .03), "mouth_width": (.27, .045), "lip_upper": (.05, .018),
    "lip_lower": (.072, .022), "hairline": (-.60, .10), "hair_part": (0., 1.), "hair_volume": (.10, .05), "curl": (.5, .5),
    "ear_size": (.16, .03),
}
IDENTITY = (*GEOMETRY, "skin_rgb", "iris_rgb", "hair", "hair_tint", "hair_length", "beard", "glasses", "age", "moles")


@dataclass
class Face:
    """A batch of B faces. Every field is a float32 tensor whose first axis is B; [B] unless said otherwise."""
    # geometry of the identity, in half heads: see GEOMETRY
    head_width: torch.Tensor
    head_depth: torch.Tensor
    jaw: torch.Tensor              # roundness: 2 an ellipse, 3.3 a square jaw
    chin: torch.Tensor
    eye_y: torch.Tensor
    eye_x: torch.Tensor
    eye_width: torch.Tensor
    eye_height: torch.Tensor
    eye_slant: torch.Tensor
    iris_size: torch.Tensor
    brow_y: torch.Tensor
    brow_thick: torch.Tensor
    brow_slant: torch.Tensor
    brow_asym: torch.Tensor        # the one brow higher than the other
    nose_y: torch.Tensor
    nose_len: torch.Tensor
    nose_width: torch.Tensor
    mouth_y: torch.Tensor
    mouth_width: torch.Tensor
    lip_upper: torch.Tensor
    lip_lower: torch.Tensor
    hairline: torch.Tensor
    hair_part: torch.Tensor        # -1 ... 1, side of the parting
    hair_volume: torch.Tensor
    curl: torch.Tensor             # 0 straight ... 1 wavy
    ear_size: torch.Tensor
    # the rest of the identity
    skin_rgb: torch.Tensor         # [B, 3] in [0, 1]
    iris_rgb: torch.Tensor         # [B, 3]
    hair: torch.Tensor             # index into HAIR_RGB
    hair_tint: torch.Tensor        # [B, 3], added to the hair's colour
    hair_length: torch.Tensor      # 0 short ... 1 long
    beard: torch.Tensor            # 0 none ... 1 full
    glasses: torch.Tensor          # 0 or 1
    age: torch.Tensor              # 0 young ... 1 old
    moles: torch.Tensor            # [B, 2, 3]: u, v, radius; one on each side, radius 0 = none
    # expression: see EXPRESSIONS
    smile: torch.Tensor            # -1 ... 1
    mouth_open: torch.Tensor
    sneer: torch.Tensor
    contempt: torch.Tensor
    brow_raise: torch.Tensor
    frown: torch.Tensor            # 1 angry, -1 sad
    eye_open: torch.Tensor         # 0 closed, 1 normal
    gaze_y: torch.Tensor           # 1 down
    gaze_x: torch.Tensor           # 1 to the viewer's right
    # pose and scene
    yaw: torch.Tensor              # degrees, positive = the face turns to the viewer's right
    pitch: torch.Tensor            # degrees, positive = looks down
    roll: torch.Tensor             # degrees, positive = tilts clockwise
    shift: torch.Tensor            # [B, 2], in half heads
    zoom: torch.Tensor             # 1 = half a head is 0.36 of the picture's side
    light: torch.Tensor            # [B, 3], unit vector towards the light, camera axes
    light_strength: torch.Tensor   # 0 flat ... 1 hard
    background: torch.Tensor       # [B, 2, 3]: colour above and below
    clothes: torch.Tensor          # [B, 3]
    # make-up: colours [B, 3], strengths 0 ... 1
    lip_rgb: torch.Tensor
    lip_alpha: torch.Tensor
    shadow_rgb: torch.Tensor
    shadow_alpha: torch.Tensor
    liner_alpha: torch.Tensor
    liner_wing: torch.Tensor       # 0 ... 0.5, length beyond the eye's corner
    blush_rgb: torch.Tensor
    blush_alpha: torch.Tensor

    def __len__(self):
        return len(self.yaw)

    def _map(self, function):
        return Face(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def __getitem__(self, index):
        """A batch of the faces at `index` (an int, a slice, or an index tensor)."""
        index = [index] if isinstance(index, int) else index
        return self._map(lambda value: value[index])

    def to(self, device):
        return self._map(lambda value: value.to(device))

    def repeat(self, n):
        """Each face n times in a row: a a a b b b ..."""
        return self._map(lambda value: value.repeat_interleave(n, 0))

    def take(self, other, names):
        """The counterfactual: these faces, with the fields in `names` from `other`."""
        return replace(self, **{name: getattr(other, name) for name in names})

    def where(self, condition, other):
        """Each of these faces where condition [B] holds, the other's where not."""
        def pick(mine, its):
            return torch.where(condition.to(mine.device).view(-1, *[1] * (mine.dim() - 1)), mine, its)
        return Face(**{f.name: pick(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})

    def set(self, **values):
        """These faces with some fields set to a number, a list, or a tensor that broadcasts to [B, ...]."""
        new = {}
        for name, value in values.items():
            old = getattr(self, name)
            new[name] = torch.as_tensor(value, dtype=old.dtype, device=old.device).expand_as(old).clone()
        return replace(self, **new)

    def alike(self, share, **usual):
        """These faces with fields moved towards usual values: share 1 leaves them as they are, 0 makes them the same for all."""
        same = self.set(**usual)
        faces = self.set(**{name: getattr(same, name) + share * (getattr(self, name) - getattr(same, name)) for name in usual})
        return faces.set(light=F.normalize(faces.light, dim=1))

    def express(self, name):
        """These faces with one of the eight EXPRESSIONS, looking ahead."""
        return self.set(**dict(zip(EXPRESSION, EXPRESSIONS[name], strict=False)), gaze_x=0.)

    def no_makeup(self):
        return self.set(lip_alpha=0., shadow_alpha=0., liner_alpha=0., blush_alpha=0.)


def cat(faces):
    """Join a list of face batches into one."""
    return Face(**{f.name: torch.cat([getattr(face, f.name) for face in faces]) for f in fields(Face)})


# ---------------------------------------------------------------------------------------------------- drawing lots

def sample(n, seed=0, device="cpu", *, expression=True, pose=1., makeup=True):
    """n random people, deterministic in `seed` and the same on every device (the lots are drawn on the CPU).

    expression, makeup: draw them, or leave them neutral / bare. pose: 0 frontal, 1 the full range: yaw up to 60 degrees,
    pitch 18, roll 12, 8 % to the side, 7 % nearer or farther.
    """
    g = torch.Generator().manual_seed(seed)

    def u(low=0., high=1., *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=g)

    def happens(p):
        return (u() < p).float()

    face = {name: u(mean - half, mean + half) for name, (mean, half) in GEOMETRY.items()}

    tone = u()[:, None]                                            # melanin: light to dark through olive
    light, olive, dark = torch.tensor([[1., .85, .75], [.86, .64, .46], [.42, .27, .19]])
    skin = torch.where(tone < .5, light + (olive - light) * 2 * tone, olive + (dark - olive) * (2 * tone - 1))
    iris = torch.tensor([[.25, .14, .07], [.42, .27, .12], [.25, .45, .30], [.25, .45, .70], [.45, .52, .58]])
    age = u() ** 1.5
    hair = torch.multinomial(torch.tensor([.36, .28, .36]), n, replacement=True, generator=g).float()
    hair = torch.where((age > .6) & (u() < .5), torch.full((n,), 3.), hair)
    side = torch.tensor([-1., 1.])[None]
    moles = torch.stack([side * u(.16, .50, 2), u(.16, .80, 2), u(.016, .028, 2) * (u(0, 1, 2) < .6)], dim=2)
    beard = happens(.25) * u(.5, 1.)
    length = torch.where(happens(.45) > 0, u(.55, 1.), u(0., .25)) * (1 - .7 * (beard > 0).float())
    face |= dict(skin_rgb=(skin + u(-.02, .02, 3)).clamp(0, 1), hair=hair, hair_tint=u(-.04, .04, 3), hair_length=length,
                 iris_rgb=iris[torch.randint(len(iris), (n,), generator=g)], beard=beard, glasses=happens(.2),
                 age=age, moles=moles)

    # Expressions: halfway between two of the eight, each with its own strength, plus a wandering gaze.
    table = torch.tensor(list(EXPRESSIONS.values()))
    neutral = table[list(EXPRESSIONS).index("neutral")]
    first, second = torch.randint(len(table), (2, n), generator=g)
    mix, strength = u()[:, None], u(.3, 1.1)[:, None]
    values = neutral + strength * (mix * table[first] + (1 - mix) * table[second] - neutral)
    values = values if expression else neutral.expand(n, -1)
    face |= dict(zip(EXPRESSION, values.unbind(1), strict=False), gaze_x=u(-1, 1) * expression)

    face |= dict(yaw=u(-60, 60) * pose, pitch=u(-18, 18) * pose, roll=u(-12, 12) * pose,
                 shift=u(-.08, .08, 2) * pose, zoom=1 + u(-.07, .07) * pose)
    azimuth, height = u(-1.2, 1.2), u(.1, .7)
    face |= dict(light=torch.stack([azimuth.sin() * height.cos(), -height.sin(), azimuth.cos() * height.cos()], 1),
                 light_strength=u(.25, .75), background=.35 + .4 * u(0, 1, 1, 1) + .28 * u(-1, 1, 2, 3), clothes=u(.1, .9, 3))
    wears = happens(.5) * makeup
    reds = torch.tensor([[.75, .08, .15], [.85, .25, .35], [.55, .05, .25], [.80, .35, .25], [.45, .10, .35]])
    eyes = torch.tensor([[.45, .25, .55], [.20, .35, .65], [.15, .50, .45], [.55, .35, .20], [.75, .35, .50]])
    red, shadow = (p[torch.randint(len(p), (n,), generator=g)] for p in (reds, eyes))
    face |= dict(lip_rgb=(red + u(-.08, .08, 3)).clamp(0, 1), lip_alpha=u(.5, 1.) * wears,
                 shadow_rgb=(shadow + u(-.08, .08, 3)).clamp(0, 1), shadow_alpha=u(.3, .9) * wears,
                 liner_alpha=u(.3, 1.) * wears, liner_wing=u(0., .5),
                 blush_rgb=(torch.tensor([.9, .35, .38]) + u(-.1, .1, 3)).clamp(0, 1), blush_alpha=u(.1, .6) * wears)
    return Face(**face).to(device)


def frames(people, n_frames, seed=0, pose=1., vary=()):
    """A "video" of each person: n_frames pictures in random poses and expressions, same light, clothes, background.

    pose: range of the poses, see `sample`. vary: further fields to draw anew for every picture, e.g. SCENE + MAKEUP.
    Returns a Face batch of len(people) * n_frames, one person after the other.
    """
    other = sample(len(people) * n_frames, seed, people.yaw.device, pose=pose)
    return people.repeat(n_frames).take(other, EXPRESSION + POSE + tuple(vary))


def attributes(face):
    """[B, 10] of 0 and 1, in the order of ATTRIBUTES."""
    on = [face.hair == k for k in range(4)]
    on += [face.hair_length > .5, face.beard > 0, face.glasses > 0, face.age < .5, face.smile > .3, face.lip_alpha > 0]
    return torch.stack(on, 1).float()


def with_attribute(face, name, value=1.):
    """The counterfactual under one of ATTRIBUTES set to 0 or 1 (a hair colour can only be set, not cleared)."""
    if name not in ATTRIBUTES:
        raise ValueError(f"unknown attribute {name!r}; expected one of {', '.join(ATTRIBUTES)}")
    k, on = ATTRIBUTES.index(name), float(value)
    if k < 4:
        if not on:
            raise ValueError(f"{name} cannot be switched off: set another hair colour")
        return face.set(hair=float(k))
    if name == "Smiling":
        happy, neutral = (dict(zip(EXPRESSION, EXPRESSIONS[e], strict=False)) for e in ("happy", "neutral"))
        return face.set(**{k: (happy if on else neutral)[k] for k in ("smile", "mouth_open", "contempt", "sneer")})
    if name == "Makeup":
        return face.set(lip_alpha=.8, shadow_alpha=.6, liner_alpha=.8, blush_alpha=.4) if on else face.no_makeup()
    change = {"Long_Hair": ("hair_length", .8, .1), "Beard": ("beard", .8, 0.), "Eyeglasses": ("glasses", 1., 0.),
              "Young": ("age", .1, .9)}[name]
    return face.set(**{change[0]: change[1] if on else change[2]})


def exaggerate(face, strength=1.5):
    """A caricature: every proportion moved away from the average by `strength` (1 = unchanged)."""
    return replace(face, **{name: mean + strength * (getattr(face, name) - mean)
                            for name, (mean, _) in GEOMETRY.items() if name not in ("hair_part", "curl")})


# ------------------------------------------------------------------------------------------------------- geometry

def _profile(face, y, lead):
    """Half width of the head at height y as a part of the widest: 1 at y = 0, 0 at crown and chin.  lead(t): [B] -> y's axes"""
    chin = lead(face.chin * (1 + .07 * face.mouth_open))
    up = 1 - y.clamp(-1, 0) ** 2
    down = 1 - (y.clamp(min=0) / chin).clamp(max=1) ** lead(face.jaw)
    return (torch.where(y < 0, up, down) + 1e-6).sqrt()


def _parallax(face, x, y, lead):
    """How far towards the viewer the head bulges at picture position (x, y): what nodding moves up and down."""
    width = (face.head_width ** 2 * face.yaw.deg2rad().cos() ** 2 + face.head_depth ** 2 * face.yaw.deg2rad().sin() ** 2)
    return (.95 * (1 - x ** 2 / lead(width) - y ** 2)).clamp(min=0) * lead(face.pitch.deg2rad().sin())


def _project(face, points):
    """Head coordinates [B, n, 3] -> picture coordinates in half heads [B, n, 2], and depth towards the viewer [B, n]."""
    def lead(t):
        return t[:, None]
    s, c = lead(face.yaw.deg2rad().sin()), lead(face.yaw.deg2rad().cos())
    x, y, z = points.unbind(2)
    x, z = x * c + z * s, z * c - x * s
    target = y
    for _ in range(8):                                                    # y_picture = y + parallax(x, y_picture)
        y = target + _parallax(face, x, y, lead)
    return torch.stack([x, y], 2), z


def _to_pixels(face, points, size):
    """Picture coordinates in half heads -> pixels: roll, shift, zoom."""
    s, c = face.roll.deg2rad().sin()[:, None], face.roll.deg2rad().cos()[:, None]
    x, y = points.unbind(2)
    x, y = x * c - y * s, x * s + y * c
    points = (torch.stack([x, y], 2) + face.shift[:, None]) * (.36 * size * face.zoom)[:, None, None]
    return points + points.new_tensor([.5 * size - .5, .53 * size - .5])


def _surface(face, u, v):
    """Depth of the head's front at front-plane coordinates u, v: [B, n] each."""
    def lead(t):
        return t[:, None]
    inside = _profile(face, v, lead) ** 2 - (u / lead(face.head_width)) ** 2
    return lead(face.head_depth) * inside.clamp(min=1e-6).sqrt()


# Curves of the features: functions of a coordinate s in [-1, 1] along the feature. `lead` lifts [B] to the axes of s.
# The picture and the landmarks are both made from these, so they cannot disagree.

def _bow(s):
    return (1 - s ** 2).clamp(min=0)


def _eye_curves(face, s_out, lead):
    """Upper and lower lid (v) at s_out: -1 inner corner, +1 outer corner."""
    middle = lead(face.eye_y) - lead(face.eye_slant) * s_out
    height = lead(face.eye_height)
    return middle - height * lead(face.eye_open) * _bow(s_out) ** .8, middle + .62 * height * lead(face.eye_open.clamp(max=1)) * _bow(s_out)


def _brow_curves(face, s_out, lead, side):
    """Centre (v) and half thickness of a brow at s_out: -1 inner end, +1 outer end. side: -1 the viewer's left."""
    v = lead(face.brow_y) - .10 * lead(face.brow_raise) - .045 * _bow(s_out) - lead(face.brow_slant) * s_out
    v = v + .075 * lead(face.frown) * (1 - s_out) / 2 - .02 * lead(face.frown) * (1 + s_out) / 2
    v = v + lead(face.brow_asym + .05 * face.contempt) * -.5 * side
    return v, lead(face.brow_thick) * (1 - .5 * (s_out + 1) / 2)


def _mouth_curves(face, s, lead):
    """v of the four lip lines at s in [-1, 1], from above: outer upper, inner upper, inner lower, outer lower."""
    smile, opening = lead(face.smile), .24 * lead(face.mouth_open)
    middle = lead(face.mouth_y) + .035 * smile - .13 * smile * s ** 2 - .11 * lead(face.contempt) * s.clamp(min=0) ** 2
    sneer = .035 * lead(face.sneer) * _bow(s)
    inner_up, inner_low = middle - .35 * opening * _bow(s) - sneer, middle + .65 * opening * _bow(s)
    cupid = _bow(s) * (1 - .28 * torch.exp(-(s / .2) ** 2))
    return inner_up - lead(face.lip_upper) * cupid, inner_up, inner_low, inner_low + lead(face.lip_lower) * _bow(s) ** .8


def _mouth_half_width(face):
    return face.mouth_width * (1 + .18 * face.smile.clamp(min=0) - .16 * face.mouth_open * (1 - face.smile.clamp(0, 1)))


def _nose_points(face):
    """[B, 9, 3] head coordinates of landmarks 27-35: four down the bridge, five along the base from left to right."""
    def lead(t):
        return t[:, None]
    top, tip = face.eye_y - .01, face.nose_y - .05
    t = torch.linspace(0, 1, 4, device=top.device)
    v = lead(top) + t * lead(tip - top)
    bridge = torch.stack([torch.zeros_like(v), v, _surface(face, torch.zeros_like(v), v) + .03 + lead(face.nose_len) * t ** 1.3], 2)
    u = torch.tensor([-1., -.5, 0., .5, 1.], device=top.device) * lead(face.nose_width)
    v = lead(face.nose_y) + torch.tensor([0., .02, .03, .02, 0.], device=top.device)
    out = torch.tensor([.02, .45, .6, .45, .02], device=top.device) * lead(face.nose_len)
    return torch.cat([bridge, torch.stack([u, v, _surface(face, u, v) + out], 2)], 1)


def landmarks(face, size):
    """The 68 iBUG landmarks in pixels: [B, 68, 2] as (x, y), 0-based, pixel centres at whole numbers.

    Jaw points (0-16) that turn away from the viewer slide to the visible outline, as annotators place them.
    """
    def lead(t):
        return t[:, None]
    device = face.yaw.device

    def line(*values):
        return torch.tensor(values, device=device).expand(len(face), -1)

    t = torch.linspace(-1, 1, 17, device=device)                                                          # 0-16 jaw
    chin = face.chin * (1 + .07 * face.mouth_open)
    v = lead(chin) * (.04 + .957 * (t * math.pi / 2).cos())
    u = lead(face.head_width) * _profile(face, v, lead) * .97 * t.sign()
    u[:, 8] = 0
    jaw, depth = _project(face, torch.stack([u, v, _surface(face, u, v)], 2))
    outline = (face.head_width ** 2 * face.yaw.deg2rad().cos() ** 2 + face.head_depth ** 2 * face.yaw.deg2rad().sin() ** 2).sqrt()
    edge = lead(outline) * _profile(face, v, lead) * t.sign()
    hidden = depth < 0
    jaw = torch.stack([torch.where(hidden, edge, jaw[..., 0]), torch.where(hidden, v, jaw[..., 1])], 2)

    points = []
    for side, s_out in ((-1, line(1., .5, 0., -.5, -1.)), (1, line(-1., -.5, 0., .5, 1.))):              # 17-26 brows
        u = side * (lead(face.eye_x) + .01 + .22 * s_out)
        points.append((u, _brow_curves(face, s_out, lead, side)[0]))
    nose = _nose_points(face)                                                                             # 27-35 nose
    for side, s_out in ((-1, line(1., .4, -.4, -1., -.4, .4)), (1, line(-1., -.4, .4, 1., .4, -.4))):     # 36-47 eyes
        up, low = _eye_curves(face, s_out, lead)
        points.append((side * (lead(face.eye_x) + lead(face.eye_width) * s_out), torch.cat([up[:, :4], low[:, 4:]], 1)))
    s = line(-1., -.62, -.26, 0., .26, .62, 1., .62, .26, 0., -.26, -.62, -.9, -.4, 0., .4, .9, .4, 0., -.4)  # 48-67 mouth
    outer_up, inner_up, inner_low, outer_low = _mouth_curves(face, s, lead)
    v = torch.cat([outer_up[:, :7], outer_low[:, 7:12], inner_up[:, 12:17], inner_low[:, 17:]], 1)
    points.append((lead(_mouth_half_width(face)) * s, v))

    flat, _ = _project(face, torch.cat([torch.stack([u, v, _surface(face, u, v)], 2) for u, v in points], 1))
    nose, _ = _project(face, nose)
    return _to_pixels(face, torch.cat([jaw, flat[:, :10], nose, flat[:, 10:]], 1), size)


# ------------------------------------------------------------------------------------------------------- painting

def _inside(distance, edge):
    """Coverage in [0, 1] from a signed distance (negative inside), in half heads; `edge` is the width of the ramp."""
    return (.5 - distance / edge).clamp(0, 1)


def _polygon(x, y, corners):
    """Signed distance to convex polygons, clockwise in the picture: corners [B, k, 2], x and y [B, H, W]."""
    distance = torch.full_like(x, -1e9)
    for k in range(corners.shape[1]):
        a, b = corners[:, k], corners[:, (k + 1) % corners.shape[1]]
        along = F.normalize(b - a, dim=1, eps=1e-6)[:, :, None, None]
        distance = torch.maximum(distance, along[:, 1] * (x - a[:, 0, None, None]) - along[:, 0] * (y - a[:, 1, None, None]))
    return distance


def _layers(face, size):
    """Paint from back to front: yields (region or None, coverage [B, H, W], colour broadcastable to [B, 3, H, W])."""
    def lead(t):
        return t[:, None, None]

    def rgb(t):
        return t[:, :, None, None]

    # Pixels -> half heads, undoing zoom, shift and roll (the inverse of _to_pixels).
    unit = lead(1 / (.36 * size * face.zoom))
    axis = torch.arange(size, device=face.yaw.device, dtype=torch.float32)
    px = (axis[None, None, :] - (.5 * size - .5)) * unit - lead(face.shift[:, 0])
    py = (axis[None, :, None] - (.53 * size - .5)) * unit - lead(face.shift[:, 1])
    s, c = lead(face.roll.deg2rad().sin()), lead(face.roll.deg2rad().cos())
    x, y_picture = px * c + py * s, py * c - px * s
    edge = unit * 1.4

    # The ray through the pixel meets the head: x' = x cos - z sin,  z' = x sin + z cos,  (x'/a)^2 + (z'/b)^2 = profile(y)^2.
    s, c = lead(face.yaw.deg2rad().sin()), lead(face.yaw.deg2rad().cos())
    a, b = lead(face.head_width), lead(face.head_depth)
    y = y_picture - _parallax(face, x, y_picture, lead)
    profile = _profile(face, y, lead)
    half_width = (a ** 2 * c ** 2 + b ** 2 * s ** 2).sqrt()
    A, half_B = s ** 2 / a ** 2 + c ** 2 / b ** 2, x * s * c * (1 / b ** 2 - 1 / a ** 2)
    C = x ** 2 * (c ** 2 / a ** 2 + s ** 2 / b ** 2) - profile ** 2
    z_camera = (-half_B + (half_B ** 2 - A * C).clamp(min=0).sqrt()) / A
    u, z, v = x * c - z_camera * s, x * s + z_camera * c, y
    front = z / (b * profile)                                                   # +1 at the nose, 0 at the ears
    head = _inside(torch.maximum(x.abs() - half_width * profile, torch.maximum(-.995 - y, y - lead(face.chin * (1 + .07 * face.mouth_open)) + .005)), edge)

    nx, ny, nz = x / half_width, .75 * y, z_camera
    light = [lead(face.light[:, k]) for k in range(3)]
    lambert = ((nx * light[0] + ny * light[1] + nz * light[2]) / (nx ** 2 + ny ** 2 + nz ** 2 + 1e-6).sqrt()).clamp(min=0)
    shade = (1 - .62 * lead(face.light_strength) * (1 - lambert) - .10 * (1 - z_camera.clamp(0, 1)))[:, None]

    skin = rgb(face.skin_rgb)
    grey = torch.tensor(HAIR_RGB[3], device=x.device)
    base = torch.tensor(HAIR_RGB, device=x.device)[face.hair.long()] + face.hair_tint
    hair_rgb = rgb((base + (grey - base) * (.45 * (face.age - .6).clamp(min=0))[:, None]).clamp(0, 1))
    strands = 1 + .07 * torch.sin(20 * u + 4 * torch.sin(3 * v + 4 * u) + lead(face.hair_part) * 3)
    hair_shade = (shade * strands[:, None] * (1.06 - .12 * (y_picture[:, None] + 1).clamp(0, 1)))

    # Background, hair behind, shoulders, neck
    top, bottom = face.background[:, 0], face.background[:, 1]
    ramp = axis[None, None, :, None] / size
    yield "background", torch.ones_like(x), rgb(top) + (rgb(bottom) - rgb(top)) * ramp
    volume, wave = lead(face.hair_volume), lead(face.curl) * .035 * torch.sin(9 * y_picture + 3) * torch.sin(7 * x + 1)
    end = .15 + 1.45 * lead(face.hair_length)
    below = ((y_picture - .1) / (end - .1)).clamp(min=0)
    above = (y_picture - .02).clamp(max=0) / (1 + volume * 1.15)
    back_width = (half_width + volume) * ((1 - below ** 6) * (1 - above ** 2)).clamp(min=0).sqrt() * (1 - .10 * below)
    back = _inside((x + .06 * s).abs() - back_width - wave, edge) * (lead(face.hair_length) > .4) * (above > -1)
    yield "hair", back, hair_rgb * .72 * strands[:, None]
    shoulders = _inside(((x / 1.25) ** 2 + ((y_picture - 1.95) / .72) ** 2).sqrt() - 1, edge)
    neck = _inside(torch.maximum((x + .10 * s).abs() - .36 - .25 * (y_picture - 1.05).clamp(min=0) ** 2 * 4, .3 - y_picture), edge)
    neck_shade = .60 + .24 * ((y_picture - .95) / .35).clamp(0, 1)
    yield "skin", neck, skin * neck_shade[:, None]
    collar = _inside(.36 * (1 - ((x + .05 * s) / .52) ** 2) + 1.10 - y_picture, edge)
    yield "clothes", torch.maximum(shoulders, neck * collar) * collar, rgb(face.clothes) * (1 - .12 * x.abs()[:, None])

    # Volume of the hair above the head, then the ears, then the head itself
    volume_here = volume * (1 - ((y_picture + .05) / .45).clamp(0, 1) * (lead(face.hair_length) < .4))
    crown = _inside(torch.sqrt((x + .06 * s) ** 2 / (half_width + volume_here) ** 2 + (y_picture - .02) ** 2 / (1 + volume * 1.15) ** 2) - 1 - wave, edge)
    yield "hair", crown * _inside(y_picture - .45 - .35 * lead(face.hair_length), edge * 4), hair_rgb * hair_shade * .92
    ear_at, ear_depth = _project(face, torch.stack([torch.stack([side * face.head_width * 1.0, face.eye_y + .13, -.06 * torch.ones_like(face.yaw)], 1)
                                                    for side in (-1, 1)], 1))
    ears = []
    for k in range(2):
        rx = lead(face.ear_size) * (.50 + .35 * s.abs())
        d = (((x - lead(ear_at[:, k, 0])) / rx) ** 2 + ((y_picture - lead(ear_at[:, k, 1])) / lead(face.ear_size)) ** 2).sqrt() - 1
        ears.append((_inside(d * rx, edge), _inside((d + .38) * rx, edge)))
        yield "skin", ears[k][0], skin * shade.amax(dim=(2, 3), keepdim=True) * .82
    yield "skin", head, skin * shade

    # Lines of age, moles, natural blush: on the skin, so no region of their own
    older = lead((face.age - .35).clamp(min=0) * 1.2)
    fold = (u.abs() - (lead(face.nose_width) + .06) - .42 * (v - lead(face.nose_y) + .04)).abs()
    fold = _inside(fold - .011, edge * 2) * (v > lead(face.nose_y) - .05) * (v < lead(face.mouth_y) + .02)
    brow_lines = _inside((torch.sin((v + .03 * torch.cos(4 * u)) * 44)).abs() * .022 - .0035, edge * 1.2) * (v > -.52) * (v < -.30) * (u.abs() < .36)
    bags = _inside((v - lead(face.eye_y + .12 * (1 + face.age)) - .02 * torch.cos((u.abs() - lead(face.eye_x)) * 9)).abs() - .009, edge * 2)
    bags = bags * ((u.abs() - lead(face.eye_x)).abs() < .15)
    visible = head * (front > .15)
    yield None, (torch.maximum(torch.maximum(fold, bags), brow_lines) * visible * older).clamp(max=.6), skin * .45
    for k in range(2):
        mu, mv, mr = (lead(face.moles[:, k, i]) for i in range(3))
        yield None, _inside(((u - mu) ** 2 + (v - mv) ** 2).sqrt() - mr, edge) * visible * (mr > 0), skin * .35
    cheeks = torch.exp(-(((u.abs() - .42) / .17) ** 2 + ((v - .40) / .13) ** 2)) * visible
    yield None, cheeks * .16, rgb((face.skin_rgb * torch.tensor([1.02, .72, .70], device=x.device)).clamp(0, 1)) * shade
    yield None, cheeks * lead(face.blush_alpha), rgb(face.blush_rgb) * shade

    # Beard: below a line from the ears to the mouth, around the lips
    mouth_half = lead(_mouth_half_width(face))
    sm = u / mouth_half
    outer_up, inner_up, inner_low, outer_low = _mouth_curves(face, sm.clamp(-1, 1), lead)
    grown = lead(face.beard)
    moustache = lead(face.nose_y) + .085 + .07 * sm ** 2
    cheek = lead(face.mouth_y) - .02 - .9 * (u.abs() - .36).clamp(min=0) ** 1.3
    bearded = _inside(torch.lerp(moustache, cheek, ((sm.abs() - 1.0) / .35).clamp(0, 1)) - v, edge * 3) * visible * (grown > 0)
    below_lip = torch.exp(-((u / .10) ** 2 + ((v - outer_low - .05) / .035) ** 2))
    stubble = 1 + .15 * torch.sin(60 * u + 8 * torch.sin(23 * v)) * torch.sin(48 * v)
    yield "beard", bearded * (.45 + .5 * grown) * (1 - .6 * below_lip), hair_rgb * (shade * stubble[:, None]) * .85

    # Eyes and brows
    iris, black = rgb(face.iris_rgb), torch.full_like(skin, .05)
    side, facing = torch.where(u < 0, -1., 1.), head * (front > .05)                          # both eyes at once
    s_out = (u.abs() - lead(face.eye_x)) / lead(face.eye_width)
    up, low = _eye_curves(face, s_out.clamp(-1, 1), lead)
    beyond = (s_out.abs() - 1) * lead(face.eye_width)
    brow_s = (u.abs() - lead(face.eye_x) - .01) / .22
    brow_v, brow_half = _brow_curves(face, brow_s.clamp(-1, 1), lead, side)
    lid = ((up - v) / (up - brow_v).clamp(min=.03)).clamp(0, 1)                               # 0 at the lashes, 1 at the brow
    shadow = _inside(((s_out - .1).abs() - 1.22) * lead(face.eye_width), edge * 5) * (1 - lid) ** .8 * (v < low)
    yield None, shadow * facing * lead(face.shadow_alpha), rgb(face.shadow_rgb) * shade
    eye = _inside(torch.maximum(torch.maximum(up - v, v - low), beyond), edge) * facing
    yield "eyes", eye, .97 * (.80 + .2 * shade)
    du = u - side * lead(face.eye_x) - .045 * lead(face.gaze_x)
    dv = v - lead(face.eye_y) + .01 - .035 * lead(face.gaze_y)
    centre, radius = (du ** 2 + dv ** 2).sqrt(), lead(face.iris_size)
    tone = (.75 + .3 * (dv / radius).clamp(-1, 1)) * (1 - .5 * _inside(radius * .86 - centre, edge)) * (1 - .93 * _inside(centre - radius * .48, edge))
    yield None, _inside(centre - radius, edge) * eye, iris * tone[:, None]
    yield None, _inside(((du + .035) ** 2 + (dv + .04) ** 2).sqrt() - .028, edge) * eye, torch.ones_like(skin)
    yield None, _inside(torch.maximum((v - up).abs() - .016, beyond), edge) * facing, hair_rgb * .25
    wing, past = lead(face.liner_wing), (s_out - 1).clamp(min=0)
    liner = torch.maximum((v - up + .45 * wing * past * lead(face.eye_width) + .012).abs() - .028 + .013 * past.clamp(max=1),
                          torch.maximum(-s_out - 1, s_out - 1.1 - .5 * wing) * lead(face.eye_width))
    yield None, _inside(liner, edge) * facing * lead(face.liner_alpha), black
    crease = torch.maximum((v - up + .045 + .02 * lead(face.eye_open)).abs() - .007, beyond + .02)
    yield None, _inside(crease, edge * 1.5) * facing * .35, skin * .5
    brow = torch.maximum((v - brow_v).abs() - brow_half, (brow_s.abs() - 1) * .22)
    yield "brows", _inside(brow, edge) * facing, hair_rgb * .62 * (.9 + .1 * shade)

    # Nose: two facets from the bridge to the wings, lit each on its own; the one turned away is not drawn
    nose, _ = _project(face, _nose_points(face))
    tip = nose[:, 3] * .9 + nose[:, 6] * .1
    for side, wing in ((-1, nose[:, 4]), (1, nose[:, 8])):
        corners = torch.stack([nose[:, 0], tip, nose[:, 6], wing] if side < 0 else [nose[:, 0], wing, nose[:, 6], tip], 1)
        across = wing[:, 0] - nose[:, 3, 0]
        shown = lead(((side * across) > .0).float())
        lit = face.light[:, 0] * (side * face.yaw.deg2rad().cos() + face.yaw.deg2rad().sin()) * .9 + face.light[:, 2] * .45
        tone = (1.04 - .55 * face.light_strength * (1 - lit.clamp(0, 1)))[:, None, None, None]
        facet = _inside(_polygon(x, y_picture, corners) - .012, edge * 1.5)
        fade = ((y_picture - lead(nose[:, 0, 1])) / lead(nose[:, 3, 1] - nose[:, 0, 1])).clamp(0, 1)
        yield "skin", facet * shown * (fade * .9), skin * tone * (.35 + .65 * shade)
        hole = nose[:, 5] if side < 0 else nose[:, 7]
        spot = (((x - lead(hole[:, 0])) / (.035 * c + .012)) ** 2 + ((y_picture - lead(hole[:, 1])) / .018) ** 2).sqrt() - 1
        yield None, _inside(spot * .02, edge) * shown * .6, skin * .35

    # Mouth
    beyond = (sm.abs() - 1) * mouth_half
    lips = _inside(torch.maximum(torch.maximum(outer_up - v, v - outer_low), beyond), edge) * visible
    natural = (face.skin_rgb * torch.tensor([.92, .62, .60], device=x.device)).clamp(0, 1)
    lip_rgb = natural + (face.lip_rgb - natural) * face.lip_alpha[:, None]
    gloss = 1 + .10 * torch.exp(-((v - inner_low - .035) / .02) ** 2) - .12 * (v < inner_up)
    yield "lips", lips, rgb(lip_rgb) * shade * gloss[:, None]
    mouth = _inside(torch.maximum(torch.maximum(inner_up - v, v - inner_low), beyond), edge) * visible
    opened = mouth * (inner_low - inner_up > 1e-4)
    yield "inner mouth", opened, torch.tensor([.28, .06, .07], device=x.device)[None, :, None, None]
    tongue = _inside(((u / (mouth_half * .55)) ** 2 + ((v - inner_low - .01) / .07) ** 2).sqrt() * .1 - .1, edge) * opened
    yield None, tongue, torch.tensor([.78, .36, .38], device=x.device)[None, :, None, None]
    yield None, opened * _inside(v - inner_up - .06, edge), torch.tensor([.97, .96, .92], device=x.device)[None, :, None, None]
    yield None, _inside(torch.maximum((v - inner_up).abs() - .009, beyond), edge) * visible * .85, rgb(lip_rgb) * .35

    # Hair over the head: the hairline on the forehead falls to the ears and the nape; then the near ear, then glasses
    fringe = .10 * lead(face.hair_part) * u + .07 * torch.cos(u * 5 + 2 * lead(face.hair_part)) + .02 * lead(face.curl) * torch.sin(30 * u)
    t = ((.42 - front) / .62).clamp(0, 1)
    hairline = (lead(face.hairline) + fringe) + (.80 - lead(face.hairline)) * t * t * (3 - 2 * t)
    long_side = .9 * (lead(face.hair_length) > .4) * ((.35 - front) / .3).clamp(0, 1)
    over = _inside((v - hairline - long_side) * .8, edge * 1.2) * head
    yield "hair", over, hair_rgb * hair_shade
    yield None, _inside((v - hairline - long_side).abs() - .02, edge * 3) * over * .35, hair_rgb * .5
    for k in range(2):
        near = lead(((ear_depth[:, k] - .02) / .12).clamp(0, 1) * (face.hair_length < .4))
        yield "skin", ears[k][0] * near, skin * shade.amax(dim=(2, 3), keepdim=True) * .86
        yield None, ears[k][1] * near * .5, skin * .55
    rim = torch.full_like(x, 1e9)
    for side in (-1, 1):
        d = (((side * u - lead(face.eye_x)).abs() / .235) ** 2.6 + ((v - lead(face.eye_y) - .02).abs() / .19) ** 2.6) ** (1 / 2.6) - 1
        rim = torch.minimum(rim, (d * .2).abs() - .016)
    rim = torch.minimum(rim, torch.maximum((v - lead(face.eye_y) + .01).abs() - .016, u.abs() - (lead(face.eye_x) - .22)))
    arm = torch.maximum((v - lead(face.eye_y) + .03).abs() - .016, lead(face.eye_x) + .22 - u.abs())
    rim = torch.minimum(rim, arm) * (front > -.05) + 1e3 * (front <= -.05)
    yield "glasses", _inside(rim, edge) * head * lead(face.glasses), torch.full_like(skin, .12)


def _chunks(face, pixels):
    """Split a batch so that the working set of one part stays in the processor's cache; on a GPU in some GiB."""
    step = max(1, (2 ** 16 if face.yaw.device.type == "cpu" else 2 ** 24) // pixels)
    return (face[slice(i, i + step)] for i in range(0, len(face), step))


@torch.no_grad()
def render(face, size=64):
    """The picture: [B, 3, size, size] float32 in [-1, 1]."""
    out = []
    for part in _chunks(face, 4 * size * size):
        image = None
        for _, coverage, colour in _layers(part, 2 * size):
            if image is None:
                image = colour.expand(-1, 3, 2 * size, 2 * size).clone()
            else:
                image.sub_(colour).mul_(1 - coverage[:, None]).add_(colour)
        out.append(F.avg_pool2d(image.clamp(0, 1), 2) * 2 - 1)
    return torch.cat(out)


@torch.no_grad()
def regions(face, size=64):
    """What each pixel shows: [B, size, size] int64, indices into REGIONS (the front-most layer that covers its centre)."""
    out = []
    for part in _chunks(face, size * size):
        label = torch.zeros(len(part), size, size, dtype=torch.long, device=part.yaw.device)
        for name, coverage, _ in _layers(part, size):
            if name:
                label = torch.where(coverage > .5, REGIONS.index(name), label)
        out.append(label)
    return torch.cat(out)


def region_map(face, size=64):
    """regions, painted in REGION_RGB: [B, 3, size, size] in [-1, 1]."""
    return torch.tensor(REGION_RGB, device=face.yaw.device)[regions(face, size)].permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def sketch(face, size=64, exaggeration=1.5, seed=0):
    """A pencil drawing: [B, 1, size, size] in [-1, 1]. An artist exaggerates: the drawing's geometry is a caricature.

    So a sketch is not a filtered photograph and does not lie on it pixel by pixel, as in CUFS.
    """
    big = 2 * size
    white, drawn = torch.ones_like(face.background), exaggerate(face, exaggeration)
    drawn = replace(drawn, background=white, clothes=torch.full_like(face.clothes, .9), skin_rgb=.84 + .12 * face.skin_rgb,
                    light_strength=.6 * face.light_strength)
    g = torch.Generator().manual_seed(seed)
    wobble = F.interpolate(torch.randn(1, 1, 9, 9, generator=g), (big, big), mode="bicubic").to(face.yaw.device)
    axis = torch.arange(big, device=face.yaw.device) / big
    grain = torch.rand(1, 1, big, big, generator=g).to(face.yaw.device)
    strokes = torch.sin(2 * math.pi * (40 * (axis[None, :] + .7 * axis[:, None]) + .2 * wobble[0, 0]))[None, None]
    out = []
    for part in _chunks(drawn, big * big):
        tone = (render(part, big) * .5 + .5).mul(torch.tensor([.35, .5, .15], device=face.yaw.device)[:, None, None]).sum(1, keepdim=True)
        soft = F.avg_pool2d(F.pad(tone, (1, 1, 1, 1), mode="replicate"), 3, 1)
        dx, dy = soft[..., :, 2:] - soft[..., :, :-2], soft[..., 2:, :] - soft[..., :-2, :]
        contour = ((F.pad(dx, (1, 1)) ** 2 + F.pad(dy, (0, 0, 1, 1)) ** 2).sqrt() * 3.2).clamp(0, .9)
        dark = (1 - soft - .15).clamp(min=0)
        hatching = (dark * (.75 + .45 * strokes)).clamp(0, .8)
        paper = .97 - .05 * grain
        out.append(F.avg_pool2d((paper - torch.maximum(contour, hatching) * (.9 + .1 * grain)).clamp(0, 1), 2) * 2 - 1)
    return torch.cat(out)


# --------------------------------------------------------------------------------------------------------- judges

JUDGE_PEOPLE, JUDGE_FRAMES, JUDGE_STEPS = 400, 10, 700


class Judge(nn.Module):
    """A small network that measures pictures: "identity" gives a unit vector [B, 128], "sketch" the same of pencil sketches (three
    equal channels), "landmarks" [B, 68, 2] pixels, "yaw" degrees [B], "regions" logits [B, 10, S, S] over REGIONS.

    Input [B, 3, S, S] in [-1, 1], any S. `features(x)` returns the four feature maps (for losses that compare features).
    Judges are trained on renders of people of their own, never those of a paper's training or test set.
    """

    def __init__(self, kind, n_classes=JUDGE_PEOPLE, width=32):
        super().__init__()
        self.kind, widths = kind, (3, width, 2 * width, 3 * width, 4 * width)
        self.convs = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                                   for a, b in zip(widths, widths[1:], strict=False))
        self.who = kind in ("identity", "sketch")
        self.fc = nn.Linear(16 * widths[-1], 128 if self.who else 256)
        self.head = nn.Linear(128, n_classes, bias=False) if self.who else nn.Linear(256, 1 if kind == "yaw" else 136)
        if kind == "regions":                                          # back up, beside the maps of the way down
            del self.fc, self.head
            self.ups = nn.ModuleList(nn.Sequential(nn.Conv2d(a + b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                                     for a, b in zip(widths[:0:-1], widths[-2:0:-1], strict=False))
            self.last = nn.Conv2d(widths[1] + 3, len(REGIONS), 3, padding=1)

    def features(self, x):
        maps = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return maps

    def embed(self, feature_map):
        return self.fc(F.adaptive_avg_pool2d(feature_map, 4).flatten(1))

    def segment(self, x):
        *below, y = [x, *self.features(x)]
        for up in (*self.ups, self.last):
            skip = below.pop()
            y = up(torch.cat([F.interpolate(y, skip.shape[2:]), skip], 1))
        return y

    def forward(self, x):
        if self.kind == "regions":
            return self.segment(x)
        feature = self.embed(self.features(x)[-1])
        if self.who:
            return F.normalize(feature, dim=1)
        if self.kind == "yaw":
            return 60 * self.head(F.relu(feature))[:, 0]
        return (self.head(F.relu(feature)).unflatten(1, (68, 2)) + .5) * x.shape[-1]


def judge(kind, size, seed, device="cpu", cache="runs/cache"):
    """A trained, frozen Judge and its own error on true renders of people it never saw; cached. A minute to train on two cores.

    kind: "identity" or "sketch" (error: the equal error rate of telling two people apart), "landmarks" (error: mean distance, px),
    "yaw" (error: mean, degrees) or "regions" (error: share of pixels put into another region).
    seed: judges of different seeds have seen different people; use one in a loss and another to measure.
    """
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    path = Path(cache) / f"judge-{kind}-{size}-{seed}-{source}.pt"
    net = Judge(kind)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(saved["net"])
        error = saved["error"]
    except Exception:                                                  # not there, or damaged: make it
        print(f"training the {kind} judge (once, on {JUDGE_PEOPLE} people of its own) ...", flush=True)
        error = _train_judge(net, kind, size, seed, device)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        try:
            torch.save({"net": net.state_dict(), "error": error}, partial)
            os.replace(partial, path)
        finally:                                                       # a full disk keeps no half of it
            partial.unlink(missing_ok=True)
    return net.to(device).eval().requires_grad_(False), error


@torch.enable_grad()                                                   # whoever measures has switched gradients off
def _train_judge(net, kind, size, seed, device):
    first = 1_000_000 + 1000 * seed                                   # seeds that no paper draws people from
    g = torch.Generator().manual_seed(first)

    def videos(people, n_frames, seed):                                # no hints from the scene, faces near and far
        faces = frames(sample(people, seed, device), n_frames, seed + 1, vary=SCENE + MAKEUP)
        return faces.set(zoom=.9 + .45 * torch.rand(len(faces), generator=g))

    def paint(faces):                                                  # sketches by artists who exaggerate more or less
        if kind != "sketch":
            return render(faces, size)
        return sketch(faces, size, 1 + .6 * torch.rand(len(faces), generator=g).to(device)).expand(-1, 3, -1, -1)

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(first)
        net.__init__(kind)
        net.to(device).train()
        faces = videos(JUDGE_PEOPLE, JUDGE_FRAMES, first)
        images, truth = (paint(faces) * 127).to(torch.int8), faces.yaw if kind == "yaw" else (regions if kind == "regions" else landmarks)(faces, size)
        person = torch.arange(JUDGE_PEOPLE, device=device).repeat_interleave(JUDGE_FRAMES)
        steps = JUDGE_STEPS // 2 if kind == "regions" else JUDGE_STEPS       # every pixel teaches
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
        for _ in range(steps):
            k = torch.randint(len(images), (64,), generator=g).to(device)
            x = images[k].float() / 127 + .02 * torch.randn(64, 3, size, size, generator=g).to(device)
            if net.who:                                                # softmax over cosines, with a margin (CosFace, Wang et al. 2018)
                cosine = net(x) @ F.normalize(net.head.weight, dim=1).T
                loss = F.cross_entropy(20 * (cosine - .15 * F.one_hot(person[k], JUDGE_PEOPLE)), person[k])
            elif kind == "regions":
                loss = F.cross_entropy(net(x), truth[k])
            else:
                loss = (net(x) - truth[k]).abs().mean() / size         # pixels, or degrees
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()
    strangers = videos(60, 6, first + 2)
    with torch.no_grad():
        out = net(paint(strangers))
        if kind == "regions":
            return (out.argmax(1) != regions(strangers, size)).float().mean().item()
        if kind == "landmarks":
            return (out - landmarks(strangers, size)).norm(dim=2).mean().item()
        if kind == "yaw":
            return (out - strangers.yaw).abs().mean().item()
        cosine, who = out @ out.T, torch.arange(60, device=device).repeat_interleave(6)
        same = who[:, None] == who[None, :]
        other, same = cosine[~same], cosine[same & ~torch.eye(len(who), dtype=torch.bool, device=device)]
        thresholds = torch.linspace(-1, 1, 401, device=device)[:, None]
        rejected, accepted = (same < thresholds).float().mean(1), (other >= thresholds).float().mean(1)
        return ((rejected + accepted) / 2)[(rejected - accepted).abs().argmin()].item()


def contact_sheet(seed=0, size=128):
    """All that this file can do, on one PIL image."""
    from common import draw_points, grid
    faces = sample(8, seed + 3, pose=0, expression=False, makeup=False)
    wild = sample(8, seed + 5)
    made_up = faces.take(sample(8, seed + 9).set(lip_alpha=.9, shadow_alpha=.8, liner_alpha=1., blush_alpha=.5), MAKEUP)
    columns = [(f"yaw {yaw}", faces.set(yaw=float(yaw))) for yaw in range(-60, 61, 20)]
    columns += [(name, faces.express(name)) for name in EXPRESSIONS if name != "neutral"]
    columns += [(name, with_attribute(faces, name)) for name in ATTRIBUTES if name not in ("Smiling", "Makeup")]
    columns += [("make-up", made_up), ("all at once", wild)]
    pictures = [(name, render(face, size)) for name, face in columns]
    pictures.append(("landmarks", torch.maximum(render(wild, size) * .5 - .5, draw_points(landmarks(wild, size), size))))
    pictures.append(("regions", region_map(wild, size)))
    pictures += [("sketch", sketch(face, size).expand(-1, 3, -1, -1)) for face in (faces, wild)]
    half = len(pictures) // 2
    top, bottom = (grid([p for _, p in part], [n for n, _ in part]) for part in (pictures[:half], pictures[half:]))
    sheet = Image.new("RGB", (max(top.width, bottom.width), top.height + bottom.height), "white")
    sheet.paste(top, (0, 0))
    sheet.paste(bottom, (0, top.height))
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="toyfaces.png")
    args = parser.parse_args()
    contact_sheet(args.seed, args.size).save(args.out)
    everyone, start = sample(256, 1), time.perf_counter()
    render(everyone, 64)
    print(f"{args.out}; {256 / (time.perf_counter() - start):.0f} faces/s at 64 px on {torch.get_num_threads()} threads")
