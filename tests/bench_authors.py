"""Our training step against one in the manner of the authors' code:  python tests/bench_authors.py  writes README's table.

The manner: float32, one pass through D for real and one for generated pictures, the gradient penalty with a graph of its own,
StarGAN's D neither frozen nor spared in G's step and G's graph kept in D's, Adam without fusing, losses read off after every step.
The networks, with nn.LeakyReLU, the batches and all random numbers are ours. Both take turns, step by step, in one process.
"""
import contextlib
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import results_table

sys.path.insert(0, str(results_table.ROOT))
import common  # noqa: E402
import pix2pix_cyclegan  # noqa: E402
import stargan  # noqa: E402

WARM_UP, CYCLES = 5, 60                                                # a cycle: the steps of D until G has its turn
MODELS = (("stargan", stargan, {}), ("pix2pix", pix2pix_cyclegan, dict(model="pix2pix")), ("cyclegan", pix2pix_cyclegan, dict(model="cyclegan")))


def adam(cfg, *nets):
    return torch.optim.Adam([p for net in nets for p in net.parameters()], cfg.lr, cfg.betas)


def theirs_of(cfg, nets):
    """The networks on the device, with PyTorch's own LeakyReLU: common's spares the gradient penalty a backward pass of zeros."""
    for layer in (layer for net in nets for layer in net.to(cfg.device).modules()):
        if isinstance(layer, common.LeakyReLU):
            layer.__class__ = torch.nn.LeakyReLU
    return nets


def descend(optimiser, loss):
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def stargan_step(cfg):
    """step(k) -> the losses, as numbers."""
    data = stargan.make_data(cfg)
    stargan.make_data(cfg, test=True)
    G, D = theirs_of(cfg, stargan.build(cfg, data.sizes))
    opt_G, opt_D = adam(cfg, G), adam(cfg, D)
    said = {}

    def step(k):
        (x_real, label_org), = data.sample(cfg.batch_size)
        label_trg = label_org[torch.randperm(len(label_org))]
        src, cls = D(x_real)
        real, cls_real = -src.mean(), F.binary_cross_entropy_with_logits(cls, label_org, reduction="sum") / len(cls)
        x_fake = G(x_real, label_trg)
        fake = D(x_fake.detach())[0].mean()
        alpha = torch.rand(len(x_real), 1, 1, 1, device=x_real.device)
        x_hat = (alpha * x_real + (1 - alpha) * x_fake.detach()).requires_grad_(True)
        out = D(x_hat)[0]
        slope, = torch.autograd.grad(out, x_hat, torch.ones_like(out), create_graph=True)
        gp = ((slope.view(len(slope), -1).pow(2).sum(1).sqrt() - 1) ** 2).mean()
        descend(opt_D, real + fake + cfg.lambda_cls * cls_real + cfg.lambda_gp * gp)
        said.update(D=(real + fake).item(), cls_real=cfg.lambda_cls * cls_real.item(), gp=cfg.lambda_gp * gp.item())
        if k % cfg.n_critic == 0:
            x_fake = G(x_real, label_trg)
            src, cls = D(x_fake)
            adv, cls_fake = -src.mean(), F.binary_cross_entropy_with_logits(cls, label_trg, reduction="sum") / len(cls)
            rec = (x_real - G(x_fake, label_org)).abs().mean()
            descend(opt_G, adv + cfg.lambda_rec * rec + cfg.lambda_cls * cls_fake)
            said.update(adv=adv.item(), cls_fake=cfg.lambda_cls * cls_fake.item(), rec=cfg.lambda_rec * rec.item())
        return said
    return step


def pix2pix_step(cfg):
    data = pix2pix_cyclegan.make_data(cfg)
    pix2pix_cyclegan.make_data(cfg, test=True)
    G, D = theirs_of(cfg, pix2pix_cyclegan.build_pix2pix(cfg))
    opt_G, opt_D = adam(cfg, G), adam(cfg, D)
    score = F.binary_cross_entropy_with_logits

    def step(_):
        x, y = data.sample(cfg.batch_size)
        y_fake = G(x)
        fake, real = D(torch.cat([x, y_fake.detach()], 1)), D(torch.cat([x, y], 1))
        L_D = (score(fake, torch.zeros_like(fake)) + score(real, torch.ones_like(real))) / 2
        descend(opt_D, L_D)
        D.requires_grad_(False)
        shown = D(torch.cat([x, y_fake], 1))
        gan, L1 = score(shown, torch.ones_like(shown)), cfg.lambda_L1 * F.l1_loss(y_fake, y)
        descend(opt_G, gan + L1)
        D.requires_grad_(True)
        return dict(D=L_D.item(), GAN=gan.item(), L1=L1.item())
    return step


def cyclegan_step(cfg):
    data = pix2pix_cyclegan.make_data(cfg)
    pix2pix_cyclegan.make_data(cfg, test=True)
    nets = G, H, D_X, D_Y = theirs_of(cfg, pix2pix_cyclegan.build_cyclegan(cfg))
    opt_G, opt_D = adam(cfg, *nets[:2]), adam(cfg, *nets[2:])
    pools = [pix2pix_cyclegan.ImagePool(cfg.pool_size, cfg.image_size, cfg.device) for _ in "XY"]

    def judged(D, real, fake):
        real, fake = D(real), D(fake)
        L = (F.mse_loss(real, torch.ones_like(real)) + F.mse_loss(fake, torch.zeros_like(fake))) / 2
        L.backward()
        return L.item()

    def step(_):
        x, y = data.sample(cfg.batch_size)
        y_fake, x_fake = G(x), H(y)
        x_rec, y_rec = H(y_fake), G(x_fake)
        D_X.requires_grad_(False), D_Y.requires_grad_(False)
        scores = D_Y(y_fake), D_X(x_fake)
        L = dict(zip(("GAN_G", "GAN_F"), (F.mse_loss(s, torch.ones_like(s)) for s in scores), strict=True),
                 cyc_x=cfg.lambda_cyc * F.l1_loss(x_rec, x), cyc_y=cfg.lambda_cyc * F.l1_loss(y_rec, y))
        if cfg.lambda_idt:
            L["idt"] = cfg.lambda_idt * (F.l1_loss(G(y), y) + F.l1_loss(H(x), x))
        descend(opt_G, sum(L.values()))
        D_X.requires_grad_(True), D_Y.requires_grad_(True)
        opt_D.zero_grad()
        y_pooled, x_pooled = pools[1](y_fake.detach()), pools[0](x_fake.detach())
        said = {name: value.item() for name, value in L.items()} | dict(D_Y=judged(D_Y, y, y_pooled), D_X=judged(D_X, x, x_pooled))
        opt_D.step()
        return said
    return step


STEPS = dict(stargan=stargan_step, pix2pix=pix2pix_step, cyclegan=cyclegan_step)


def theirs(model, cfg, steps):
    """The losses after `steps` steps."""
    torch.manual_seed(cfg.seed)
    step = STEPS[model](cfg)
    return [dict(step(k)) for k in range(1, steps + 1)][-1]


def side_by_side(model, paper, cfg, folder):
    """(ms of their step in float32, ms of ours as in cfg, how many times faster): medians over CYCLES in which they take turns, step by step."""
    step, cycle, wait = STEPS[model](cfg), getattr(cfg, "n_critic", 1), torch.cuda.synchronize if cfg.device.startswith("cuda") else lambda: None
    lasted = {"theirs": [], "ours": []}

    @contextlib.contextmanager
    def clock(name):
        wait()
        start = time.perf_counter()
        yield
        wait()
        lasted[name].append(1e3 * (time.perf_counter() - start))

    def batches(run, batch_size):
        run.clock = 0.
        for k in range(1, (WARM_UP + CYCLES) * cycle + 1):
            with clock("theirs"):
                step(k)
            with clock("ours"):
                yield k, run.data.sample(batch_size)

    usual, common.Run.batches = common.Run.batches, batches
    try:
        paper.train(dataclasses.replace(cfg, run=folder, bench=True))
    finally:
        common.Run.batches = usual
    a, b = (torch.tensor(lasted[name]).view(-1, cycle).mean(1)[WARM_UP:] for name in ("theirs", "ours"))
    return a.median().item(), b.median().item(), (a / b).median().item()


def after(paper, cfg, folder, steps):
    """Our losses after `steps` steps of a longer training, in which the learning rate does not fall yet."""
    paper.train(dataclasses.replace(cfg, run=folder, steps=9 * steps, decay_from=1., stop_after=steps, log_every=steps, sample_every=99 * steps))
    return {k[2:]: v for k, v in common.read_jsonl(Path(folder) / "metrics.jsonl")[-1].items() if k.startswith("L_")}


def main():
    common._state["quiet"] = True
    lines = []
    for model, paper, more in MODELS:
        settings = paper.SMALL | dict(people=40) | more
        exact, half = paper.Config(**settings, amp=False), paper.Config(**settings)
        common.settle(exact), common.settle(half)
        with tempfile.TemporaryDirectory() as folder:
            a, b = theirs(model, exact, 50), after(paper, exact, folder, 50)
            apart = f"{max(abs(a[k] - b[k]) for k in a):.1e} of {max(map(abs, a.values())):.2g}"
            ms, mine, times = side_by_side(model, paper, exact, folder)
            rates = f"{mine:.0f} | {times:.2f}"
            rates += " | {1:.0f} | {2:.2f}".format(*side_by_side(model, paper, half, folder)) if half.amp else " | - | -"
        lines.append(f"| {model} | {exact.image_size} px, batch {exact.batch_size} | {ms:.0f} | {rates} | {apart} |\n")
        print(lines[-1], end="", flush=True)
    head = ("Our step against one in the manner of the authors' code: two passes through D where one serves, gradients nobody uses, numbers fetched\n"
            f"after every step, PyTorch's own LeakyReLU. {common.hardware(exact)}, commit {common.commit()}. ms per step and how many times\n"
            "faster, medians; the largest difference of a loss after 50 steps in float32 from the same weights, batches and random numbers,\n"
            "beside the largest loss.\n\n"
            "| model | recipe | theirs, float32 | ours, float32 | times | ours, bfloat16 | times | losses apart |\n|---|---|---|---|---|---|---|---|\n")
    results_table.write("authors", "python tests/bench_authors.py", head + "".join(lines))


if __name__ == "__main__":
    main()
