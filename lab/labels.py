"""Labels of a picture by name: what excludes what, and what a user asks for."""
import torch
import torch.nn.functional as F

from lab import UserError
from lab.formats.attributes import HAIR


def rivals(name, names, exclusive):
    """Indices of the labels that exclude each other, `name` among them: all classes, or the hair colours."""
    return [k for k, other in enumerate(names)
            if other == name or exclusive or (name in HAIR and other in HAIR)]


def named(source, names, exclusive, n, device):
    """The labels with the names `source`, for n pictures: [n, len(names)] of 0, 1. UserError for others."""
    for name in source:
        if name not in names:
            raise UserError(f"--source {name}: unknown label; expected some of {', '.join(names)}")
    one_of = [name for name in names if exclusive or name in HAIR]
    if sum(name in source for name in one_of) > 1:
        raise UserError(f"--source {' '.join(source)}: only one of {', '.join(one_of)} can hold")
    return torch.tensor([[float(name in source) for name in names]] * n, device=device)


def read(logits, names, exclusive):
    """What logits [B, n] of a classifier say: attributes above 0; the highest class, or hair colour."""
    label = (logits > 0).float()
    one_of = [k for k, name in enumerate(names) if exclusive or name in HAIR]
    if exclusive or len(one_of) > 1:                                   # a lone hair colour excludes nothing
        label[:, one_of] = F.one_hot(logits[:, one_of].argmax(1), len(one_of)).to(label)
    return label


def wish(text, known, sets):
    """"Blond_Hair" or "not-Young" -> (data set d, label wanted [B, n_d]).

    known: the label [B, n_d] that pictures have now, for each data set; sets: [(names, exclusive)]. A hair
    colour or a class clears its rivals. UserError for what no set knows.
    """
    places = {name: (d, k) for d, (names, _) in enumerate(sets) for k, name in enumerate(names)}
    on = text in places                                                # also a class called not-smiling
    name = text if on else text.removeprefix("not-")
    if name not in places:
        raise UserError(f"--target {text}: unknown label; this generator knows {', '.join(places)}")
    d, k = places[name]
    names, exclusive = sets[d]
    if exclusive and not on:
        raise UserError(f"--target {text}: a picture has exactly one of {', '.join(names)}; "
                        "ask for one of them")
    wanted = known[d].clone()
    if on:
        wanted[:, rivals(name, names, exclusive)] = 0.
    wanted[:, k] = float(on)
    return d, wanted
