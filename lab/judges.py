"""Small networks that measure pictures, trained on toy people of their own, never those of a paper's sets."""
import hashlib
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from lab import say, toyfaces
from lab.files import save_checkpoint
from lab.images import draw_crops, to_uint8

JUDGE_PEOPLE, JUDGE_FRAMES, JUDGE_STEPS = 400, 10, 700
LARGEST = 128                                      # px; judges are trained on no larger pictures


class Judge(nn.Module):
    """A small network that measures pictures [B, 3, S, S] in [-1, 1] of any size S.

    Pictures larger than LARGEST are scaled down to it first; points and regions are still those of the input.
    kind: "identity" gives a unit vector [B, 128]; "sketch" the same of pencil sketches (three equal
    channels); "landmarks" [B, 68, 2] pixels; "yaw" degrees [B]; "regions" logits [B, 10, S, S] over REGIONS.
    `features(x)` returns the four feature maps, for losses that compare features.
    """

    def __init__(self, kind):
        super().__init__()
        self.kind, self.who = kind, kind in ("identity", "sketch")
        widths = 3, 32, 64, 96, 128
        self.convs = nn.ModuleList(layer(nn.Conv2d(a, b, 4, 2, 1, bias=False), b)
                                   for a, b in zip(widths, widths[1:], strict=False))
        if kind == "regions":                      # a U-Net: each map on the way up sees that of the way down
            self.ups = nn.ModuleList(layer(nn.Conv2d(a + b, b, 3, padding=1, bias=False), b)
                                     for a, b in zip(widths[:0:-1], widths[-2:0:-1], strict=False))
            self.last = nn.Conv2d(widths[1] + 3, len(toyfaces.REGIONS), 3, padding=1)
            return
        self.fc = nn.Linear(16 * widths[-1], 128 if self.who else 256)
        if self.who:
            self.head = nn.Linear(128, JUDGE_PEOPLE, bias=False)
        else:
            self.head = nn.Linear(256, 1 if kind == "yaw" else 136)

    def features(self, x):
        maps, x = [], scaled_down(x)
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return maps

    def embed(self, feature_map):
        return self.fc(F.adaptive_avg_pool2d(feature_map, 4).flatten(1))

    def segment(self, x):
        *below, y = [scaled_down(x), *self.features(x)]
        for up in (*self.ups, self.last):
            skip = below.pop()
            y = up(torch.cat([F.interpolate(y, skip.shape[2:]), skip], 1))
        return y if y.shape[2:] == x.shape[2:] else F.interpolate(y, x.shape[2:], mode="bilinear")

    def forward(self, x):
        if self.kind == "regions":
            return self.segment(x)
        feature = self.embed(self.features(x)[-1])
        if self.who:
            return F.normalize(feature, dim=1)
        out = self.head(F.relu(feature))
        return 60 * out[:, 0] if self.kind == "yaw" else (out.unflatten(1, (68, 2)) + .5) * x.shape[-1]


def layer(conv, channels):
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def scaled_down(x):
    """Pictures larger than LARGEST, at that size."""
    if x.shape[-1] <= LARGEST:
        return x
    return F.interpolate(x, (LARGEST, LARGEST), mode="bilinear", antialias=True)


def judge(kind, size, seed, device="cpu", cache="runs/cache", alike=None):
    """A trained, frozen Judge for pictures of `size`, and its own error on true renders of people held out.

    The error of "identity" and "sketch": the equal error rate of telling two people apart; "landmarks": mean
    distance, px at `size`; "yaw": mean, degrees; "regions": share of pixels put into another region. seed:
    judges of different seeds have seen different people; use one in a loss and another to measure. alike:
    fields of Face that all its people share, {name: value}. Kept in the folder `cache`, made anew if damaged;
    a minute to train on two cores. UserError if the disk is full.
    """
    asked, size = size, min(size, LARGEST)
    code = b"".join(Path(file).read_bytes() for file in (__file__, toyfaces.__file__)) + repr(alike).encode()
    path = Path(cache) / f"judge-{kind}-{size}-{seed}-{hashlib.sha256(code).hexdigest()[:12]}.pt"
    net = Judge(kind)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(saved["net"])
        error = saved["error"]
    except Exception:                              # not there, or damaged in any way: make it
        say(f"training the {kind} judge (once, on {JUDGE_PEOPLE} people of its own) ...")
        first = 1_000_000 + 1000 * seed            # papers draw their people from smaller seeds
        error = train(net, kind, size, first, device, alike)
        save_checkpoint({"net": net.state_dict(), "error": error}, path)
    error = error * asked / size if kind == "landmarks" else error
    return net.to(device).eval().requires_grad_(False), error


def people(count, n_frames, seed, g, device, alike=None):
    """`count` toy people, each in n_frames pictures, near and far; alike: see `judge`.

    Scene and make-up change from one picture to the next, so only the face tells who it is.
    """
    everyone = toyfaces.sample(count, seed, device).set(**alike or {})
    faces = toyfaces.frames(everyone, n_frames, seed + 1, vary=toyfaces.SCENE + toyfaces.MAKEUP)
    return faces.set(zoom=.9 + .45 * torch.rand(len(faces), generator=g))


def paint(faces, kind, size, g):
    """Pictures for a judge [B, 3, size, size]. Sketches exaggerate by 1 to 1.6."""
    if kind != "sketch":
        return toyfaces.render(faces, size)
    exaggeration = 1 + .6 * torch.rand(len(faces), generator=g).to(faces.yaw.device)
    return toyfaces.sketch(faces, size, exaggeration).expand(-1, 3, -1, -1)


def truth_of(faces, kind, size):
    """What a judge should answer. (Those of "identity" and "sketch" learn from the number of the person.)"""
    if kind == "yaw":
        return faces.yaw
    return (toyfaces.regions if kind == "regions" else toyfaces.landmarks)(faces, size)


@torch.enable_grad()                               # judges are asked for where gradients are off
def train(net, kind, size, first, device, alike=None):
    """Train a Judge in place; returns its error. first: the first of its seeds.

    Those who tell people apart bear shifts (a twelfth of the side) and mirrors: crops differ by them.
    """
    g = torch.Generator().manual_seed(first)
    noise = torch.Generator(device).manual_seed(first)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(first)
        net.__init__(kind)
        net.to(device).train()
        faces, room = people(JUDGE_PEOPLE, JUDGE_FRAMES, first, g, device, alike), net.who * size // 12
        images, truth = to_uint8(paint(faces, kind, size, g)), truth_of(faces, kind, size)
        images = F.pad(images, (room,) * 4, mode="replicate")
        person = torch.arange(JUDGE_PEOPLE, device=device).repeat_interleave(JUDGE_FRAMES)
        steps = JUDGE_STEPS // 2 if kind == "regions" else JUDGE_STEPS                 # every pixel teaches
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
        for _ in range(steps):
            k, top, left, mirror = (torch.randint(n, (64,), generator=g).to(device)
                                    for n in (len(images), 2 * room + 1, 2 * room + 1, 1 + net.who))
            x = draw_crops(images, k, top, left, size, device, mirror == 1)
            x = x + .02 * torch.randn(x.shape, generator=noise, device=device)
            loss = loss_of(net, x, truth[k], person[k], size)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()
    held_out = people(60, 6, first + 2, g, device, alike)
    with torch.no_grad():
        return error_of(net(paint(held_out, kind, size, g)), kind, truth_of(held_out, kind, size))


def loss_of(net, x, truth, person, size):
    """People: softmax over cosines with a margin (CosFace). Regions: cross-entropy. Others: L1."""
    if net.who:
        cosine = net(x) @ F.normalize(net.head.weight, dim=1).T
        return F.cross_entropy(20 * (cosine - .15 * F.one_hot(person, JUDGE_PEOPLE)), person)
    if net.kind == "regions":
        return F.cross_entropy(net(x), truth)
    return (net(x) - truth).abs().mean() / size                        # pixels, or degrees


def error_of(out, kind, truth):
    """The error that `judge` describes. out: a judge's answers for 60 people in 6 pictures each."""
    if kind == "regions":
        return (out.argmax(1) != truth).float().mean().item()
    if kind == "landmarks":
        return (out - truth).norm(dim=2).mean().item()
    if kind == "yaw":
        return (out - truth).abs().mean().item()
    who = torch.arange(60, device=out.device).repeat_interleave(6)
    cosine, same = out @ out.T, who[:, None] == who[None, :]
    other, same = cosine[~same], cosine[same & ~torch.eye(len(who), dtype=torch.bool, device=out.device)]
    thresholds = torch.linspace(-1, 1, 401, device=out.device)[:, None]
    rejected, accepted = (same < thresholds).float().mean(1), (other >= thresholds).float().mean(1)
    return ((rejected + accepted) / 2)[(rejected - accepted).abs().argmin()].item()
