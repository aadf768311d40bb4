"""Picture files, pictures decoded once and drawn by index, contact sheets, GIFs, and measures of pictures."""
import concurrent.futures
import contextlib
import hashlib
import math
import os
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from common import heatmaps
from lab import UserError
from lab.files import beside

warnings.filterwarnings("ignore", "Corrupt EXIF data", module="PIL")         # the picture itself is fine


# =================================================================================== picture files

@contextlib.contextmanager
def picture_file(path):
    """PIL's picture, opened and closed. Whatever goes wrong becomes a UserError that names the file."""
    # a pipe or a device would be read for ever
    if not Path(path).is_file():
        raise UserError(f"{path}: {'not a file' if Path(path).exists() else 'no such file'}")
    if not Path(path).stat().st_size:
        raise UserError(f"{path}: empty file")
    try:
        with Image.open(path) as image:
            yield image
    # damaged files make decoders raise anything
    except Exception as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a readable picture ({why})") from None


def picture_size(path):
    """(width, height) of a picture file, turned as its EXIF says, not decoded. UserError names the file."""
    with picture_file(path) as image:
        return image.size[::-1] if image.getexif().get(274, 1) >= 5 else image.size


def open_image(path):
    """Any picture file -> RGB PIL image: upright (EXIF), grey and palette expanded, transparency over white.

    UserError names the file.
    """
    with picture_file(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            array = np.nan_to_num(np.asarray(image, dtype=np.float32))
            image = Image.fromarray((array / white_of(image.mode, array) * 255).clip(0, 255).astype(np.uint8))
        elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def white_of(mode, array):
    """The value of white in a picture of 16 bits, 32 bits or floats. Floats may exceed 1 a little."""
    if mode.startswith("I;16") or array.max() > 255:
        return 65535
    return 255 if mode == "I" or array.max() > 2 else 1


def crop(image, low, high, side, resample=Image.Resampling.BICUBIC):
    """The box low ... high ([2] each, pixels as in landmarks) of an RGB image, resized to side x side.

    Edges repeat beyond the border.
    """
    # (0, 0): a pixel's centre; PIL's: its corner
    box = [v + .5 for v in (*low.tolist(), *high.tolist())]
    outside = min(box[:2]) < 0 or box[2] > image.width or box[3] > image.height
    coarse = int(max(box[2] - box[0], box[3] - box[1]) // (4 * side))
    if coarse > 1 and outside:                                         # a far border would need much memory
        image, box = image.reduce(coarse), [v / coarse for v in box]
    borders = -box[0], -box[1], box[2] - image.width, box[3] - image.height
    pad = max(0, *(math.ceil(v) for v in borders))
    if pad:
        image = Image.fromarray(np.pad(np.asarray(image), ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
    box = tuple(v + pad for v in box)
    return image.resize((side, side), resample, box, reducing_gap=3)


def square(image, side, resample=Image.Resampling.BICUBIC):
    """The central square of an RGB image, resized to side x side."""
    low = torch.tensor([image.width, image.height]) / 2 - min(image.size) / 2
    return crop(image, low - .5, low + min(image.size) - .5, side, resample)


def padded(image, side):
    """A whole picture in a square, its edges repeated, resized to side x side."""
    middle, half = torch.tensor([image.width, image.height]) / 2 - .5, max(image.size) / 2
    return crop(image, middle - half, middle + half, side)


def to_tensor(image):
    """RGB PIL image -> float32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def to_uint8(x):
    """[..., 3, H, W] in [-1, 1] -> uint8, rounded and clamped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


# ================================================================================== decoded once

def cached(cfg, key, shape, fill):
    """A uint8 array of `shape`, made once by `fill(array)` and kept as a memory-mapped .npy in cfg.cache.

    key: anything with a repr that changes when the content would. Written beside and renamed. Returns a
    tensor: on the GPU if it fits in a third of its free memory, else mapped from disk. UserError if there is
    no room.
    """
    path = Path(cfg.cache) / (hashlib.sha256(repr((key, shape)).encode()).hexdigest()[:20] + ".npy")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = beside(path)
        try:
            array = _reserved(partial, shape)
            fill(array)
            array.flush()
            del array                                                  # Windows renames no mapped file
            partial.replace(path)
        finally:
            array = None
            partial.unlink(missing_ok=True)
    try:
        # copy on write: torch wants a writable array
        array = np.load(path, mmap_mode="c")
    except (ValueError, EOFError):
        raise UserError(f"{path}: a damaged cache file; delete it") from None
    if cfg.device.startswith("cuda") and array.nbytes < torch.cuda.mem_get_info()[0] / 3:
        return torch.from_numpy(np.array(array)).to(cfg.device)
    return torch.from_numpy(array)


def _reserved(path, shape):
    """A new .npy file with room for all of it: writing to a map on a full disk would end the process."""
    try:
        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array
    except (OSError, ValueError, OverflowError) as error:
        why = getattr(error, "strerror", "") or error
        size = f"{math.prod(shape) / 2 ** 20:,.0f} MiB"
        raise UserError(f"{path.parent}: no room for {size} of pictures ({why}); "
                        "give another --cache folder, or fewer or smaller pictures") from None


def draw(images, index, device):
    """Pictures `index` of uint8 images [N, 3, H, W] -> float32 [B, 3, H, W] in [-1, 1] on `device`."""
    chosen = images[index.to(images.device, non_blocking=True)]
    return chosen.to(device, non_blocking=True).float() / 127.5 - 1


def draw_crops(images, index, top, left, size, device, mirror=None):
    """As `draw`, of each picture the size x size square with the corner top[i], left[i].

    mirror: [B] bool, where left and right change places.
    """
    home = images.device
    index, top, left = (t.to(home, non_blocking=True) for t in (index, top, left))
    axis = torch.arange(size, device=home)
    columns = axis
    if mirror is not None:
        columns = torch.where(mirror[:, None].to(home, non_blocking=True), axis.flip(0), axis)
    rows, columns = top[:, None] + axis, left[:, None] + columns
    channels = torch.arange(3, device=home)[:, None, None]
    x = images[index[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]]
    return x.to(device, non_blocking=True).float() / 127.5 - 1


def decode_all(paths, decode, array, skip_bad):
    """array[i] = decode(i) for every path, in threads. Returns the indices that could be read.

    Files that raise UserError: one error that names the first of them, or, with skip_bad, a line that counts
    them.
    """
    bad = {}

    def one(i):
        try:
            array[i] = decode(i)
        except UserError as error:
            bad[i] = str(error)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        quiet = not sys.stderr.isatty()
        list(tqdm(pool.map(one, range(len(paths))), "decoding", len(paths), disable=quiet))
    report_bad(sorted(bad.values()), len(paths), skip_bad)
    return [i for i in range(len(paths)) if i not in bad]


def decoded_images(cfg, paths, shape, decode, key=()):
    """The pictures `paths` decoded once, decode(i) -> uint8 `shape`: (images [n, *shape], indices of those
    n).

    key: whatever else than the files decides what decode gives. With cfg.skip_bad unreadable files are left
    out.
    """
    def fill(array):                                                   # a row's last byte: was it readable?
        pictures = array[:, :-1].reshape(len(paths), *shape)
        array[decode_all(paths, decode, pictures, cfg.skip_bad), -1] = 1

    files = [(str(p), *((p.stat().st_size, p.stat().st_mtime_ns) if p.exists() else ())) for p in paths]
    rows = cached(cfg, (files, key, cfg.skip_bad), (len(paths), math.prod(shape) + 1), fill)
    images, readable = rows[:, :-1].unflatten(1, shape), rows[:, -1].cpu() == 1
    good = readable.nonzero()[:, 0].tolist()
    return (images if len(good) == len(paths) else images[good]), good


def report_bad(bad, total, skip_bad):
    """One line for files that cannot be used: a UserError, or with skip_bad a notice."""
    if bad:
        more = f" (and {len(bad) - 1} more of {total})" if len(bad) > 1 else f" (the only one of {total})"
        if not skip_bad or len(bad) == total:
            way_out = "" if skip_bad else "; mend or remove them, or add --skip-bad to go on without"
            raise UserError(bad[0] + more + way_out)
        print(f"left out {len(bad)} of {total} files: {bad[0]}{' ...' if len(bad) > 1 else ''}")


def report_found(found, skip_bad):
    """`report_bad` of what a scan found."""
    report_bad(found["bad"], len(found["images"]) + len(found["bad"]), skip_bad)


# ======================================================================================= measures

def rgb_to_lab(x):
    """sRGB pictures [B, 3, H, W] in [-1, 1] -> CIE Lab (D65): L 0 ... 100, a and b about -110 ... 110."""
    rgb = (x / 2 + .5).clamp(0, 1)
    linear = torch.where(rgb > .04045, ((rgb + .055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = linear.new_tensor([[.4124564, .3575761, .1804375], [.2126729, .7151522, .0721750],
                                [.0193339, .1191920, .9503041]])
    xyz = torch.einsum("kc,bchw->kbhw", to_xyz / to_xyz.sum(1, keepdim=True), linear)
    cube_root, line = xyz.clamp(min=1e-9) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29
    X, Y, Z = torch.where(xyz > (6 / 29) ** 3, cube_root, line)
    return torch.stack([116 * Y - 16, 500 * (X - Y), 200 * (Y - Z)], 1)


def to_unit(x):
    """[-1, 1] -> [0, 1], clamped, for measures.

    On a GPU in float64: SSIM subtracts squares, which TF32 rounds.
    """
    return ((x.double() if x.is_cuda else x) / 2 + .5).clamp(0, 1)


def L1(x, truth):
    """Mean absolute difference of each picture, in units of 0 ... 1 of pictures in [-1, 1]: [B]."""
    return (x - truth).abs().flatten(1).mean(1) / 2


def ssim(x, truth):
    """SSIM of pictures [B, c, H, W] in [-1, 1] (clamped to it): [B]."""
    import piq                                                         # takes its time
    return piq.ssim(to_unit(x), to_unit(truth), data_range=1., reduction="none").float()


# ========================================================================================= sheets

def grid(columns, titles=None, scale=0):
    """A contact sheet (PIL image). columns: [n, 3, S, S] in [-1, 1] each, with titles or without, or {title:
    pictures}. A pixel becomes scale x scale; 0: so many that a small picture is about 128 px.
    """
    if isinstance(columns, dict):
        columns, titles = list(columns.values()), list(columns)
    columns = [to_uint8(column.cpu()) for column in columns]
    n, _, h, w = columns[0].shape
    scale = scale or max(1, 128 // h)
    sheet = torch.full((3, n * (h + 2), len(columns) * (w + 2)), 255, dtype=torch.uint8)
    for k, column in enumerate(columns):
        for i in range(n):
            sheet[:, i * (h + 2):i * (h + 2) + h, k * (w + 2):k * (w + 2) + w] = column[i]
    image = Image.fromarray(sheet.permute(1, 2, 0).numpy())
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    return image if titles is None else titled(image, titles, (w + 2) * scale)


def titled(image, titles, width):
    """A sheet with titles above it, one every `width` pixels, long ones in several lines."""
    texts = [textwrap.fill(title, max(1, 2 * width // 11)) for title in titles]   # 5.5 px a letter
    top = 2 + 14 * max(1 + text.count("\n") for text in texts)
    out = Image.new("RGB", (image.width, image.height + top), "white")
    out.paste(image, (0, top))
    pen = ImageDraw.Draw(out)
    for k, text in enumerate(texts):
        pen.text((k * width + 2, 0), text, fill="black", font_size=12, spacing=1)
    return out


def draw_points(points, size):
    """Landmarks [B, n, 2] as a picture for a sheet: white dots on black, [B, 3, S, S] in [-1, 1]."""
    return (heatmaps(points, size, .6 * size / 64).amax(1, keepdim=True) * 2 - 1).expand(-1, 3, -1, -1)


def figure(width, height, layout="constrained"):
    """An empty matplotlib figure, inches, that needs no display. (Imported here: it takes its time.)"""
    # MPLBACKEND, as a notebook leaves it, may not be known here, and would break the import
    wanted = os.environ.pop("MPLBACKEND", None) if "matplotlib" not in sys.modules else None
    import matplotlib
    if wanted:
        os.environ["MPLBACKEND"] = wanted
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = wanted
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    empty = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(empty)
    return empty


def write_gif(frames, path, ms=80):
    """frames: list of PIL images of one size."""
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=ms, loop=0)
