"""DR-GAN goes on from a finished model: the fusing one from the one of single pictures."""
import torch

from lab.files import load_weights, read_checkpoint, reads_checkpoint


@reads_checkpoint
def take_over(cfg, paper, G, D, about):
    """Begin with the checkpoint cfg.weights: its G, and its D if that knows the same people and poses.

    A D that knows nobody would be a bad teacher: the encoder would forget. paper: DR-GAN's file; about:
    people and poses of this training; the checkpoint's people are added, so that none is ever tested on.
    Returns whether D was taken.
    """
    saved = read_checkpoint(cfg.weights, paper)
    before, theirs = saved["about"], saved["nets"].get("D", {})
    load_weights(G, with_confidence(saved["nets"].get("G", {}), G), cfg.weights)
    taken = before == about and saved["config"]["head"] == cfg.head
    taken = taken and len(theirs.get("fc.bias", ())) == sum(D.sizes)    # it may know fewer than about says
    if taken:
        load_weights(D, theirs, cfg.weights)
    about["people"] = sorted({*about["people"], *before["people"]})
    return taken


def with_confidence(state, G):
    """Weights of a single-image model for a multi-image G: the confidence, which they lack, is as in G."""
    own, grown = G.state_dict(), dict(state)
    for name in own.keys() & state.keys():
        if G.multi and own[name].dim() and len(own[name]) == len(state[name]) + 1:
            grown[name] = torch.cat([state[name], own[name][-1:].cpu()])
    return grown
