"""Published weights: the authors' names of layers -> ours; and Light CNN, whose features a loss may use."""
import re
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from common import heatmaps
from lab import UserError, judges, say
from lab.files import load_checkpoint, load_weights
from lab.toyfaces import EXPRESSIONS


def stargan_G(state):
    """yunjey/stargan's generator. Running statistics of its instance norms are not used."""
    state = {k.removeprefix("module."): v for k, v in state.items()}
    return {re.sub(r"^main\.(\d+)\.main\.", r"main.\1.body.", k): v
            for k, v in state.items() if not re.search(r"running_|num_batches", k)}


def stargan_D(state):
    rename = {"main.": "trunk.", "conv1.": "head.", "conv2.": "cls."}
    return {renamed(k.removeprefix("module."), rename): v for k, v in state.items()}


def gannotation_G(state):
    """ESanchezLozano/GANnotation's published generator."""
    rename = {"down_conv.": "down.", "feature_layer.": "up.", "colour_layer.0.": "colour.",
              "mask_layer.0.": "mask."}
    out = {}
    for key, value in state.items():
        key = renamed(key.removeprefix("module."), rename)
        key = re.sub(r"^bottleneck\.(\d+)\.conv1\.", r"bottleneck.\1.body.0.", key)
        out[re.sub(r"^bottleneck\.(\d+)\.conv2\.", r"bottleneck.\1.body.3.", key)] = value
    return out


def gannotation(saved):
    """The authors' published generator, as a checkpoint of ours."""
    G = gannotation_G(saved.get("state_dict", saved))
    first = G.get("down.0.weight", torch.empty(64, 3 + 66))
    blocks = sum(bool(re.fullmatch(r"bottleneck\.\d+\.body\.0\.weight", k)) for k in G)
    return {"nets": {"G": G}, "config": {"image_size": 128, "points": first.shape[1] - 3, "width": len(first),
                                         "residual_blocks": blocks or 6, "sigma": 1.75, "tight": 16.}}


def gannotation_heatmaps(points, size, sigma):
    """Heatmaps as the authors' demo draws them, and their generator expects them: [B, n, S, S] in [0, 1].

    points: [B, n, 2], as everywhere. The demo counts from the corner of the crop, drops the fraction, and
    puts the peak at the pixel before. Beyond 3 px in x or y the map is 0.
    """
    peak = (points + .5).floor() - 1
    axis = torch.arange(size, device=points.device)
    column, row = ((axis - peak[..., k, None]).abs() <= 3 for k in (0, 1))
    return heatmaps(peak, size, sigma) * row[..., :, None] * column[..., None, :]


def renamed(key, rename):
    """The key with its first part as `rename` has it."""
    for theirs, ours in rename.items():
        if key.startswith(theirs):
            return ours + key[len(theirs):]
    return key


def stargan(saved, path, attributes):
    """The authors' N-G.ckpt, with N-D.ckpt beside it if it is there, as a checkpoint of ours.

    attributes: names of the labels of an attribute set. UserError for another number of labels.
    """
    G, config = stargan_G(saved), {}
    first, n = G.get("main.0.weight", torch.empty(64, 3 + len(attributes))), len(attributes)
    config["width"] = len(first)
    config["residual_blocks"] = sum(bool(re.fullmatch(r"main\.\d+\.body\.0\.weight", k)) for k in G)
    of_attributes, of_rafd = (list(attributes), False), (list(EXPRESSIONS), True)
    # joint: a mask of 2
    known = {n + 8 + 2: [of_attributes, of_rafd], 8: [of_rafd], n: [of_attributes]}
    if first.shape[1] - 3 not in known:
        raise UserError(f"{path}: a generator of {first.shape[1] - 3} labels; "
                        "give their names with --attributes")
    nets, config["image_size"] = {"G": G}, 128                         # theirs are of 128 px or more
    beside = Path(re.sub(r"G(\.\w+)$", r"D\1", str(path)))            # 200000-G.ckpt -> 200000-D.ckpt
    if beside != Path(path) and beside.exists():
        D = nets["D"] = stargan_D(load_checkpoint(beside))
        config["d_width"] = len(D["trunk.0.weight"])
        config["d_layers"] = sum(bool(re.fullmatch(r"trunk\.\d+\.weight", k)) for k in D)
        config["image_size"] = D["cls.weight"].shape[-1] * 2 ** config["d_layers"]
    return {"nets": nets, "config": config, "about": known[first.shape[1] - 3]}


# ---- junyanz/pytorch-CycleGAN-and-pix2pix

CYCLEGAN = {"G": "G_A", "F": "G_B", "D_X": "D_B", "D_Y": "D_A"}         # D_A judges what G_A makes


def by_order(net, state):
    """The state_dict under net's names: both list their layers from input to output.

    What does not fit comes back as it is.
    """
    theirs = {k: v for k, v in state.items() if torch.is_tensor(v)}
    if not any("running_" in k for k in net.state_dict()):             # statistics that nobody uses
        theirs = {k: v for k, v in theirs.items() if not re.search("running_|num_batches", k)}
    mine = net.state_dict()
    if [v.shape for v in theirs.values()] == [v.shape for v in mine.values()]:
        return dict(zip(mine, theirs.values(), strict=True))
    return state


def beside(path, name):
    """latest_net_G_A.pth -> latest_net_<name>.pth; None if it is not there, or named otherwise."""
    other = Path(re.sub(r"(.*net_)\w+?(\.\w+)$", rf"\g<1>{name}\2", str(path)))
    return other if other.exists() and re.search(r"net_\w+\.\w+$", str(path)) else None


def pix2pix_cyclegan(saved, path):
    """The authors' file of G (pix2pix) or G_A (CycleGAN), its fellows beside it, as a checkpoint of ours.

    The networks keep the authors' names of layers, see by_order. Their U-Nets have dropout in depth - 5
    layers of the decoder, from the second on. UserError for the file of another network.
    """
    if re.search(r"net_(G_B|D)", Path(path).name):
        raise UserError(f"{path}: give the file of G, or of G_A (and --backward to translate with G_B); "
                        "its fellows are found beside it")
    convs = [v for v in saved.values() if torch.is_tensor(v) and v.ndim == 4]
    config = {"width": len(convs[0]) if convs else 64, "batch_size": 1, "nearest": False}
    if any(k.startswith("model.model.") for k in saved):               # a U-Net: models in models
        depth, fellows = len(convs) // 2, {"D": "D"}
        config |= {"model": "pix2pix", "image_size": 2 ** depth, "dropout": tuple(range(2, depth - 3))}
    else:
        fellows = {name: theirs for name, theirs in CYCLEGAN.items() if name != "G"}
        config |= {"model": "cyclegan", "image_size": 256, "residual_blocks": max(0, len(convs) - 6) // 2}
    files = {name: beside(path, theirs) for name, theirs in fellows.items()}
    nets = {name: load_checkpoint(file) for name, file in files.items() if file}
    return {"nets": {"G": saved} | nets, "config": config}


# ---- recognisers of faces

def vgg_face(state):
    """VGG-Face's layer names (conv1_1 or conv_1_1 ... fc8), or torchvision's, as torchvision's."""
    first = {"1": 0, "2": 5, "3": 10, "4": 17, "5": 24}
    out = {}
    inner = state.get("state_dict", state)
    for key, value in (inner if isinstance(inner, dict) else state).items():
        key = key.removeprefix("module.")
        if m := re.fullmatch(r"conv_?(\d)_(\d)\.(weight|bias)", key):
            key = f"features.{first[m[1]] + 2 * (int(m[2]) - 1)}.{m[3]}"
        elif m := re.fullmatch(r"fc([678])\.(weight|bias)", key):
            key = f"classifier.{3 * (int(m[1]) - 6)}.{m[2]}"
        out[key] = value
    return out


class VGGFace(nn.Module):
    """VGG-Face (Parkhi et al. 2015): VGG-16 for 2622 people, up to fc7 before its ReLU.

    134,260,544 parameters. forward: faces [B, 3, S, S] in [-1, 1] -> features [B, 4096]. file: its weights;
    "" = they follow. bgr: it expects blue first, as Caffe's does. UserError for a file that does not fit.
    """
    MEAN = (129.1863, 104.7624, 93.5940)                               # R, G, B of 0 ... 255

    def __init__(self, file="", bgr=False):
        super().__init__()
        import torchvision                                             # takes its time
        self.net, self.bgr = torchvision.models.vgg16(num_classes=2622), bgr
        if file:
            load_weights(self.net, vgg_face(load_checkpoint(file)), file)
        self.net.classifier = self.net.classifier[:4]                  # fc6, ReLU, dropout, fc7
        self.register_buffer("mean", torch.tensor(self.MEAN)[:, None, None], persistent=False)

    def forward(self, x):
        x = F.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
        x = (x + 1) * 127.5 - self.mean
        return self.net(x.flip(1) if self.bgr else x).float()


class LightCNN(nn.Module):
    """Light CNN-9 (Wu et al. 2018). Layer names are those of the published checkpoint.

    Max-feature-map: a convolution with twice the channels, of which the larger of each two goes on.
    forward: [B, 1, 128, 128] grey in [0, 1] -> last pooling layer [B, 128, 8, 8], fully connected layer [B,
    256].
    """

    class MFM(nn.Module):
        def __init__(self, c_in, c_out, kernel=3, padding=1, linear=False):
            super().__init__()
            conv = nn.Linear(c_in, 2 * c_out) if linear else nn.Conv2d(c_in, 2 * c_out, kernel, 1, padding)
            self.filter = conv

        def forward(self, x):
            return torch.maximum(*self.filter(x).chunk(2, 1))

    class Group(nn.Module):
        def __init__(self, c_in, c_out):
            super().__init__()
            self.conv_a, self.conv = LightCNN.MFM(c_in, c_in, 1, 0), LightCNN.MFM(c_in, c_out)

        def forward(self, x):
            return self.conv(self.conv_a(x))

    def __init__(self):
        super().__init__()
        G, pool = self.Group, nn.MaxPool2d(2, 2, ceil_mode=True)
        self.features = nn.Sequential(self.MFM(1, 48, 5, 2), pool, G(48, 96), pool, G(96, 192), pool,
                                      G(192, 128), G(128, 128), pool)
        self.fc1 = self.MFM(8 * 8 * 128, 256, linear=True)

    def forward(self, grey):
        pool = self.features(grey)
        return pool, self.fc1(pool.flatten(1))


class FaceFeatures(nn.Module):
    """Phi of an identity loss: face -> (last pooling layer, fully connected layer) of a frozen recogniser.

    Light CNN-9, if cfg.light_cnn names its file; else a small recogniser of toy people of its own, not the
    one that measures in --evaluate. forward(images [B, 3, S, S] in [-1, 1]) -> two float32 tensors.
    """

    def __init__(self, cfg):
        super().__init__()
        self.light_cnn = None
        if cfg.light_cnn:
            state = load_checkpoint(cfg.light_cnn)
            state = {k.removeprefix("module."): v for k, v in state.get("state_dict", state).items()}
            state = {k: v for k, v in state.items() if not k.startswith("fc2.")}
            self.light_cnn = load_weights(LightCNN(), state, cfg.light_cnn).eval().requires_grad_(False)
            return
        if cfg.data:
            say("identity loss: no --light-cnn file; using a small recogniser of toy faces")
        self.toy, _ = judges.judge("identity", cfg.image_size, 1, cfg.device, cfg.cache)

    def forward(self, images):
        if self.light_cnn is None:
            pool = self.toy.features(images)[-1]
            return pool.float(), self.toy.embed(pool).float()
        r, g, b = images.split(1, 1)
        grey = (.299 * r + .587 * g + .114 * b) / 2 + .5
        pool, fc = self.light_cnn(F.interpolate(grey, (128, 128), mode="bilinear", align_corners=False))
        return pool.float(), fc.float()


class Perception(nn.Module):
    """Psi of a perceptual loss: images [B, 3, S, S] in [-1, 1] -> four float32 feature maps, frozen.

    relu1_2, relu2_2, relu3_3, relu4_3 of torchvision's VGG-16, fed as it was trained. (GANnotation's authors
    feed it pictures in [-1, 1].) Without its weights, or with cfg.perceptual = "recogniser": the maps of a
    small recogniser of toy faces.
    """
    LAYERS = 3, 8, 15, 22

    def __init__(self, cfg):
        super().__init__()
        self.vgg = self.pretrained() if cfg.perceptual == "vgg" else None
        if self.vgg is None:
            self.toy, _ = judges.judge("identity", cfg.image_size, 1, cfg.device, cfg.cache)
        self.register_buffer("mean", torch.tensor([.485, .456, .406])[:, None, None])        # of ImageNet
        self.register_buffer("std", torch.tensor([.229, .224, .225])[:, None, None])

    @staticmethod
    def pretrained():
        """VGG-16's layers; None, and a line said, where they are neither on disk nor downloadable."""
        import torchvision                                             # takes its time
        try:
            vgg = torchvision.models.vgg16(weights=torchvision.models.VGG16_Weights.IMAGENET1K_V1)
        except (OSError, RuntimeError, ValueError):
            say("perceptual loss: VGG-16 weights are not on disk and cannot be downloaded; "
                "using the toy recogniser's features")
            return None
        # a ReLU in place would change the map before it
        layers = [nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in vgg.features[:23]]
        return nn.Sequential(*layers).eval().requires_grad_(False)

    def forward(self, images):
        if self.vgg is None:
            return [m.float() for m in self.toy.features(images)]
        x, maps = (images / 2 + .5 - self.mean) / self.std, []
        for k, layer in enumerate(self.vgg):
            x = layer(x)
            if k in self.LAYERS:
                maps.append(x.float())
        return maps
