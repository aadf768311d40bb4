"""Toy faces: drawn people whose every property is known exactly.

A `Face` is a batch of parameters: person (proportions, skin, hair, moles, beard, glasses, age), expression,
gaze, pose (yaw, pitch, roll), light, background, make-up. From these numbers follow exactly

    render(face, size)     the picture                     [B, 3, S, S] in [-1, 1]
    landmarks(face, size)  the 68 iBUG points              [B, 68, 2], pixels, (x, y); may lie outside
    regions(face, size)    skin, hair, brows, eyes, ...    [B, S, S], int64, indices into REGIONS
    sketch(face, size)     an artist's pencil drawing      [B, 1, S, S] in [-1, 1]
    attributes(face)       hair colour, beard, glasses ... [B, 10], 0 or 1, in the order of ATTRIBUTES

Every parameter can be changed alone. This gives the *counterfactual*: the same person with another
expression, pose, hair colour or make-up. It is the truth that a translation is measured against.

How it is drawn. The head is a solid like an ellipsoid. The ray of each pixel is intersected with it in closed
form. This gives the point of the head that the pixel sees. Eyes, lips, brows and make-up are functions on the
front plane of the head (u to the viewer's right, v down, crown -1, chin about +1), so foreshortening and
occlusion follow from the pose. Only nose, ears, neck and hair volume are separate shapes. Everything is drawn
at twice the size and averaged, which smooths the edges.

    python -m lab.toyfaces [--size 128] [--seed 0] [--out toyfaces.png]      a contact sheet of all of this
"""
import argparse
import functools
import hashlib
import inspect
import math
import sys
from dataclasses import fields, make_dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from tqdm import tqdm

from lab import say
from lab.images import cached, draw_points, grid, to_uint8

REGIONS = "background", "skin", "hair", "brows", "eyes", "lips", "inner mouth", "beard", "glasses", "clothes"
REGION_RGB = ((20, 24, 60), (240, 200, 170), (110, 70, 40), (60, 30, 20), (250, 250, 250), (200, 60, 80),
              (120, 0, 20), (90, 80, 60), (0, 0, 0), (70, 130, 180))           # how region_map paints REGIONS
ATTRIBUTES = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Long_Hair", "Beard", "Eyeglasses",
              "Young", "Smiling", "Makeup")
HAIR_RGB = (.09, .08, .09), (.88, .70, .36), (.40, .23, .12), (.72, .72, .73)    # in ATTRIBUTES' order
SKINS = (1., .85, .75), (.86, .64, .46), (.42, .27, .19)                         # light, olive, dark
IRISES = (.25, .14, .07), (.42, .27, .12), (.25, .45, .30), (.25, .45, .70), (.45, .52, .58)
LIPSTICKS = (.75, .08, .15), (.85, .25, .35), (.55, .05, .25), (.80, .35, .25), (.45, .10, .35)
EYE_SHADOWS = (.45, .25, .55), (.20, .35, .65), (.15, .50, .45), (.55, .35, .20), (.75, .35, .50)

# The eight expressions of RaFD, in alphabetical order. 1 is the strongest that still looks like a face.
#                smile  open  sneer contempt raise frown eyes  gaze_y
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
# Geometry of the identity: mean and half range of a uniform draw, in units of half a head's height. jaw: 2 is
# an ellipse, 3.3 square. brow_asym: one brow is higher. hair_part: side of the parting. curl: 1 = wavy.
GEOMETRY = {
    "head_width": (.76, .07), "head_depth": (.85, .05), "jaw": (2.7, .6), "chin": (.99, .06),
    "eye_y": (.06, .04), "eye_x": (.345, .03), "eye_width": (.17, .025), "eye_height": (.105, .028),
    "eye_slant": (.02, .05), "iris_size": (.095, .012), "brow_y": (-.17, .035), "brow_thick": (.042, .02),
    "brow_slant": (0., .05), "brow_asym": (0., .05), "nose_y": (.42, .035), "nose_len": (.27, .07),
    "nose_width": (.125, .03), "mouth_y": (.665, .03), "mouth_width": (.27, .045), "lip_upper": (.05, .018),
    "lip_lower": (.072, .022), "hairline": (-.60, .10), "hair_part": (0., 1.), "hair_volume": (.10, .05),
    "curl": (.5, .5), "ear_size": (.16, .03)}
# The fields of Face. `face.take(other, EXPRESSION)` gives these people the expressions of the others.
IDENTITY = (*GEOMETRY,
            "skin_rgb", "iris_rgb",              # [B, 3] in [0, 1]
            "hair", "hair_tint", "hair_length",  # index into HAIR_RGB; [B, 3], is added; 0 short ... 1 long
            "beard", "glasses", "age",           # 0 none ... 1 full; 0 or 1; 0 young ... 1 old
            "moles")                             # [B, 2, 3]: u, v, radius; one on each side, radius 0 = none
EXPRESSION = ("smile", "mouth_open", "sneer", "contempt",      # smile: -1 ... 1, the others from 0
              "brow_raise", "frown",                           # frown: 1 angry, -1 sad
              "eye_open", "gaze_y", "gaze_x")                  # 0 closed, 1 normal; 1 down; 1 to the right
POSE = ("yaw", "pitch", "roll",                  # degrees; positive: to the viewer's right, down, clockwise
        "shift", "zoom")                         # [B, 2], half heads; 1: half a head is .36 of the side
SCENE = ("light", "light_strength",              # [B, 3], unit vector to it, camera axes; 0 flat ... 1 hard
         "background", "clothes")                # [B, 2, 3], colour above and below; [B, 3]
MAKEUP = ("lip_rgb", "lip_alpha", "shadow_rgb", "shadow_alpha",          # rgb: [B, 3]; alpha: 0 ... 1
          "liner_alpha", "liner_wing", "blush_rgb", "blush_alpha")       # wing: length, 0 ... 0.5


class Face(make_dataclass("Fields", IDENTITY + EXPRESSION + POSE + SCENE + MAKEUP)):
    """A batch of B faces. Every field is a float32 tensor, [B] unless said otherwise above."""

    def __len__(self):
        return len(self.yaw)

    def _map(self, function):
        return Face(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def __getitem__(self, index):
        """A batch of the faces at `index` (an int, a slice, or an index tensor)."""
        return self._map(lambda value: value[[index] if isinstance(index, int) else index])

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
        """These faces with fields moved towards usual values: share 1 moves nothing, 0 makes all alike."""
        same = self.set(**usual)
        faces = self.set(**{name: getattr(same, name) + share * (getattr(self, name) - getattr(same, name))
                            for name in usual})
        return faces.set(light=F.normalize(faces.light, dim=1))

    def express(self, name):
        """These faces with one of the eight EXPRESSIONS, looking ahead."""
        return self.set(**dict(zip(EXPRESSION, EXPRESSIONS[name], strict=False)), gaze_x=0.)

    def no_makeup(self):
        return self.set(lip_alpha=0., shadow_alpha=0., liner_alpha=0., blush_alpha=0.)


def cat(faces):
    """Join a list of face batches into one."""
    return Face(**{f.name: torch.cat([getattr(face, f.name) for face in faces]) for f in fields(Face)})


# ================================================================================== random people

def sample(n, seed=0, device="cpu", *, expression=True, pose=1., makeup=True):
    """n random people. They depend on `seed` alone: the same on every device.

    expression, makeup: draw them, or leave the faces neutral / bare. pose: 0 frontal, 1 the full range: yaw
    up to 60 degrees, pitch 18, roll 12, .08 half heads to the side, 7 % nearer or farther.
    """
    g = torch.Generator().manual_seed(seed)

    def u(low=0., high=1., *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=g)

    def colour(table):
        return torch.tensor(table)[torch.randint(len(table), (n,), generator=g)]

    face = {name: u(mean - half, mean + half) for name, (mean, half) in GEOMETRY.items()}
    tone, (light, olive, dark) = u()[:, None], torch.tensor(SKINS)              # tones 0, .5, 1
    skin = torch.where(tone < .5, light + (olive - light) * 2 * tone, olive + (dark - olive) * (2 * tone - 1))
    age = u() ** 1.5
    hair = torch.tensor([.36, .28, .36]).multinomial(n, replacement=True, generator=g).float()
    hair = torch.where((age > .6) & (u() < .5), torch.full((n,), 3.), hair)     # 3: gray
    moles = [torch.tensor([-1., 1.]) * u(.16, .50, 2), u(.16, .80, 2), u(.016, .028, 2) * (u(0, 1, 2) < .6)]
    beard = (u() < .25).float() * u(.5, 1.)
    length = torch.where(u() < .45, u(.55, 1.), u(0., .25)) * (1 - .7 * (beard > 0).float())
    face |= dict(skin_rgb=(skin + u(-.02, .02, 3)).clamp(0, 1), hair=hair, hair_tint=u(-.04, .04, 3),
                 hair_length=length, iris_rgb=colour(IRISES), beard=beard, glasses=(u() < .2).float(),
                 age=age, moles=torch.stack(moles, 2))

    table, neutral = torch.tensor([*EXPRESSIONS.values()]), torch.tensor(EXPRESSIONS["neutral"])
    first, second = torch.randint(len(table), (2, n), generator=g)              # a mixture of two
    mix, strength = u()[:, None], u(.3, 1.1)[:, None]
    values = neutral + strength * (mix * table[first] + (1 - mix) * table[second] - neutral)
    values = values if expression else neutral.expand(n, -1)
    face |= dict(zip(EXPRESSION, values.unbind(1), strict=False), gaze_x=u(-1, 1) * expression)

    face |= dict(yaw=u(-60, 60) * pose, pitch=u(-18, 18) * pose, roll=u(-12, 12) * pose,
                 shift=u(-.08, .08, 2) * pose, zoom=1 + u(-.07, .07) * pose)
    azimuth, height = u(-1.2, 1.2), u(.1, .7)
    light = torch.stack([azimuth.sin() * height.cos(), -height.sin(), azimuth.cos() * height.cos()], 1)
    face |= dict(light=light, light_strength=u(.25, .75),
                 background=.35 + .4 * u(0, 1, 1, 1) + .28 * u(-1, 1, 2, 3), clothes=u(.1, .9, 3))
    wears = (u() < .5).float() * makeup
    red, shadow, blush = colour(LIPSTICKS), colour(EYE_SHADOWS), torch.tensor([.9, .35, .38])
    face |= dict(lip_rgb=(red + u(-.08, .08, 3)).clamp(0, 1), lip_alpha=u(.5, 1.) * wears,
                 shadow_rgb=(shadow + u(-.08, .08, 3)).clamp(0, 1), shadow_alpha=u(.3, .9) * wears,
                 liner_alpha=u(.3, 1.) * wears, liner_wing=u(0., .5),
                 blush_rgb=(blush + u(-.1, .1, 3)).clamp(0, 1), blush_alpha=u(.1, .6) * wears)
    return Face(**face).to(device)


def frames(people, n_frames, seed=0, pose=1., vary=()):
    """A "video" of each person: n_frames pictures in random poses and expressions, all else the same.

    pose: range of the poses, see `sample`. vary: further fields to draw anew for every picture, e.g. SCENE.
    Returns a Face batch of len(people) * n_frames, one person after the other.
    """
    other = sample(len(people) * n_frames, seed, people.yaw.device, pose=pose)
    return people.repeat(n_frames).take(other, EXPRESSION + POSE + tuple(vary))


def attributes(face):
    """[B, 10] of 0 and 1, in the order of ATTRIBUTES."""
    on = [*(face.hair == k for k in range(4)), face.hair_length > .5, face.beard > 0, face.glasses > 0,
          face.age < .5, face.smile > .3, face.lip_alpha > 0]
    return torch.stack(on, 1).float()


def with_attribute(face, name, value=1.):
    """These faces with one of ATTRIBUTES set to 0 or 1; a hair colour only to 1. Else ValueError."""
    if name not in ATTRIBUTES:
        raise ValueError(f"unknown attribute {name!r}; expected one of {', '.join(ATTRIBUTES)}")
    k, on = ATTRIBUTES.index(name), float(value)
    if k < 4 and not on:
        raise ValueError(f"{name} cannot be switched off: set another hair colour")
    if k < 4:
        return face.set(hair=float(k))
    if name == "Smiling":
        shown = dict(zip(EXPRESSION, EXPRESSIONS["happy" if on else "neutral"], strict=False))
        return face.set(**{k: shown[k] for k in ("smile", "mouth_open", "contempt", "sneer")})
    if name == "Makeup":
        made_up = face.set(lip_alpha=.8, shadow_alpha=.6, liner_alpha=.8, blush_alpha=.4)
        return made_up if on else face.no_makeup()
    field, yes, no = {"Long_Hair": ("hair_length", .8, .1), "Beard": ("beard", .8, 0.),
                      "Eyeglasses": ("glasses", 1., 0.), "Young": ("age", .1, .9)}[name]
    return face.set(**{field: yes if on else no})


def exaggerate(face, strength=1.5):
    """A caricature: every proportion moved away from the average by `strength` (1 = unchanged)."""
    return replace(face, **{name: mean + strength * (getattr(face, name) - mean)
                            for name, (mean, _) in GEOMETRY.items() if name not in ("hair_part", "curl")})


# ======================================================================================= geometry
# `lifted` faces are _lifted(face, 1) for points [B, n], _lifted(face, 2) for pictures [B, H, W].

def _lifted(face, n):
    """These faces with n axes of length 1 at the end of every field, to broadcast with what is computed."""
    return face._map(lambda value: value[(..., *[None] * n)])


def _chin(face):
    """v of the tip of the chin; an open mouth lowers it."""
    return face.chin * (1 + .07 * face.mouth_open)


def _half_width_squared(face):
    """Of the turned head, where it is widest, as the viewer sees it."""
    s, c = face.yaw.deg2rad().sin(), face.yaw.deg2rad().cos()
    return face.head_width ** 2 * c ** 2 + face.head_depth ** 2 * s ** 2


def _profile(lifted, y):
    """Half width of the head at height y as a part of the widest: 1 at y = 0, 0 at crown and chin."""
    up = 1 - y.clamp(-1, 0) ** 2
    down = 1 - (y.clamp(min=0) / _chin(lifted)).clamp(max=1) ** lifted.jaw
    return (torch.where(y < 0, up, down) + 1e-6).sqrt()


def _parallax(lifted, x, y):
    """How far nodding moves the point seen at (x, y) up or down: the head bulges towards the viewer."""
    bulge = (.95 * (1 - x ** 2 / _half_width_squared(lifted) - y ** 2)).clamp(min=0)
    return bulge * lifted.pitch.deg2rad().sin()


def _project(face, points):
    """Head coordinates [B, n, 3] -> picture coordinates, half heads [B, n, 2], depth to the viewer [B, n]."""
    lifted = _lifted(face, 1)
    s, c = lifted.yaw.deg2rad().sin(), lifted.yaw.deg2rad().cos()
    x, y, z = points.unbind(2)
    x, z = x * c + z * s, z * c - x * s
    target = y
    for _ in range(8):                                             # solves y = target + parallax(x, y)
        y = target + _parallax(lifted, x, y)
    return torch.stack([x, y], 2), z


def _to_pixels(face, points, size):
    """Picture coordinates in half heads -> pixels: roll, shift, zoom."""
    s, c = face.roll.deg2rad().sin()[:, None], face.roll.deg2rad().cos()[:, None]
    x, y = points.unbind(2)
    x, y = x * c - y * s, x * s + y * c
    points = (torch.stack([x, y], 2) + face.shift[:, None]) * (.36 * size * face.zoom)[:, None, None]
    return points + points.new_tensor([.5 * size - .5, .53 * size - .5])


def _depth(lifted, u, v):
    """Depth of the front of the head at front-plane coordinates u, v: [B, n] each."""
    inside = _profile(lifted, v) ** 2 - (u / lifted.head_width) ** 2
    return lifted.head_depth * inside.clamp(min=1e-6).sqrt()


# Curves of the features are functions of a coordinate s in [-1, 1] along the feature. The picture and the
# landmarks are both made from them, so they agree.

def _bow(s):
    return (1 - s ** 2).clamp(min=0)


def _eye_curves(lifted, s_out):
    """Upper and lower lid (v) at s_out: -1 inner corner, +1 outer corner."""
    middle, height, opened = lifted.eye_y - lifted.eye_slant * s_out, lifted.eye_height, lifted.eye_open
    upper = middle - height * opened * _bow(s_out) ** .8
    return upper, middle + .62 * height * opened.clamp(max=1) * _bow(s_out)


def _brow_curves(lifted, s_out, side):
    """Centre (v) and half thickness of a brow at s_out: -1 inner end, +1 outer end. side: -1 or 1."""
    v = lifted.brow_y - .10 * lifted.brow_raise - .045 * _bow(s_out) - lifted.brow_slant * s_out
    v = v + .075 * lifted.frown * (1 - s_out) / 2 - .02 * lifted.frown * (1 + s_out) / 2
    v = v + (lifted.brow_asym + .05 * lifted.contempt) * -.5 * side
    return v, lifted.brow_thick * (1 - .5 * (s_out + 1) / 2)


def _mouth_curves(lifted, s):
    """v of the four lip lines at s, from above: outer upper, inner upper, inner lower, outer lower."""
    smile, opening, sneer = lifted.smile, .24 * lifted.mouth_open, .035 * lifted.sneer * _bow(s)
    middle = lifted.mouth_y + .035 * smile - .13 * smile * s ** 2
    middle = middle - .11 * lifted.contempt * s.clamp(min=0) ** 2
    inner_up, inner_low = middle - .35 * opening * _bow(s) - sneer, middle + .65 * opening * _bow(s)
    cupid = _bow(s) * (1 - .28 * torch.exp(-(s / .2) ** 2))
    outer_low = inner_low + lifted.lip_lower * _bow(s) ** .8
    return inner_up - lifted.lip_upper * cupid, inner_up, inner_low, outer_low


def _mouth_half_width(face):
    rounding = .16 * face.mouth_open * (1 - face.smile.clamp(0, 1))
    return face.mouth_width * (1 + .18 * face.smile.clamp(min=0) - rounding)


def _nose_points(face):
    """[B, 9, 3] head coordinates of landmarks 27-35: four down the bridge, five along the base."""
    face, device = _lifted(face, 1), face.yaw.device
    top, tip = face.eye_y - .01, face.nose_y - .05
    t = torch.linspace(0, 1, 4, device=device)
    v = top + t * (tip - top)
    u = torch.zeros_like(v)
    bridge = torch.stack([u, v, _depth(face, u, v) + .03 + face.nose_len * t ** 1.3], 2)
    u = torch.tensor([-1., -.5, 0., .5, 1.], device=device) * face.nose_width
    v = face.nose_y + torch.tensor([0., .02, .03, .02, 0.], device=device)
    out = torch.tensor([.02, .45, .6, .45, .02], device=device) * face.nose_len
    return torch.cat([bridge, torch.stack([u, v, _depth(face, u, v) + out], 2)], 1)


def landmarks(face, size):
    """The 68 iBUG landmarks in pixels: [B, 68, 2] as (x, y), 0-based, pixel centres at whole numbers.

    Jaw points (0-16) that turn away from the viewer slide to the visible outline, as annotators place them.
    """
    lifted = _lifted(face, 1)

    def line(*values):
        return torch.tensor(values, device=face.yaw.device).expand(len(face), -1)

    t = torch.linspace(-1, 1, 17, device=face.yaw.device)                                   # 0-16, jaw
    v = _chin(lifted) * (.04 + .957 * (t * math.pi / 2).cos())
    u = lifted.head_width * _profile(lifted, v) * .97 * t.sign()
    u[:, 8] = 0
    jaw, depth = _project(face, torch.stack([u, v, _depth(lifted, u, v)], 2))
    outline = torch.stack([_half_width_squared(lifted).sqrt() * _profile(lifted, v) * t.sign(), v], 2)
    jaw = torch.where((depth < 0)[..., None], outline, jaw)

    points = []
    for side, s_out in ((-1, line(1., .5, 0., -.5, -1.)), (1, line(-1., -.5, 0., .5, 1.))):  # 17-26, brows
        u = side * (lifted.eye_x + .01 + .22 * s_out)
        points.append((u, _brow_curves(lifted, s_out, side)[0]))
    nose, _ = _project(face, _nose_points(face))                                            # 27-35, nose
    for side, s_out in ((-1, line(1., .4, -.4, -1., -.4, .4)), (1, line(-1., -.4, .4, 1., .4, -.4))):
        up, low = _eye_curves(lifted, s_out)                                                # 36-47, eyes
        u = side * (lifted.eye_x + lifted.eye_width * s_out)
        points.append((u, torch.cat([up[:, :4], low[:, 4:]], 1)))
    s = line(-1., -.62, -.26, 0., .26, .62, 1., .62, .26, 0., -.26, -.62,                   # 48-67, mouth
             -.9, -.4, 0., .4, .9, .4, 0., -.4)
    outer_up, inner_up, inner_low, outer_low = _mouth_curves(lifted, s)
    v = torch.cat([outer_up[:, :7], outer_low[:, 7:12], inner_up[:, 12:17], inner_low[:, 17:]], 1)
    points.append((_mouth_half_width(lifted) * s, v))

    flat, _ = _project(face, torch.cat([torch.stack([u, v, _depth(lifted, u, v)], 2) for u, v in points], 1))
    return _to_pixels(face, torch.cat([jaw, flat[:, :10], nose, flat[:, 10:]], 1), size)


# ======================================================================================= painting

def _inside(distance, edge):
    """Coverage in [0, 1] from a signed distance, negative inside. `edge`: width of the ramp. Half heads."""
    return (.5 - distance / edge).clamp(0, 1)


def _polygon(x, y, corners):
    """Signed distance to convex polygons, clockwise in the picture: corners [B, k, 2], x and y [B, H, W]."""
    distance = torch.full_like(x, -1e9)
    for k in range(corners.shape[1]):
        a, b = corners[:, k, :, None, None], corners[:, (k + 1) % corners.shape[1], :, None, None]
        along = F.normalize(b - a, dim=1, eps=1e-6)
        distance = torch.maximum(distance, along[:, 1] * (x - a[:, 0]) - along[:, 0] * (y - a[:, 1]))
    return distance


def _ellipse(x, y, rx, ry):
    """-1 in the middle of an ellipse round (0, 0), 0 on its edge, above 0 outside."""
    return ((x / rx) ** 2 + (y / ry) ** 2).sqrt() - 1


def _rgb(like, *colour):
    return torch.tensor(colour, device=like.device)[:, None, None]


def _hair_rgb(face):
    """[B, 3]; age turns it grey."""
    hair = torch.tensor(HAIR_RGB, device=face.yaw.device)[face.hair.long()] + face.hair_tint
    grey = .45 * (face.age - .6).clamp(min=0)
    return (hair + (hair.new_tensor(HAIR_RGB[3]) - hair) * grey[:, None]).clamp(0, 1)


def _lip_rgb(face):
    """[B, 3]; natural lips, or under lipstick."""
    natural = (face.skin_rgb * face.skin_rgb.new_tensor([.92, .62, .60])).clamp(0, 1)
    return natural + (face.lip_rgb - natural) * face.lip_alpha[:, None]


def _both(*distances):
    """Distance to what several shapes have in common."""
    return functools.reduce(torch.maximum, distances)


def _view(people, size):
    """What the layers share.

    face: the people, lifted. x, y: where a pixel is in the picture, in half heads, roll undone. u, v: the
    point of the front plane that it sees. front: 1 at the nose, 0 at the ears. head, visible: coverage of the
    head, and of its front. edge: width of a soft edge. shade: [B, 1, H, W], brightness under the light.
    """
    face = _lifted(people, 2)
    unit = 1 / (.36 * size * face.zoom)            # pixels to half heads, without zoom, shift and roll
    axis = torch.arange(size, device=face.yaw.device, dtype=torch.float32)
    px = (axis[None, None, :] - (.5 * size - .5)) * unit - face.shift[:, 0]
    py = (axis[None, :, None] - (.53 * size - .5)) * unit - face.shift[:, 1]
    s, c = face.roll.deg2rad().sin(), face.roll.deg2rad().cos()
    x, y, edge = px * c + py * s, py * c - px * s, unit * 1.4

    # Where the pixel's ray meets the head: x' = x cos - z sin, z' = x sin + z cos,
    # (x' / a)^2 + (z' / b)^2 = profile(v)^2. This is a quadratic equation for z: A z^2 + B z + C = 0.
    s, c = face.yaw.deg2rad().sin(), face.yaw.deg2rad().cos()
    a, b, v = face.head_width, face.head_depth, y - _parallax(face, x, y)
    profile, half_width = _profile(face, v), _half_width_squared(face).sqrt()
    A, half_B = s ** 2 / a ** 2 + c ** 2 / b ** 2, x * s * c * (1 / b ** 2 - 1 / a ** 2)
    C = x ** 2 * (c ** 2 / a ** 2 + s ** 2 / b ** 2) - profile ** 2
    z = (-half_B + (half_B ** 2 - A * C).clamp(min=0).sqrt()) / A
    u, front = x * c - z * s, (x * s + z * c) / (b * profile)
    head = _inside(_both(x.abs() - half_width * profile, -.995 - v, v - _chin(face) + .005), edge)

    nx, ny, nz = x / half_width, .75 * v, z        # about the normal of the surface
    lambert = nx * face.light[:, 0] + ny * face.light[:, 1] + nz * face.light[:, 2]
    lambert = (lambert / (nx ** 2 + ny ** 2 + nz ** 2 + 1e-6).sqrt()).clamp(min=0)
    shade = (1 - .62 * face.light_strength * (1 - lambert) - .10 * (1 - z.clamp(0, 1)))[:, None]

    hair = _hair_rgb(people)[..., None, None]
    strands = (1 + .07 * torch.sin(20 * u + 4 * torch.sin(3 * v + 4 * u) + face.hair_part * 3))[:, None]
    lit_hair = hair * (shade * strands * (1.06 - .12 * (y[:, None] + 1).clamp(0, 1)))
    return SimpleNamespace(
        people=people, face=face, axis=axis, x=x, y=y, s=s, c=c, u=u, v=v, front=front, half_width=half_width,
        head=head, visible=head * (front > .15), edge=edge, shade=shade, strands=strands, hair=hair,
        lit_hair=lit_hair, ears=_ears(people, face, x, y, edge), mouth_s=u / _mouth_half_width(face))


def _ears(people, face, x, y, edge):
    """Of each ear: coverage of the whole and of its inner part, depth towards the viewer."""
    at = [torch.stack([side * people.head_width, people.eye_y + .13, torch.full_like(people.yaw, -.06)], 1)
          for side in (-1, 1)]
    at, depth = (value[..., None, None] for value in _project(people, torch.stack(at, 1)))
    size, rx, ears = face.ear_size, face.ear_size * (.50 + .35 * face.yaw.deg2rad().sin().abs()), []
    for k in range(2):
        d = _ellipse(x - at[:, k, 0], y - at[:, k, 1], rx, size)
        ears.append((_inside(d * rx, edge), _inside((d + .38) * rx, edge), depth[:, k]))
    return ears


# Each part yields its layers: region or None, coverage [B, H, W], colour that broadcasts to [B, 3, H, W].
# Where the region is None, the layer belongs to what is below it.

def _behind_the_head(view):
    """Background, long hair, neck, clothes, the volume of the hair above the head."""
    face, x, y, s, edge = view.face, view.x, view.y, view.s, view.edge
    top, bottom = face.background[:, 0], face.background[:, 1]
    yield "background", torch.ones_like(x), top + (bottom - top) * (view.axis[:, None] / len(view.axis))

    volume, wave = face.hair_volume, face.curl * .035 * torch.sin(9 * y + 3) * torch.sin(7 * x + 1)
    below = ((y - .1) / (.15 + 1.45 * face.hair_length - .1)).clamp(min=0)
    above = (y - .02).clamp(max=0) / (1 + volume * 1.15)
    width = (view.half_width + volume) * ((1 - below ** 6) * (1 - above ** 2)).clamp(min=0).sqrt()
    back = _inside((x + .06 * s).abs() - width * (1 - .10 * below) - wave, edge)
    yield "hair", back * (face.hair_length > .4) * (above > -1), view.hair * .72 * view.strands

    neck = _inside(_both((x + .10 * s).abs() - .36 - .25 * (y - 1.05).clamp(min=0) ** 2 * 4, .3 - y), edge)
    yield "skin", neck, face.skin_rgb * (.60 + .24 * ((y - .95) / .35).clamp(0, 1))[:, None]
    shoulders = _inside(_ellipse(x, y - 1.95, 1.25, .72), edge)
    collar = _inside(.36 * (1 - ((x + .05 * s) / .52) ** 2) + 1.10 - y, edge)
    dressed = torch.maximum(shoulders, neck * collar) * collar
    yield "clothes", dressed, face.clothes * (1 - .12 * x.abs()[:, None])

    here = volume * (1 - ((y + .05) / .45).clamp(0, 1) * (face.hair_length < .4))
    crown = (x + .06 * s) ** 2 / (view.half_width + here) ** 2 + (y - .02) ** 2 / (1 + volume * 1.15) ** 2
    crown = _inside(crown.sqrt() - 1 - wave, edge) * _inside(y - .45 - .35 * face.hair_length, edge * 4)
    yield "hair", crown, view.lit_hair * .92


def _head(view):
    """Ears, head, lines of age, moles, natural blush, rouge, beard."""
    face, u, v, edge, skin, shade = view.face, view.u, view.v, view.edge, view.face.skin_rgb, view.shade
    for whole, _, _ in view.ears:
        yield "skin", whole, skin * shade.amax(dim=(2, 3), keepdim=True) * .82
    yield "skin", view.head, skin * shade

    fold = (u.abs() - (face.nose_width + .06) - .42 * (v - face.nose_y + .04)).abs()
    fold = _inside(fold - .011, edge * 2) * (v > face.nose_y - .05) * (v < face.mouth_y + .02)
    lines = _inside((torch.sin((v + .03 * torch.cos(4 * u)) * 44)).abs() * .022 - .0035, edge * 1.2)
    lines = lines * (v > -.52) * (v < -.30) * (u.abs() < .36)
    bags = v - (face.eye_y + .12 * (1 + face.age)) - .02 * torch.cos((u.abs() - face.eye_x) * 9)
    bags = _inside(bags.abs() - .009, edge * 2) * ((u.abs() - face.eye_x).abs() < .15)
    older = (face.age - .35).clamp(min=0) * 1.2
    aged = torch.maximum(torch.maximum(fold, bags), lines) * view.visible * older
    yield None, aged.clamp(max=.6), skin * .45
    for k in range(2):
        mu, mv, radius = face.moles[:, k].unbind(1)
        mole = _inside(((u - mu) ** 2 + (v - mv) ** 2).sqrt() - radius, edge)
        yield None, mole * view.visible * (radius > 0), skin * .35
    cheeks = torch.exp(-(((u.abs() - .42) / .17) ** 2 + ((v - .40) / .13) ** 2)) * view.visible
    yield None, cheeks * .16, (skin * _rgb(u, 1.02, .72, .70)).clamp(0, 1) * shade
    yield None, cheeks * face.blush_alpha, face.blush_rgb * shade

    s, grown = view.mouth_s, face.beard            # below a line from the ears to the mouth, round the lips
    cheek = face.mouth_y - .02 - .9 * (u.abs() - .36).clamp(min=0) ** 1.3
    border = torch.lerp(face.nose_y + .085 + .07 * s ** 2, cheek, ((s.abs() - 1.0) / .35).clamp(0, 1))
    bearded = _inside(border - v, edge * 3) * view.visible * (grown > 0)
    lip = _mouth_curves(face, s.clamp(-1, 1))[3]
    below_lip = torch.exp(-((u / .10) ** 2 + ((v - lip - .05) / .035) ** 2))
    stubble = 1 + .15 * torch.sin(60 * u + 8 * torch.sin(23 * v)) * torch.sin(48 * v)
    coverage = bearded * (.45 + .5 * grown) * (1 - .6 * below_lip)
    yield "beard", coverage, view.hair * (shade * stubble[:, None]) * .85


def _eyes_and_brows(view):
    """Both sides at once: eye shadow, white, iris, glint, lashes, eyeliner, crease of the lid, brow."""
    face, u, v, edge, skin, shade = view.face, view.u, view.v, view.edge, view.face.skin_rgb, view.shade
    side, facing, width = torch.where(u < 0, -1., 1.), view.head * (view.front > .05), face.eye_width
    s_out, brow_s = (u.abs() - face.eye_x) / width, (u.abs() - face.eye_x - .01) / .22
    up, low = _eye_curves(face, s_out.clamp(-1, 1))
    brow_v, brow_half = _brow_curves(face, brow_s.clamp(-1, 1), side)
    beyond = (s_out.abs() - 1) * width

    lid = ((up - v) / (up - brow_v).clamp(min=.03)).clamp(0, 1)             # 0 at the lashes, 1 at the brow
    shadow = _inside(((s_out - .1).abs() - 1.22) * width, edge * 5) * (1 - lid) ** .8 * (v < low)
    yield None, shadow * facing * face.shadow_alpha, face.shadow_rgb * shade
    eye = _inside(_both(up - v, v - low, beyond), edge) * facing
    yield "eyes", eye, .97 * (.80 + .2 * shade)
    du, dv = u - side * face.eye_x - .045 * face.gaze_x, v - face.eye_y + .01 - .035 * face.gaze_y
    centre, radius = (du ** 2 + dv ** 2).sqrt(), face.iris_size
    rim, pupil = _inside(radius * .86 - centre, edge), _inside(centre - radius * .48, edge)
    tone = (.75 + .3 * (dv / radius).clamp(-1, 1)) * (1 - .5 * rim) * (1 - .93 * pupil)
    yield None, _inside(centre - radius, edge) * eye, face.iris_rgb * tone[:, None]
    glint = _inside(((du + .035) ** 2 + (dv + .04) ** 2).sqrt() - .028, edge)
    yield None, glint * eye, torch.ones_like(skin)

    yield None, _inside(_both((v - up).abs() - .016, beyond), edge) * facing, view.hair * .25
    wing, past = face.liner_wing, (s_out - 1).clamp(min=0)
    liner = (v - up + .45 * wing * past * width + .012).abs() - .028 + .013 * past.clamp(max=1)
    liner = _inside(_both(liner, _both(-s_out - 1, s_out - 1.1 - .5 * wing) * width), edge)
    yield None, liner * facing * face.liner_alpha, torch.full_like(skin, .05)
    crease = _both((v - up + .045 + .02 * face.eye_open).abs() - .007, beyond + .02)
    yield None, _inside(crease, edge * 1.5) * facing * .35, skin * .5
    brow = _inside(_both((v - brow_v).abs() - brow_half, (brow_s.abs() - 1) * .22), edge)
    yield "brows", brow * facing, view.hair * .62 * (.9 + .1 * shade)


def _nose_and_mouth(view):
    """Two facets of the nose, each with its own light, and nostrils. Lips, inner mouth, tongue, teeth."""
    face, x, y, u, v, edge, skin = view.face, view.x, view.y, view.u, view.v, view.edge, view.face.skin_rgb
    nose, _ = _project(view.people, _nose_points(view.people))
    at, tip = nose[..., None, None], nose[:, 3] * .9 + nose[:, 6] * .1
    for side, wing, hole in ((-1, 4, 5), (1, 8, 7)):
        corners = [nose[:, 0], tip, nose[:, 6], nose[:, wing]]
        corners = corners if side < 0 else [corners[k] for k in (0, 3, 2, 1)]           # keep them clockwise
        shown = (side * (at[:, wing, 0] - at[:, 3, 0]) > 0).float()                      # not turned away
        lit = face.light[:, 0] * (side * view.c + view.s) * .9 + face.light[:, 2] * .45
        tone = (1.04 - .55 * face.light_strength * (1 - lit.clamp(0, 1)))[:, None]
        facet = _inside(_polygon(x, y, torch.stack(corners, 1)) - .012, edge * 1.5)
        fade = ((y - at[:, 0, 1]) / (at[:, 3, 1] - at[:, 0, 1])).clamp(0, 1)
        yield "skin", facet * shown * (fade * .9), skin * tone * (.35 + .65 * view.shade)
        spot = _ellipse(x - at[:, hole, 0], y - at[:, hole, 1], .035 * view.c + .012, .018)
        yield None, _inside(spot * .02, edge) * shown * .6, skin * .35

    half, s = _mouth_half_width(face), view.mouth_s
    outer_up, inner_up, inner_low, outer_low = _mouth_curves(face, s.clamp(-1, 1))
    beyond = (s.abs() - 1) * half
    lip_rgb = _lip_rgb(view.people)[..., None, None]
    gloss = 1 + .10 * torch.exp(-((v - inner_low - .035) / .02) ** 2) - .12 * (v < inner_up)
    lips = _inside(_both(outer_up - v, v - outer_low, beyond), edge) * view.visible
    yield "lips", lips, lip_rgb * view.shade * gloss[:, None]
    opened = _inside(_both(inner_up - v, v - inner_low, beyond), edge) * view.visible
    opened = opened * (inner_low - inner_up > 1e-4)
    yield "inner mouth", opened, _rgb(u, .28, .06, .07)
    tongue = ((u / (half * .55)) ** 2 + ((v - inner_low - .01) / .07) ** 2).sqrt() * .1 - .1
    yield None, _inside(tongue, edge) * opened, _rgb(u, .78, .36, .38)
    yield None, opened * _inside(v - inner_up - .06, edge), _rgb(u, .97, .96, .92)                 # teeth
    line = _inside(_both((v - inner_up).abs() - .009, beyond), edge) * view.visible
    yield None, line * .85, lip_rgb * .35


def _in_front(view):
    """Hair from the forehead down to the ears and the nape, the ear on the viewer's side, glasses."""
    face, u, v, front, edge, skin = view.face, view.u, view.v, view.front, view.edge, view.face.skin_rgb
    fringe = .10 * face.hair_part * u + .07 * torch.cos(u * 5 + 2 * face.hair_part)
    fringe = fringe + .02 * face.curl * torch.sin(30 * u)
    t = ((.42 - front) / .62).clamp(0, 1)
    hairline = (face.hairline + fringe) + (.80 - face.hairline) * t * t * (3 - 2 * t)
    below = v - hairline - .9 * (face.hair_length > .4) * ((.35 - front) / .3).clamp(0, 1)
    over = _inside(below * .8, edge * 1.2) * view.head
    yield "hair", over, view.lit_hair
    yield None, _inside(below.abs() - .02, edge * 3) * over * .35, view.hair * .5
    for whole, inner, depth in view.ears:
        near = ((depth - .02) / .12).clamp(0, 1) * (face.hair_length < .4)
        yield "skin", whole * near, skin * view.shade.amax(dim=(2, 3), keepdim=True) * .86
        yield None, inner * near * .5, skin * .55

    rim = _both((v - face.eye_y + .01).abs() - .016, u.abs() - (face.eye_x - .22))         # between the eyes
    for side in (-1, 1):
        d = ((side * u - face.eye_x).abs() / .235) ** 2.6 + ((v - face.eye_y - .02).abs() / .19) ** 2.6
        rim = torch.minimum(rim, ((d ** (1 / 2.6) - 1) * .2).abs() - .016)
    arms = _both((v - face.eye_y + .03).abs() - .016, face.eye_x + .22 - u.abs())
    rim = torch.minimum(rim, arms) * (front > -.05) + 1e3 * (front <= -.05)
    yield "glasses", _inside(rim, edge) * view.head * face.glasses, torch.full_like(skin, .12)


def _layers(face, size):
    """All layers, from back to front."""
    view = _view(face, size)
    for part in (_behind_the_head, _head, _eyes_and_brows, _nose_and_mouth, _in_front):
        yield from part(view)


# ======================================================================================= pictures

def _chunks(face, pixels):
    """Parts of a batch: as many faces as a processor's cache holds; on a GPU, some GiB."""
    step = max(1, (2 ** 16 if face.yaw.device.type == "cpu" else 2 ** 24) // pixels)
    return (face[slice(i, i + step)] for i in range(0, len(face), step))


@torch.no_grad()
def render(face, size=64):
    """The picture: [B, 3, size, size] float32 in [-1, 1]."""
    out = []
    for part in _chunks(face, 4 * size * size):
        image = torch.zeros(len(part), 3, 2 * size, 2 * size, device=part.yaw.device)
        for _, coverage, colour in _layers(part, 2 * size):
            image.sub_(colour).mul_(1 - coverage[:, None]).add_(colour)
        out.append(F.avg_pool2d(image.clamp(0, 1), 2) * 2 - 1)
    return torch.cat(out)


@torch.no_grad()
def regions(face, size=64):
    """What each pixel shows: [B, size, size] int64, indices into REGIONS. The front-most layer counts."""
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
    return torch.tensor(REGION_RGB, device=face.yaw.device)[regions(face, size)].movedim(3, 1) / 127.5 - 1


def colour_map(face, size=64):
    """regions in each person's flat colours (eyes: the iris'), as a painter's ground: [B, 3, size, size]."""
    hair, dark = _hair_rgb(face), torch.full_like(face.skin_rgb, .1)
    flat = torch.stack([face.background.mean(1), face.skin_rgb, hair, .62 * hair, face.iris_rgb,
                        _lip_rgb(face), dark, .85 * hair, dark, face.clothes], 1)    # in the order of REGIONS
    return torch.stack([c[k] for c, k in zip(flat, regions(face, size), strict=True)]).movedim(3, 1) * 2 - 1


@torch.no_grad()
def sketch(face, size=64, exaggeration=1.5):
    """A pencil drawing: [B, 1, size, size] in [-1, 1]. exaggeration: see `exaggerate`; a number, or [B].

    Contours and a smooth tone: hatching finer than pixels is noise to a network. It shows a caricature, so
    it does not match the picture pixel by pixel. This is as in CUFS.
    """
    drawn = exaggerate(face, exaggeration).set(background=1., clothes=.9, skin_rgb=.84 + .12 * face.skin_rgb,
                                               light_strength=.6 * face.light_strength)
    out = []
    for part in _chunks(drawn, 4 * size * size):
        tone = (render(part, 2 * size) * .5 + .5).mul(_rgb(face.yaw, .35, .5, .15)).sum(1, keepdim=True)
        soft = F.avg_pool2d(F.pad(tone, (1, 1, 1, 1), mode="replicate"), 3, 1)
        dx, dy = soft[..., :, 2:] - soft[..., :, :-2], soft[..., 2:, :] - soft[..., :-2, :]
        contour = ((F.pad(dx, (1, 1)) ** 2 + F.pad(dy, (0, 0, 1, 1)) ** 2).sqrt() * 3.2).clamp(0, .9)
        out.append(F.avg_pool2d(.97 - torch.maximum(contour, .64 - .75 * soft), 2) * 2 - 1)
    return torch.cat(out)


def images(cfg, faces, size, paint=render):
    """The faces drawn once and kept in cfg.cache: uint8 [n, 3, size, size].

    paint(faces, size) -> [b, 3, size, size] in [-1, 1]. Other faces, or changed code, are drawn anew.
    """
    key = hashlib.sha256(Path(__file__).read_bytes() + inspect.getsource(paint).encode())
    for field in fields(faces):
        key.update(getattr(faces, field.name).cpu().numpy().tobytes())

    def fill(array):
        say(f"drawing {len(faces)} toy faces (once) ...")
        for k in tqdm(range(0, len(faces), 64), "drawing", disable=not sys.stderr.isatty()):
            array[k:k + 64] = to_uint8(paint(faces[slice(k, k + 64)], size)).cpu().numpy()

    return cached(cfg, ("toy faces", key.hexdigest()), (len(faces), 3, size, size), fill)


def contact_sheet(seed=0, size=128):
    """All that this file can draw, on one PIL image."""
    faces, wild = sample(8, seed + 3, pose=0, expression=False, makeup=False), sample(8, seed + 5)
    people = {f"yaw {yaw}": faces.set(yaw=float(yaw)) for yaw in range(-60, 61, 20)}
    people |= {name: faces.express(name) for name in EXPRESSIONS if name != "neutral"}
    people |= {name: with_attribute(faces, name) for name in ATTRIBUTES} | {"all at once": wild}
    columns = {name: render(face, size) for name, face in people.items()}
    dots = draw_points(landmarks(wild, size), size)
    columns |= {"landmarks": torch.maximum(columns["all at once"] * .5 - .5, dots),
                "regions": region_map(wild, size), "colours": colour_map(wild, size),
                "sketch": sketch(wild, size).expand(-1, 3, -1, -1)}
    return grid(list(columns.values()), list(columns))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for flag, default in (("--size", 128), ("--seed", 0), ("--out", "toyfaces.png")):
        parser.add_argument(flag, type=type(default), default=default)
    args = parser.parse_args()
    contact_sheet(args.seed, args.size).save(args.out)
