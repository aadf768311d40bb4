"""Our training step against one in the manner of the authors' code:  python tests/bench_authors.py  (into
notebooks/results)

The manner: float32, StarGAN's G(x, c) anew for G's step and its D neither frozen nor spared there, Adam
without fusing, losses read off after every step. The networks, the batches and all random numbers are ours.
Both take turns, step by step, in one process.
"""

import contextlib
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

import results_table

sys.path.insert(0, str(results_table.ROOT))
import lab  # noqa: E402
import pix2pix_cyclegan  # noqa: E402
import stargan  # noqa: E402
from lab import cli  # noqa: E402
from lab.files import read_jsonl  # noqa: E402
from lab.machine import commit, hardware, has_bfloat16, resolve_device  # noqa: E402
from lab.run import Run  # noqa: E402

WARM_UP, CYCLES = 5, 60  # a cycle: the steps of D until G has its turn
COMPARED = 10  # steps after which the losses are compared: later, rounding alone drives GANs apart
MODELS = (
    ("stargan", stargan, {}),
    ("pix2pix", pix2pix_cyclegan, dict(model="pix2pix")),
    ("cyclegan", pix2pix_cyclegan, dict(model="cyclegan")),
)


def adam(cfg, *nets):
    return torch.optim.Adam([p for net in nets for p in net.parameters()], cfg.lr, cfg.betas)


def theirs_of(cfg, nets):
    """The networks on the device."""
    return [net.to(cfg.device) for net in nets]


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
        ((x_real, label_org),) = data.sample(cfg.batch_size)
        label_trg = label_org[torch.randperm(len(label_org))]
        x_fake = G(x_real, label_trg)
        src, cls = D(x_real)
        real, cls_real = (
            -src.mean(),
            F.binary_cross_entropy_with_logits(cls, label_org, reduction="sum") / len(cls),
        )
        fake = D(x_fake.detach())[0].mean()
        alpha = torch.rand(len(x_real), 1, 1, 1, device=x_real.device)
        x_hat = (alpha * x_real + (1 - alpha) * x_fake.detach()).requires_grad_(True)
        out = D(x_hat)[0]
        (slope,) = torch.autograd.grad(out, x_hat, torch.ones_like(out), create_graph=True)
        gp = ((slope.view(len(slope), -1).pow(2).sum(1).sqrt() - 1) ** 2).mean()
        descend(opt_D, real + fake + cfg.lambda_cls * cls_real + cfg.lambda_gp * gp)
        said.update(adv_D=(real + fake).item(), cls_real=cls_real.item(), gp=gp.item())
        if k % cfg.n_critic == 0:
            x_fake = G(x_real, label_trg)
            src, cls = D(x_fake)
            adv, cls_fake = (
                -src.mean(),
                F.binary_cross_entropy_with_logits(cls, label_trg, reduction="sum") / len(cls),
            )
            rec = (x_real - G(x_fake, label_org)).abs().mean()
            descend(opt_G, adv + cfg.lambda_rec * rec + cfg.lambda_cls * cls_fake)
            said.update(adv_G=adv.item(), cls_fake=cls_fake.item(), rec=rec.item())
        return said

    return step


def pix2pix_step(cfg):
    data = pix2pix_cyclegan.make_data(cfg)
    pix2pix_cyclegan.make_data(cfg, test=True)
    G, D = theirs_of(cfg, list(pix2pix_cyclegan.build(cfg).values()))
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
        gan, L1 = score(shown, torch.ones_like(shown)), F.l1_loss(y_fake, y)
        descend(opt_G, gan + cfg.lambda_L1 * L1)
        D.requires_grad_(True)
        return dict(D=L_D.item(), GAN=gan.item(), L1=L1.item())

    return step


def cyclegan_step(cfg):
    data = pix2pix_cyclegan.make_data(cfg)
    pix2pix_cyclegan.make_data(cfg, test=True)
    nets = G, H, D_X, D_Y = theirs_of(cfg, list(pix2pix_cyclegan.build(cfg).values()))
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
        L = dict(
            zip(("GAN_G", "GAN_F"), (F.mse_loss(s, torch.ones_like(s)) for s in scores), strict=True),
            cyc_x=F.l1_loss(x_rec, x),
            cyc_y=F.l1_loss(y_rec, y),
        )
        if cfg.lambda_idt:
            L["idt"] = F.l1_loss(G(y), y) + F.l1_loss(H(x), x)
        weights = {"cyc_x": cfg.lambda_cyc_x, "cyc_y": cfg.lambda_cyc_y, "idt": cfg.lambda_idt}
        descend(opt_G, sum(weights.get(name, 1.0) * value for name, value in L.items()))
        D_X.requires_grad_(True), D_Y.requires_grad_(True)
        opt_D.zero_grad()
        y_pooled, x_pooled = pools[1](y_fake.detach()), pools[0](x_fake.detach())
        said = {name: value.item() for name, value in L.items()} | dict(
            D_Y=judged(D_Y, y, y_pooled), D_X=judged(D_X, x, x_pooled)
        )
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
    """(ms of their step in float32, of ours as in cfg, how many times faster): medians over CYCLES, taking
    turns."""
    step, cycle = STEPS[model](cfg), getattr(cfg, "n_critic", 1)
    wait = torch.cuda.synchronize if cfg.device.startswith("cuda") else lambda: None
    lasted = {"theirs": [], "ours": []}

    @contextlib.contextmanager
    def clock(name):
        wait()
        start = time.perf_counter()
        yield
        wait()
        lasted[name].append(1e3 * (time.perf_counter() - start))

    class InTurns(Run):
        def batches(self, batch_size, until=None):
            for k in range(1, (WARM_UP + CYCLES) * cycle + 1) if until is None else ():
                with clock("theirs"):
                    step(k)
                with clock("ours"):
                    yield k, self.data.sample(batch_size)

        def logs(self, step):
            return False

        samples = logs

    with mock.patch.object(paper, "Run", InTurns):
        paper.train(dataclasses.replace(cfg, run=folder))
    a, b = (torch.tensor(lasted[name]).view(-1, cycle).mean(1)[WARM_UP:] for name in ("theirs", "ours"))
    return a.median().item(), b.median().item(), (a / b).median().item()


def after(paper, cfg, folder, steps):
    """Our losses after `steps` steps of a longer training, in which the learning rate does not fall yet."""
    longer = dict(steps=9 * steps, decay_from=1.0, stop_after=steps, log_every=steps, sample_every=99 * steps)
    paper.train(dataclasses.replace(cfg, run=folder, **longer))
    last = read_jsonl(Path(folder) / "metrics.jsonl")[-1]
    return {k[2:]: v for k, v in last.items() if k.startswith("L_")}


COLUMNS = [
    "model",
    "recipe",
    "theirs, float32",
    "ours, float32",
    "times",
    "ours, bfloat16",
    "times",
    "losses apart",
]
ABOUT = (
    "`python tests/bench_authors.py`, {}, commit {}. Our step against one in the manner of the authors' "
    "code (gradients nobody uses, numbers fetched after every step). ms a step and how many times faster,"
    " medians; the largest difference of a loss after "
    f"{COMPARED} steps in float32 from the same weights, batches and random numbers, beside the largest. "
    "bfloat16 where the machine multiplies it in hardware."
)


def main():
    lab.quiet = True
    rows = []
    for model, paper, more in MODELS:
        settings = cli.recipe(paper, "small", model) | dict(people=40) | more
        settings |= {"copy_steps": 0} if "copy_steps" in settings else {}
        exact = resolve_device(paper.Config(**settings, amp=False))
        with tempfile.TemporaryDirectory() as folder:
            a, b = theirs(model, exact, COMPARED), after(paper, exact, f"{folder}/losses", COMPARED)
            shared = a.keys() & b.keys()
            apart = f"{max(abs(a[k] - b[k]) for k in shared):.1e} of {max(map(abs, a.values())):.2g}"
            ms, mine, times = side_by_side(model, paper, exact, f"{folder}/float32")
            halves = ["", ""]
            if has_bfloat16(exact):
                amp = dataclasses.replace(exact, amp=True)
                _, half, half_times = side_by_side(model, paper, amp, f"{folder}/bfloat16")
                halves = [f"{half:.0f}", f"{half_times:.2f}"]
        rows.append(
            [
                model,
                f"{exact.image_size} px, batch {exact.batch_size}",
                f"{ms:.0f}",
                f"{mine:.0f}",
                f"{times:.2f}",
                *halves,
                apart,
            ]
        )
        print(" | ".join(rows[-1]), flush=True)
    about = ABOUT.format(hardware(exact), commit())
    results_table.write("authors", {"about": about, "columns": COLUMNS, "rows": rows})


if __name__ == "__main__":
    main()
