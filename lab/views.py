"""Photographs of faces by their landmarks: decoded once, then cropped, turned, mirrored, bent on the device.

Points are [B, n, 2] as (x, y) in pixels, 0-based. A view is described by s, the landmarks in the crop, and by
look: a function from places p [B, m, 2] in the crop to places in the picture that they show.
"""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import common
from lab import UserError
from lab.formats import landmarks as formats, with_ending
from lab.images import crop, decoded_images, open_image, report_bad, report_found


def with_points(n, points):
    """Landmarks [..., 68, 2] as n = 66 or 68 points."""
    return common.to_66(points) if n == 66 else points


def place(points, turn, tight, mirror, S):
    """(s, look) of a crop of S x S pixels around the landmarks `points`, which are in pixels of the picture.

    turn: [B] degrees; mirror: [B] bool; tight: [B], margin in per cent, see common.crop_box. The corner of
    the box is the corner of the crop. In a mirrored crop left and right landmarks have changed names.
    """
    sin, cos = turn.deg2rad().sin()[:, None], turn.deg2rad().cos()[:, None]
    m, centre = torch.where(mirror, -1., 1.)[:, None], points.mean(1, keepdim=True)
    x, y = (points - centre).unbind(2)
    turned = torch.stack([m * (cos * x - sin * y), sin * x + cos * y], 2)
    order = common.FLIP_68 if points.shape[1] == 68 else common.FLIP_66
    renamed = turned[:, order.to(points.device, non_blocking=True)]
    turned = torch.where(mirror[:, None, None], renamed, turned)
    low, high = common.crop_box(turned, tight)
    scale = S / (high - low).clamp(min=1e-3)

    def look(p):
        x, y = ((p + .5) / scale[:, None] + low[:, None]).unbind(2)
        return torch.stack([cos * m * x + sin * y, cos * y - sin * m * x], 2) + centre

    return (turned - low[:, None]) * scale[:, None] - .5, look


def bent(s, s_new, look, S):
    """(s_new, look) of the view (s, look) whose landmarks move to s_new and take the picture with them.

    Every pixel moves by a mean of the landmarks' moves, weighted by a Gaussian of its distance to each.
    """
    def look_bent(p):
        weight = torch.exp(-torch.cdist(p, s_new) ** 2 / (2 * (.07 * S) ** 2)) + 1e-6
        return look(p + weight @ (s - s_new) / weight.sum(2, keepdim=True))

    return s_new, look_bent


def resample(x, look, S):
    """What look shows of pictures x [B, 3, b, b]: [B, 3, S, S]. Edges repeat beyond the border."""
    axis = torch.arange(S, device=x.device, dtype=torch.float32)
    pixels = torch.cartesian_prod(axis, axis).flip(1).expand(len(x), -1, -1)               # rows of (x, y)
    where = (look(pixels).unflatten(1, (S, S)) + .5) / x.shape[-1] * 2 - 1
    return F.grid_sample(x, where, padding_mode="border", align_corners=False)


def cropped(cfg, picture, path, pts):
    """A photograph (PIL) cropped as in training by its landmarks: pts ([] or one file), or those beside it.

    Without any it must be such a crop already, else UserError.
    """
    S, beside = cfg.image_size, Path(pts[0]) if pts else with_ending(Path(path), ".pts")
    if beside:
        points = with_points(cfg.points, formats.read_pts(beside))
        formats.check_points(points, picture, path)
        low, high = common.crop_box(points[None], cfg.tight)
        return crop(picture, low[0], high[0], S)
    if picture.size != (S, S):
        raise UserError(f"{path}: {picture.width} x {picture.height} and no landmarks; "
                        f"give its .pts, or a crop of {S} x {S}")
    return picture


# ==================================================================================== decoded once

def decoded(cfg, found, test):
    """The training or the test part of what formats.landmarks found: (images, points, video).

    images: uint8 [N, 3, b, b], b = 1.5 image_size: square crops around the landmarks, twice as large as
    those; points: [N, n, 2] in them; video: [N] numbers, rising. Held out is what lies in test folders, or
    every tenth video. UserError for files that cannot be used; with cfg.skip_bad they are left out.
    """
    report_found(found, cfg.skip_bad)
    number = {video: k for k, video in enumerate(dict.fromkeys(found["groups"]))}
    videos = [number[video] for video in found["groups"]]
    is_test = found["test"] if any(found["test"]) else [k % 10 == 9 for k in videos]
    if not any(is_test) or all(is_test):
        raise UserError(f"{cfg.data}: {len(number)} pictures or videos are too few to hold some out; "
                        "expected at least 10")
    mine, points = annotated(cfg, found["annotations"], [k for k, is_ in enumerate(is_test) if is_ == test])
    files, side = [found["images"][k] for k in mine], round(1.5 * cfg.image_size)
    low, high = common.crop_box(points, 0)
    centre, half = (low + high) / 2, (high - low).amax(1, keepdim=True).clamp(min=4)

    def decode(k):
        picture = open_image(files[k])
        formats.check_points(points[k], picture, files[k])
        return np.asarray(crop(picture, centre[k] - half[k], centre[k] + half[k], side)).transpose(2, 0, 1)

    boxes = torch.cat([centre, half], 1).tolist()
    images, good = decoded_images(cfg, files, (3, side, side), decode, boxes)
    points = (points - (centre - half)[:, None]) * (side / (2 * half))[:, None] - .5
    return images, points[good], torch.tensor([videos[mine[k]] for k in good])


def annotated(cfg, files, mine):
    """Those of `mine` whose .pts file can be used, and their landmarks [m, n, 2]. UserError for others."""
    points, bad = {}, []
    for k in mine:
        try:
            p = formats.read_pts(files[k])
            if len(p) < cfg.points:
                raise UserError(f"{files[k]}: {len(p)} points, {cfg.points} wanted; add --points {len(p)}")
            points[k] = with_points(cfg.points, p)
        except UserError as error:
            bad.append(str(error))
    report_bad(bad, len(mine), cfg.skip_bad)
    return list(points), torch.stack(list(points.values()))
