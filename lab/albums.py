"""DR-GAN's pictures of people in poses: decoded or drawn once, cut, and degraded as bad pictures are."""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from lab import UserError, toyfaces, toysets
from lab.formats.people import YAWS, face_square, fiducials_of
from lab.images import crop, decoded_images, draw, open_image, report_found


@dataclass
class Album:
    """Pictures of people in poses, one person after the other.

    images: uint8 [N, 3, L, L]; who, pose: [N] indices into people and poses (names; yaw in degrees as text,
    or frontal, profile); paths: the files of photographs. Of toy pictures: faces, what they were drawn from;
    blur [N] and cover [N, 3], how a test shows them (see `degrade`).
    """
    images: torch.Tensor
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
        """Index of the frontal pose."""
        return self.poses.index("frontal" if "frontal" in self.poses else "0")

    @property
    def yaw(self):
        """|yaw| of each picture in degrees, [N]; of a profile 90."""
        degrees = [{"frontal": 0, "profile": 90}.get(pose) if pose.isalpha() else abs(int(pose))
                   for pose in self.poses]
        return torch.tensor(degrees)[self.pose]

    @property
    def clean(self):
        """Which pictures are neither blurred nor covered, [N] bool."""
        if self.blur is None:
            return torch.ones(len(self.who), dtype=torch.bool)
        return (self.blur == 0) & (self.cover[:, 2] == 0)


def toy(cfg, n_people, copies, seed, test=False):
    """An album of toy people, `copies` pictures at each of nine yaws. test: see toysets.in_poses.

    To train on, a person is seen at cfg.poses_seen of them (0: all). In a test every second picture of a
    person at a yaw is blurred or covered, the gallery's never.
    """
    faces, who, pose, copy = toysets.in_poses(n_people, YAWS, copies, seed, cfg.device, test)
    blur, cover = None, None
    if cfg.poses_seen and not test:
        chance = torch.rand(n_people, len(YAWS), generator=torch.Generator().manual_seed(seed))
        keep = chance.argsort(1).argsort(1)[who, pose] < cfg.poses_seen
        faces, who, pose = faces[keep.to(cfg.device)], who[keep], pose[keep]
    if test:
        blur, cover = random_damage(len(pose), 1., torch.Generator().manual_seed(seed))
        blur, cover = blur * (copy % 2), cover * (copy % 2)[:, None]
    images = toyfaces.images(cfg, faces, stored_side(cfg.image_size))
    names = tuple(f"toy/{seed}/{k}" for k in range(n_people))
    return Album(images, who, pose, names, tuple(map(str, YAWS)), faces, blur, cover)


def of_data_set(cfg, found, known):
    """(album to train on, album of held-out people) of a data set. found: see formats.people.scan.

    known: names of people trained on before; if there are some, the first album is None, and if none of them
    is among the found, all of these are held out. UserError for too few people, or for bad files.
    """
    report_found(found, cfg.skip_bad)
    people, who = found["people"], found["who"]
    n_train = len(people) - found["n_test"]
    if known and not known & set(people):
        n_train = 0
    elif not 2 <= n_train <= len(people) - 4:
        raise UserError(f"{cfg.data}: {len(people)} people, {found['n_test']} of them held out; expected at "
                        "least 2 to train on and 4 to test on; see --test-people")
    held_out = [k for k, one in enumerate(who) if one >= n_train and people[one] not in known]
    test = photographs(cfg, found, held_out)
    if len(test.people) < 4 or len(test.who) == len(test.people):
        raise UserError(f"{cfg.data}: {len(test.who)} pictures of {len(test.people)} people to test on; "
                        "expected at least 4 people, some with several")
    if known:
        return None, test
    return photographs(cfg, found, [k for k, one in enumerate(who) if one < n_train]), test


def photographs(cfg, found, chosen):
    """An album of the pictures found["images"][k], k in chosen, decoded once."""
    L, files = stored_side(cfg.image_size), [found["images"][k] for k in chosen]

    def decode(k):
        return np.asarray(cut(files[k], open_image(files[k]), L)).transpose(2, 0, 1)

    points = [file and (file.stat().st_size, file.stat().st_mtime_ns) for file in map(fiducials_of, files)]
    images, good = decoded_images(cfg, files, (3, L, L), decode, points)
    pose = torch.tensor([found["pose"][chosen[k]] for k in good])
    number = torch.tensor([found["who"][chosen[k]] for k in good])
    kept, who = number.unique(return_inverse=True)                     # with --skip-bad a person may be gone
    names = tuple(found["people"][k] for k in kept.tolist())
    return Album(images, who, pose, names, found["poses"], paths=tuple(files[k] for k in good))


# ==================================================================================== cut and drawn

def stored_side(image_size):
    """Side L of the stored pictures, of which training cuts image_size at random: 100 for 96."""
    return image_size * 25 // 24


def cut(path, photo, side):
    """The face on a PIL photograph, side x side: around CFP's fiducials, or else the central square."""
    return crop(photo, *face_square(path, photo), side)


def middle(x, size):
    """The middle size x size of pictures [B, 3, L, L]."""
    edge = (x.shape[-1] - size) // 2
    return x[..., edge:edge + size, edge:edge + size]


def pictures(album, index, cfg):
    """Pictures `index` for testing, the middle of each, degraded as the album says: [b, 3, S, S]."""
    x = middle(draw(album.images, index, cfg.device), cfg.image_size)
    if album.blur is None:
        return x
    return degrade(x, album.blur[index].to(x.device), album.cover[index].to(x.device))


def truth(album, index, pose, cfg):
    """The toy faces `index` truly in pose [n] (or one for all), all else equal: [n, 3, S, S]."""
    yaw = torch.tensor(YAWS, dtype=torch.float32)[pose].to(cfg.device).expand(len(index))
    faces = album.faces[index.to(album.faces.yaw.device)].set(yaw=yaw)
    return middle(toyfaces.render(faces, stored_side(cfg.image_size)), cfg.image_size)


# ========================================================================================= degraded

def random_damage(n, share, g):
    """How to degrade n pictures, a `share` of them: blur [n] and cover [n, 3] as in `degrade`.

    Half of them are blurred, half covered.
    """
    chosen, blurred = torch.rand(2, n, generator=g) < torch.tensor([[share], [.5]])
    blur = (.015 + .04 * torch.rand(n, generator=g)) * (chosen & blurred)
    x, y, radius = torch.rand(3, n, generator=g)
    cover = torch.stack([.3 + .4 * x, .3 + .5 * y, (.2 + .2 * radius) * (chosen & ~blurred)], 1)
    return blur, cover


def degrade(x, blur, cover):
    """Gaussian blur, then a grey disc. x: [B, 3, S, S] in [-1, 1].

    blur: [B], its sigma; cover: [B, 3], the disc's x, y, radius; all in parts of the side, 0 = none.
    """
    B, _, S, _ = x.shape
    t = torch.arange(-round(.12 * S), round(.12 * S) + 1, device=x.device)
    kernel = torch.exp(-t ** 2 / (2 * (blur[:, None] * S).clamp(min=.05) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    y = F.pad(x, (len(t) // 2,) * 4, mode="replicate").flatten(0, 1)[None]     # each channel has its kernel
    y = F.conv2d(y, kernel[..., None, :], groups=3 * B)
    y = F.conv2d(y, kernel[..., None], groups=3 * B)[0].unflatten(0, (B, 3))
    axis = (torch.arange(S, device=x.device) + .5) / S
    across, down = (axis - cover[:, 0, None])[:, None, :], (axis - cover[:, 1, None])[:, :, None]
    radius = cover[:, 2, None, None]
    disc = ((radius - (across ** 2 + down ** 2).sqrt()) * S + .5).clamp(0, 1) * (radius > 0)
    return y * (1 - disc)[:, None]


def between(decode, f, n_poses, noise):
    """What a decoder makes of one feature f [1, n_f] between codes, and between noises: columns of a sheet.

    decode(f, c, z), as DR-GAN's. Above, the code goes from pose to pose by halves; below, in the middle pose,
    z goes from one random end to the opposite one. 2 n_poses - 1 columns [2, 3, S, S].
    """
    n = 2 * n_poses - 1
    place = torch.linspace(0, n_poses - 1, n)
    z = torch.rand(noise, generator=torch.Generator().manual_seed(1))
    codes = (1 - (place[:, None] - torch.arange(n_poses)).abs()).clamp(min=0)      # a half: .5 of either
    front, z = codes[n // 2].expand(n, -1), (2 * z - 1).expand(n, -1)
    ends = z * torch.linspace(1, -1, n)[:, None]
    drawn = decode(f.expand(2 * n, -1), *(torch.cat(v).to(f.device) for v in ((codes, front), (z, ends))))
    return list(drawn.unflatten(0, (2, n)).unbind(1))
