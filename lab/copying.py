"""Ours, before the training of a CycleGAN, and off in the papers' recipes: first its generators copy."""
import torch

from lab.run import autocast


def learn_to_copy(cfg, run, opt, generators, loss):
    """For the first cfg.copy_steps steps each generator learns to give back pictures of both domains.

    Else both may paint negatives, which satisfies the cycle. loss: the paper's identity loss, of a picture
    and what a generator makes of it. Its weight is the cycle's: after small gradients Adam's first step
    on the paper's objective would be huge. opt steps the generators; x and y come first in run's batches.
    """
    for step, (x, y, *_) in run.batches(2 * cfg.batch_size, until=cfg.copy_steps):
        both = torch.cat([x, y])
        with autocast(cfg):
            same = [G(both) for G in generators]
        L_copy = cfg.lambda_copy * sum(loss(both, one) for one in same)
        opt.zero_grad()
        L_copy.backward()
        opt.step()
        if run.logs(step):
            run.log(step, L_copy=L_copy)
