"""Where a face lies on a picture, and how one is bent onto another: geometry and colour, nothing learned.

Of a face 30 anchors [30, 2] are needed, pixels (x, y); lab.formats.makeup says which, and finds them in
landmarks or in a map of regions. A square is the part of a picture that the networks of a region see.
"""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from lab import UserError
from lab.formats.makeup import anchors_of, annotation_of, upright
from lab.images import crop, decoded_images, open_image, to_tensor, to_uint8

# The face as a polygon: left side, chin, right side, brows
OUTLINE = torch.tensor([21, 23, 25, 27, 26, 24, 22, 12, 13, 11, 9, 10, 8])
# Where a region is cut: its centre as a share of the way from the eyes to the mouth, its side in units of
# that way, its size as a share of image_size
REGIONS = {"face": (.5, 3., 1.), "skin": (.5, 3., 1.), "eyes": (-.12, 1.1, .5), "lips": (1., 1.2, .5)}
LOOSE = 1.3                                        # stored pictures: the square of the face times this
BELOW_BROWS = .08                                  # of the way from the eyes to the mouth
EYEBALL = .7                                       # the share of an eye's opening where no liner lies
LIFT = .05                                         # added to colours in 0 ... 1 before they are divided


def square_size(image_size, region):
    """Side of the squares that a region's networks see."""
    return round(image_size * REGIONS[region][2])


def place(anchors, region, size, mirror=None, turn=None):
    """How the squares of a region lie on pictures: (anchors in the square [B, 30, 2], to_picture, to_square).

    anchors: [B, 30, 2] in the picture. The two functions take points [B, m, 2]. The line from the eyes to the
    mouth runs down. mirror: [B] bool; of the region "eyes" it means the left eye, mirrored, so that one
    network serves both. turn: [B] degrees.
    """
    along, sides, _ = REGIONS[region]
    eyes, way = upright(anchors)
    length = way.norm(dim=1, keepdim=True).clamp(min=1e-3)
    left = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device) if mirror is None else mirror
    start = eyes
    if region == "eyes":
        start = torch.where(left[:, None], anchors[:, :2].mean(1), anchors[:, 4:6].mean(1))
    centre, down = (start + along * way)[:, None], way / length
    if turn is not None:
        s, c = turn.deg2rad().sin(), turn.deg2rad().cos()
        down = torch.stack([c * down[:, 0] - s * down[:, 1], s * down[:, 0] + c * down[:, 1]], 1)
    right = torch.stack([down[:, 1], -down[:, 0]], 1) * torch.where(left, -1., 1.)[:, None]
    right, down = right[:, None], down[:, None]
    scale = (sides * length / size)[:, None]                           # pixels of the picture per pixel

    def to_picture(p):
        q = (p - (size - 1) / 2) * scale
        return q[..., :1] * right + q[..., 1:] * down + centre

    def to_square(p):
        q = (p - centre) / scale
        return torch.stack([(q * right).sum(2), (q * down).sum(2)], 2) + (size - 1) / 2

    return to_square(anchors), to_picture, to_square


def loose(anchors):
    """The squares, LOOSE times the face's, that are stored: centre [B, 2], half a side [B]; not turned."""
    along, sides, _ = REGIONS["face"]
    eyes, way = upright(anchors)
    return eyes + along * way, LOOSE * sides / 2 * way.norm(dim=1).clamp(min=1e-3)


def loose_squares(cfg, files, points, L):
    """Pictures cut to their loose squares: images uint8 [N, 3, L, L], and the anchors in them [N, 30, 2].

    They are decoded once. points: the anchors [N, 30, 2] in the files' own pixels.
    """
    centre, half = loose(points)
    low, high = centre - half[:, None], centre + half[:, None]

    def decode(k):
        return np.asarray(crop(open_image(files[k]), low[k], high[k], L)).transpose(2, 0, 1)

    images, good = decoded_images(cfg, files, (3, L, L), decode, low.tolist())
    return images, ((points - low[:, None]) * (L / (2 * half))[:, None, None] - .5)[good]


def pixels(h, w, device):
    """The places (x, y) of all pixels: [1, h * w, 2]."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return torch.stack([x, y], -1).float().reshape(1, -1, 2)


def look(pictures, where, size, padding="border"):
    """pictures [B, c, H, W] at the places `where` [B, h * w, 2], as [B, c, h, w]. size: a side, or (h, w)."""
    h, w = size if isinstance(size, tuple) else (size, size)
    H, W = pictures.shape[2:]
    where = torch.stack([(where[..., 0] + .5) / W * 2 - 1, (where[..., 1] + .5) / H * 2 - 1], -1)
    where = where.reshape(-1, h, w, 2)
    return F.grid_sample(pictures, where, mode="bilinear", padding_mode=padding, align_corners=False)


def disc(size, device):
    """1 in the middle of a square, softly 0 at its rim: [1, 1, size, size]."""
    r = (pixels(size, size, device) - (size - 1) / 2).norm(dim=2).reshape(1, 1, size, size) / (size / 2)
    return ((.98 - r) / .18).clamp(0, 1)


def lay(drawn, to_square, size):
    """Squares [B, 3, s, s] where they belong on pictures of size (h, w), and their softly rimmed disc.

    Returns [B, 3, h, w] and [B, 1, h, w].
    """
    s, device = drawn.shape[-1], drawn.device
    with_disc = torch.cat([drawn, disc(s, device).expand(len(drawn), -1, -1, -1)], 1)
    laid = look(with_disc, to_square(pixels(*size, device)), size, padding="zeros")
    return laid[:, :3], laid[:, 3:]


def thin_plate(source, target):
    """The thin-plate spline (Bookstein 1989) that takes the points source [B, n, 2] to target.

    Returns a function of points [B, m, 2]. In float64, whatever precision products of matrices have; float32
    was off by .04 px at most.
    """
    B, n, _ = source.shape
    scale = source.amax((1, 2), keepdim=True).clamp(min=1.).double()
    knots = source / scale

    def basis(p):
        d2 = torch.cdist(p, knots).square()
        return torch.cat([d2 * (d2 + 1e-12).log(), torch.ones_like(d2[..., :1]), p], -1)       # [B, m, n + 3]

    top = basis(knots)
    top[:, :, :n] += 1e-4 * torch.eye(n, device=source.device)
    low = torch.cat([top[:, :, n:].transpose(1, 2), top.new_zeros(B, 3, 3)], 2)
    wanted = torch.cat([target, target.new_zeros(B, 3, 2)], 1).double()
    bent, _ = torch.linalg.solve_ex(torch.cat([top, low], 1), wanted)  # solve would wait for the GPU
    return lambda p: (basis(p / scale) @ bent).float()


def inside(polygon, size):
    """Which pixels lie inside a polygon [B, k, 2] that its centre sees all of: bool [B, 1, size, size]."""
    p = pixels(size, size, polygon.device)[:, None]
    centre = polygon.mean(1, keepdim=True)[:, :, None]
    a, b = polygon[:, :, None], polygon.roll(-1, 1)[:, :, None]                                # [B, k, 1, 2]

    def left_of(q, r):
        return (r - q)[..., 0] * (p - q)[..., 1] - (r - q)[..., 1] * (p - q)[..., 0] >= 0

    turns = torch.stack([left_of(a, b), left_of(b, centre), left_of(centre, a)])         # [3, B, k, s * s]
    return (turns.all(0) | ~turns.any(0)).any(1).reshape(-1, 1, size, size)


def make_up_area(anchors, size):
    """Where make-up can be: 1 within the outline of faces, softly 0 beyond it and on the eyeballs.

    The outline runs below the brows: they are no make-up, and a fringe that reaches them would be laid on the
    source as a dark seam. anchors: [B, 30, 2] in pictures of side `size`. Returns [B, 1, size, size].
    """
    outline, k = anchors[:, OUTLINE.to(anchors.device, non_blocking=True)], size // 32 * 2 + 1
    outline[:, 7:] += BELOW_BROWS * upright(anchors)[1][:, None]
    area = F.avg_pool2d(inside(outline, size).float(), k, 1, k // 2)
    for left, right, top, bottom in (anchors[:, :4].unbind(1), anchors[:, 4:8].unbind(1)):
        p = pixels(size, size, anchors.device) - (left + right + top + bottom)[:, None] / 4
        w, h = ((end - start).norm(dim=1).clamp(min=1.)[:, None] / 2
                for start, end in ((left, right), (top, bottom)))      # a closed eye has no height
        along = (right - left)[:, None] / 2 / w[..., None]
        u, v = (p * along).sum(2) / w, (p[..., 1] * along[..., 0] - p[..., 0] * along[..., 1]) / h
        rim = (u ** 2 + v ** 2).sqrt().reshape(-1, 1, size, size)      # 1 on an ellipse: the line of the lids
        area = area * ((rim - EYEBALL) / (1 - EYEBALL)).clamp(0, 1)
    return area


def skin_colour(pictures, anchors):
    """The median colour within the outline of faces [B, 3, S, S]: [B, 3], in LIFT ... 1 + LIFT."""
    outline = anchors[:, OUTLINE.to(anchors.device, non_blocking=True)]
    face = inside(outline, pictures.shape[-1]).expand_as(pictures)
    return (pictures / 2 + .5 + LIFT).masked_fill(~face, torch.nan).flatten(2).nanmedian(2)[0]


def blended(x, pasted, mask, gain):
    """pasted, its colours times `gain` [B, 3] (.4 to 2.5), where mask [B, 1, S, S] is 1; x where it is 0.

    The paper's recipe may blend by Poisson's equation. Here skin is given the source's colour as a whole, by
    the ratio of the two faces' median colours: contrasts stay, and what differs at the rim (a lock of hair)
    does not run into the face.
    """
    toned = ((pasted / 2 + .5 + LIFT) * gain.clamp(.4, 2.5)[..., None, None] - .5 - LIFT) * 2
    return x + mask * (toned.clamp(-1, 1) - x)


class Photo:
    """A picture of any size: image (RGB); its loose square x [1, 3, L, L]; anchors in that [1, 30, 2]."""

    def __init__(self, file, L, device, about):
        self.path = Path(file)
        self.image = open_image(self.path)
        w, h = self.image.size
        annotation = annotation_of(self.path)
        if annotation is not None:
            points, how = anchors_of(annotation, self.image.size), f"landmarks from {annotation}"
        elif about["toy"]:                                             # drawn as those that were trained on
            points = torch.tensor(about["anchors"]) * min(w, h) + (torch.tensor([w, h]) - min(w, h)) / 2 - .5
            how = ("no landmarks: taken to lie as in the mean toy face, in the central square "
                   f"(a photograph needs {self.path.stem}.pts beside it)")
        else:
            raise UserError(f"{file}: no landmarks; put {self.path.stem}.pts beside it (68 points), "
                            f"or a map of regions into segs/{self.path.stem}.png")
        centre, half = loose(points[None])
        self.low, self.half = centre[0] - half, half
        self.x = to_tensor(crop(self.image, self.low, centre[0] + half, L))[None].to(device)
        self.anchors = ((points - self.low) * (L / (2 * half)) - .5)[None].to(device)
        print(f"{file}: {w} x {h}, {how}")

    def with_(self, total):
        """The whole picture with a change [1, 3, L, L] of its square, at the picture's own resolution."""
        left, top = (self.low + .5).floor().int().tolist()
        n = int((2 * self.half).ceil()) + 1                            # pixels that the square touches
        left, top, right, bottom = (max(0, left), max(0, top), min(self.image.width, left + n),
                                    min(self.image.height, top + n))
        if left >= right or top >= bottom:
            return self.image
        size, out = (bottom - top, right - left), np.array(self.image)
        where = pixels(*size, "cpu") + torch.tensor([left, top]) - self.low
        laid = look(total.cpu(), where * (total.shape[-1] / (2 * self.half)) - .5, size, padding="zeros")
        part = to_tensor(Image.fromarray(out[top:bottom, left:right]))
        out[top:bottom, left:right] = to_uint8(part + laid[0]).permute(1, 2, 0).numpy()
        return Image.fromarray(out)
