import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from PIL import Image

import common
import iacyclegan as paper
from conftest import grads, in_turn
from iacyclegan import Config
from lab import UserError, authors, demos, judges, toysets
from lab.bench import measured
from lab.chain import rounds_of
from lab.claims import iacyclegan as claims
from lab.files import load_checkpoint, read_jsonl
from lab.images import padded
from lab.run import Run
from makers import cufs, picture

TINY = dict(paper.SMALL, image_size=32, width=4, d_width=4, residual_blocks=1, people=8, steps=4,
            copy_steps=0, recogniser_steps=2, rounds=1, log_every=1, save_every=2, sample_every=2,
            device="cpu", amp=False)


@pytest.fixture
def tiny(tmp_path, cache, monkeypatch):
    """A configuration that trains in a second, judges that know nothing, and no drawing of losses."""
    quick(monkeypatch)
    monkeypatch.setattr(Run, "plot", lambda self: None)
    return Config(**TINY, cache=cache, run=str(tmp_path / "run"))


def quick(monkeypatch):
    monkeypatch.setattr(judges, "judge", lambda kind, size, seed, *_: (seeded_judge(kind, seed), 1.))
    monkeypatch.setattr(paper, "TEST_PEOPLE", 8)


def seeded_judge(kind, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return judges.Judge(kind).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def once(tmp_path_factory, cache):
    """A folder with CycleGAN and one round, trained once."""
    folder = tmp_path_factory.mktemp("chain") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick(monkeypatch)
        monkeypatch.setattr(Run, "plot", lambda self: None)
        paper.train(Config(**TINY, cache=cache, run=str(folder)))
    return folder


@pytest.fixture
def chain(tiny, once):
    """tiny, with a copy of that training in its folder."""
    shutil.copytree(once, tiny.run)
    return tiny


def pair(cfg):
    return paper.Recogniser(cfg), paper.Recogniser(cfg)


# -------------------------------------------------------------------------------------------- losses

def test_loss_adv_D_by_hand():
    real, fake = torch.full((2, 1, 4, 4), .5), torch.full((2, 1, 4, 4), -.2)
    assert paper.loss_adv_D(real, fake).item() == pytest.approx((.25 + .04) / 2)


def test_loss_adv_G_by_hand():
    assert paper.loss_adv_G(torch.full((2, 1, 4, 4), -.2)).item() == pytest.approx(1.44)


def test_loss_cyc_by_hand():
    x, x_back = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), -.3)
    assert paper.loss_cyc(x, x_back).item() == pytest.approx(.3)


def test_loss_map_leaves_the_target_domain_alone():
    y = torch.rand(2, 3, 4, 4)
    assert paper.loss_map(y, y) == 0 and paper.loss_map(y, y - .25).item() == pytest.approx(.25)


def feature(*values):
    return torch.tensor(values)[None].requires_grad_(True)


def test_loss_idp_is_two_minus_two_cosines_and_reaches_the_fake_alone():
    real, fake = feature(1., 0., 0.), feature(3., 4., 0.)
    loss = paper.loss_idp(real, fake)
    loss.backward()
    assert loss.item() == pytest.approx(2 - 2 * .6) and real.grad is None and fake.grad.abs().sum() > 0
    assert paper.loss_idp(real, feature(7., 0., 0.)).item() == pytest.approx(0., abs=1e-6)


def test_loss_idp_is_the_mean_over_a_batch():
    real, others = feature(1., 0., 0.), [feature(3., 4., 0.), feature(0., 2., 0.)]
    both = paper.loss_idp(real.expand(2, -1), torch.cat(others)).item()
    assert both == pytest.approx(sum(paper.loss_idp(real, one).item() for one in others) / 2)


def test_loss_tri_by_hand():
    f = F.normalize(torch.tensor([[1., 0.], [1., .1], [0., 1.], [.1, 1.]]), dim=1)
    who = torch.tensor([0, 0, 1, 1])
    assert paper.loss_tri(f, who, .2) == 0                             # everybody is apart by more
    mixed = torch.tensor([0, 1, 0, 1])
    d = 2 - 2 * f @ f.T
    every = [max(0, d[a, p] - d[a, n] + .2) for a in range(4) for p in range(4) for n in range(4)
             if a != p and mixed[a] == mixed[p] and mixed[a] != mixed[n]]
    expected = sum(every) / sum(v > 0 for v in every)
    assert paper.loss_tri(f, mixed, .2).item() == pytest.approx(float(expected), abs=1e-5) and expected > 1
    assert paper.loss_tri(7 * f, mixed, .2).item() == pytest.approx(float(expected), abs=1e-5)    # any length


def test_loss_tri_does_not_run_together():
    g = torch.Generator().manual_seed(0)
    f = F.normalize(1 + .05 * torch.randn(24, 8, generator=g), dim=1).requires_grad_(True)    # nearly a point
    who, optimiser = torch.arange(6).repeat(4), torch.optim.Adam([f], .01)
    for _ in range(300):
        loss = paper.loss_tri(F.normalize(f, dim=1), who)
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    u = F.normalize(f, dim=1).detach()
    assert loss.item() < .01 and (u @ u.T).mean() < .9


def test_loss_tri_pulls_a_person_together_and_others_apart():
    f = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    who = torch.arange(4).repeat(3)
    optimiser = torch.optim.Adam([f], .05)
    for _ in range(200):
        loss = paper.loss_tri(F.normalize(f, dim=1), who)
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    assert loss.item() < .01


# ------------------------------------------------------------------------------------------ networks

def test_parameter_counts():
    G_X, G_Y, D_X, D_Y = paper.build(Config())
    counts = [common.n_parameters(net) for net in (G_X, G_Y, D_X, D_Y)]
    assert counts == [11_378_179] * 2 + [2_764_737] * 2 and D_X.receptive_field() == 70


def test_the_medium_generator_is_small():
    G_X, *_ = paper.build(Config(**paper.MEDIUM))
    assert 2 * 2 * common.n_parameters(G_X) < demos.MOST               # bytes of both in half precision


def vgg_state(names):
    """A VGG-16 for 2622 people under one of the usual namings; every layer has a value of its own."""
    net = torchvision.models.vgg16(weights=None, num_classes=2622, init_weights=False)
    state, out = net.state_dict(), {}
    state = {k: torch.full_like(v, n) for n, (k, v) in enumerate(state.items())}
    if names == "torchvision":
        return state, dict(state)
    convs = [f"{block}_{k}" for block, n in enumerate((2, 2, 3, 3, 3), 1) for k in range(1, n + 1)]
    keys = [k for k in state if k.startswith("features") and k.endswith("weight")]
    for conv, key in zip(convs, keys, strict=True):
        for what in ("weight", "bias"):
            theirs = f"conv_{conv}.{what}" if names == "underscored" else f"conv{conv}.{what}"
            out[theirs] = state[key.replace("weight", what)]
    for number, fc in ((0, "fc6"), (3, "fc7"), (6, "fc8")):
        for what in ("weight", "bias"):
            out[f"{fc}.{what}"] = state[f"classifier.{number}.{what}"]
    return state, out


@pytest.mark.parametrize("names", ["caffe", "underscored", "torchvision"])
def test_vgg_face_keys(names):
    expected, state = vgg_state(names)
    found = authors.vgg_face(state)
    assert found.keys() == expected.keys()
    for k, v in expected.items():
        assert found[k].shape == v.shape and found[k].flatten()[0] == v.flatten()[0]


def test_vgg_face_ends_at_fc7():
    with torch.device("meta"):
        net = authors.VGGFace()
        assert net(torch.empty(2, 3, 50, 50)).shape == (2, 4096)
    assert common.n_parameters(net) == 134_260_544


@pytest.mark.parametrize("content", [{"state_dict": 5}, {"a": torch.zeros(1)}], ids=["no dict", "other net"])
def test_a_file_that_is_not_vgg_face_is_refused(tiny, tmp_path, monkeypatch, content):
    vgg16 = torchvision.models.vgg16
    monkeypatch.setattr(torchvision.models, "vgg16", lambda **given: vgg16(init_weights=False, **given))
    torch.save(content, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match="vgg.pth: does not fit"):
        paper.Recogniser(dataclasses.replace(tiny, vgg_face=str(tmp_path / "vgg.pth")))


def test_pictures_reach_vgg_face_as_it_was_trained():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.mean((2, 3))
    with torch.device("meta"):
        phi = authors.VGGFace()
    mean = phi.mean = torch.tensor(phi.MEAN)[:, None, None]
    phi.net = Spy()
    red = torch.tensor([1., -1., -1.])[None, :, None, None].expand(1, 3, 32, 32)
    phi(red)
    phi.bgr = True
    phi(red)
    expected = torch.tensor([255., 0., 0.]) - mean[:, 0, 0]
    assert seen[0].shape == (1, 3, 224, 224)
    assert torch.allclose(seen[0][0, :, 5, 5], expected, atol=1e-3)
    assert torch.allclose(seen[1][0, :, 5, 5], expected.flip(0), atol=1e-3)


def test_a_recogniser_keeps_its_statistics_and_may_learn(tiny):
    phi = paper.Recogniser(tiny)
    assert not any(m.training for m in phi.modules()) and all(p.requires_grad for p in phi.parameters())
    known, x = seeded_judge("identity", 1), torch.rand(2, 3, 32, 32)
    assert torch.allclose(F.normalize(phi(x), dim=1), known(x), atol=1e-6)


# ---------------------------------------------------------------------------------------------- data

def test_scan_tells_pairs_and_memory(tiny, tmp_path):
    found = paper.scan(dataclasses.replace(tiny, data=str(cufs(tmp_path))))
    assert len(found["pairs"]) == 16 and sum(found["test"]) == 8 and not found["bad"]
    assert found["bytes_per_image"] == 3 * paper.load_size(tiny) ** 2


@pytest.mark.parametrize("make,message", [
    (lambda root: [picture(root / "photos/a.jpg"), picture(root / "sketches/b.jpg")],
     "no single partner of the same name"),
])
def test_spoilt_data_gives_one_error(tiny, tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        paper.train(dataclasses.replace(tiny, data=str(tmp_path)))
    assert not Path(tiny.run).exists()


def test_an_unreadable_sketch_takes_its_photo_along(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, data=str(cufs(tmp_path)), skip_bad=True)
    before = paper.make_data(cfg)
    (tmp_path / "train/sketches/M2-001-01-sz1.jpg").write_bytes(b"")
    after = paper.make_data(cfg)
    assert len(after) == 7 and torch.equal(after.X[0], before.X[0])
    kept = [k for k in range(8) if (after.X == before.X[k]).flatten(1).all(1).any()]
    assert len(kept) == 7 and all((after.Y == before.Y[k]).flatten(1).all(1).any() for k in kept)


def test_pairs_of_which_none_is_whole(tiny, tmp_path):
    cufs(tmp_path)
    for side, series in (("photos", "0[0-3]"), ("sketches", "0[4-7]")):
        for path in (tmp_path / "train" / side).glob(f"*-0{series}-*"):
            path.write_bytes(b"")
    with pytest.raises(UserError, match="of none of 8 pairs both pictures can be read"):
        paper.make_data(dataclasses.replace(tiny, data=str(tmp_path), skip_bad=True))


def test_whole_pictures_are_padded_not_squeezed():
    image = Image.new("RGB", (200, 250), "red")
    assert np.asarray(padded(image, 50)).shape == (50, 50, 3)
    half = Image.new("RGB", (200, 250), "black")
    half.paste("white", (100, 0, 200, 250))
    row = np.asarray(padded(half, 250))[125, :, 0]
    assert (row < 128).sum() == 125                                    # the middle stays the middle


def test_a_batch_is_of_the_same_people_cropped_apart(tiny):
    L = paper.load_size(tiny)
    X = torch.arange(8).byte()[:, None, None, None].expand(-1, 3, L, L)
    data = paper.Pairs(tiny, X, X)
    x, y, x_target, y_target = (t[:, 0, 0, 0] for t in data.sample(64))
    assert torch.equal(x, y) and torch.equal(x, x_target) and torch.equal(y, y_target)
    ramp = torch.arange(L).byte().expand(8, 3, L, L)
    x, y, x_target, y_target = paper.Pairs(tiny, ramp, ramp).sample(32)
    assert not torch.equal(x, y)                                       # independent crops and mirroring
    assert torch.equal(y_target, x) and torch.equal(x_target, y)       # but the target's is the drawing's
    shuffled = paper.Pairs(dataclasses.replace(tiny, identities="shuffled"), X, X)
    x, y, x_target, y_target = (t[:, 0, 0, 0] for t in shuffled.sample(64))
    assert torch.equal(x, y) and torch.equal(x_target, y_target) and (x != x_target).float().mean() > .5


def test_the_artist_draws_caricatures_from_memory(tiny):
    train, test = paper.make_data(tiny), paper.make_data(tiny, test=True)
    assert train.true_X is train.X and train.true_Y is train.Y
    assert not torch.equal(test.true_X, test.X) and not torch.equal(test.true_Y, test.Y)
    plain = paper.make_data(dataclasses.replace(tiny, exaggeration=1.), test=True)
    assert torch.equal(plain.X, test.X) and not torch.equal(plain.Y, test.Y)       # the cache knows how far
    assert not any((train.X == picture).flatten(1).all(1).any() for picture in test.X)


# ------------------------------------------------------------------------------------------ training

def test_gradients_reach_exactly_the_networks_they_should(tiny, monkeypatch):
    seen, runs, backward = [], [], torch.Tensor.backward

    class Watched(paper.Run):
        def __init__(self, *args):
            runs.append(self)
            super().__init__(*args)

    def spy(loss):
        for net in runs[-1].nets.values():
            net.zero_grad()
        backward(loss, retain_graph=True)
        seen.append({k for k, net in runs[-1].nets.items() if grads(net)})
    monkeypatch.setattr(paper, "Run", Watched)
    monkeypatch.setattr(torch.Tensor, "backward", spy)
    one, data, phi = dataclasses.replace(tiny, steps=1), paper.make_data(tiny), pair(tiny)
    paper.train_generators(one, phi, data, paper.make_data(tiny, test=True), 1.)
    assert seen == [{"G_X", "G_Y"}, {"D_X", "D_Y"}] and not any(map(grads, phi))


class Known(nn.Module):
    """A recogniser that keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return x.mean((2, 3))


def test_the_first_round_is_CycleGAN_and_the_others_are_not(tiny, monkeypatch):
    calls, loss = [], paper.loss_idp
    monkeypatch.setattr(paper, "loss_idp", lambda *args: calls.append(args) or loss(*args))
    L, one = paper.load_size(tiny), dataclasses.replace(tiny, steps=1)
    X, Y = torch.full((8, 3, L, L), 255).byte(), torch.zeros(8, 3, L, L).byte()  # photos white, others black
    data = paper.Pairs(tiny, X, Y)
    paper.train_generators(dataclasses.replace(one, run=tiny.run + "0"), None, data, data, 0.)
    assert not calls
    phi_X, phi_Y = Known(), Known()
    paper.train_generators(dataclasses.replace(one, run=tiny.run + "1"), (phi_X, phi_Y), data, data, 3.)
    assert len(calls) == 2
    (of_sketch, _), (of_photo, _) = calls
    assert (of_sketch == -1).all() and (of_photo == 1).all()
    assert (phi_Y.seen[-2] == -1).all() and (phi_X.seen[-2] == 1).all()        # each reads its own modality
    logs = [read_jsonl(f"{tiny.run}{r}/metrics.jsonl")[0] for r in (0, 1)]
    assert logs[0]["L_idp_X"] == logs[0]["lambda_idp"] == 0 and logs[1]["L_idp_X"] > 0
    assert logs[1]["lambda_idp"] == 3


def test_the_weight_of_the_identity_loss_makes_it_as_heavy_as_the_cycle_loss(tiny, capsys):
    data, (phi_X, phi_Y) = paper.make_data(tiny), pair(tiny)
    G_X, G_Y, *_ = paper.build(tiny)
    weight = paper.weight_of_identity(tiny, G_X, G_Y, phi_X, phi_Y, data)
    x, y = (data.middle(images, torch.arange(8)) for images in (data.X, data.Y))
    with torch.no_grad():
        cyc = 10 * (paper.loss_cyc(x, G_Y(G_X(x))) + paper.loss_cyc(y, G_X(G_Y(y))))
        idp = paper.loss_idp(phi_Y(y), phi_Y(G_X(x))) + paper.loss_idp(phi_X(x), phi_X(G_Y(y)))
    assert weight * idp.item() == pytest.approx(cyc.item(), rel=1e-4)
    assert f"lambda_idp {weight:.3g}" in capsys.readouterr().out
    seven = dataclasses.replace(tiny, lambda_idp=7.)
    assert paper.weight_of_identity(seven, G_X, G_Y, phi_X, phi_Y, data) == 7.


def test_every_round_has_the_weight_that_was_found_after_round_0(chain):
    paper.train(dataclasses.replace(chain, rounds=2))
    logs = [read_jsonl(Path(chain.run) / f"round{r}/metrics.jsonl") for r in (1, 2)]
    assert len({line["lambda_idp"] for log in logs for line in log}) == 1 and logs[0][0]["lambda_idp"] > 0


def test_copying_comes_first_in_every_round(tiny):
    paper.train(dataclasses.replace(tiny, copy_steps=2))
    for r in range(2):
        lines = read_jsonl(Path(tiny.run) / f"round{r}/metrics.jsonl")
        assert ["L_copy" in line for line in lines] == [True, True, False, False]


def test_toy_people_are_alike_in_what_no_pencil_shows(tiny):
    photos, sketches = {}, {}
    for alike in (True, False):
        cfg = dataclasses.replace(tiny, variety=0. if alike else 1.)
        one, _ = toysets.sittings(cfg, 6, 1)
        assert (one.skin_rgb.std(0).max() < 1e-6) == alike and one.jaw.std() > 0 < one.hair.std()
        data = paper.make_data(cfg)
        photos[alike], sketches[alike] = data.X, data.Y
    assert not torch.equal(photos[True], photos[False])
    assert (sketches[True].float() - sketches[False].float()).abs().mean() < 8           # of 255


def test_rounds_leave_checkpoints_and_tuned_recognisers(chain):
    paper.train(dataclasses.replace(chain, rounds=2))                  # one more is no other run
    assert rounds_of(chain) == [0, 1, 2]
    states = [load_checkpoint(Path(chain.run) / f"round{r}/recognisers.pt")["nets"] for r in range(3)]
    untuned, key = paper.Recogniser(chain).state_dict(), "net.fc.weight"
    for name in ("phi_X", "phi_Y"):
        assert not torch.equal(states[0][name][key], untuned[key])
        assert not torch.equal(states[0][name][key], states[1][name][key])         # they go on
    assert not torch.equal(states[0]["phi_X"][key], states[0]["phi_Y"][key])       # one for each modality
    with pytest.raises(UserError, match="round0 was trained for 4 steps, now 6"):
        paper.train(dataclasses.replace(chain, steps=6))
    paper.train(dataclasses.replace(chain, fresh=True))
    assert rounds_of(chain) == [0, 1]                                  # nothing of the old run is left
    with pytest.raises(UserError, match="--weights: every round starts from scratch"):
        paper.train(dataclasses.replace(chain, weights="x.pt"))


def test_tuning_sees_real_and_generated_pictures_of_the_right_modality(tiny, monkeypatch):
    L = paper.load_size(tiny)
    X, Y = torch.full((8, 3, L, L), 255).byte(), torch.zeros(8, 3, L, L).byte()  # photos white, others black
    seen, forward = [], paper.Recogniser.forward

    def spy(self, x):
        seen.append(x[:, 0, 0, 0].unique().tolist())
        return forward(self, x)
    monkeypatch.setattr(paper.Recogniser, "forward", spy)
    G = [lambda x: torch.full_like(x, -.5), lambda x: torch.full_like(x, .5)]      # drawn sketches and photos
    one = dataclasses.replace(tiny, recogniser_steps=1)
    paper.tune(one, pair(tiny), paper.Pairs(tiny, X, Y), G)
    assert seen == [[.5, 1.], [-1., -.5]]
    assert (Path(tiny.run) / "recognisers.pt").exists()


@pytest.mark.parametrize("patch", [16, 34, 70])
def test_a_score_of_D_sees_patch_px(tiny, patch):
    for D in paper.build(dataclasses.replace(tiny, patch=patch))[2:]:
        assert D.receptive_field() == patch


def test_noise_between_the_generators_is_in_the_way_back_alone(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(paper, "add_noise", lambda x, std: (seen.append((x, std)), x)[1])
    paper.train(dataclasses.replace(tiny, steps=1, copy_steps=0, rounds=0, noise=.1))
    assert [std for _, std in seen] == [.1, .1] and all(x.requires_grad for x, _ in seen)


def test_a_shorter_first_round_copies_for_a_shorter_time(tiny):
    whole = dataclasses.replace(tiny, steps=100, copy_steps=20, first=.1)
    rounds = [paper.of_round(whole, r) for r in (0, 1)]
    assert [(one.steps, one.copy_steps) for one in rounds] == [(10, 2), (100, 20)]


def test_tuning_leaves_the_recognisers_of_before_alone(tiny):
    phi = pair(tiny)
    before = [net.state_dict()["net.fc.weight"].clone() for net in phi]
    after = paper.tune(tiny, phi, paper.make_data(tiny), None)
    for net, tuned, weight in zip(phi, after, before, strict=True):
        assert torch.equal(net.state_dict()["net.fc.weight"], weight)
        assert not torch.equal(tuned.state_dict()["net.fc.weight"], weight)


def test_warm_recognisers_are_tuned_before_the_first_round(tiny):
    paper.train(dataclasses.replace(tiny, rounds=0, warm_recogniser=True))
    warm, later = (load_checkpoint(Path(tiny.run) / name / "recognisers.pt")["nets"]["phi_X"]["net.fc.weight"]
                   for name in ("roundwarm", "round0"))
    assert not torch.equal(warm, later) and not torch.equal(warm, paper.Recogniser(tiny).net.fc.weight)


@pytest.mark.parametrize("other", [dict(tuned=False), dict(warm_recogniser=True), dict(recogniser_steps=3)],
                         ids=str)
def test_recognisers_made_in_another_way_are_refused(chain, other):
    with pytest.raises(UserError, match=f"made with another {next(iter(other))} "):
        paper.train(dataclasses.replace(chain, **other))
    paper.train(dataclasses.replace(chain, rounds=0, steps=1, fresh=True, **other))


@pytest.mark.parametrize("r", [0, 1])
def test_n_plus_n_steps_are_2n_steps_over_rounds(tiny, once, r):
    if r == 0:
        paper.train(dataclasses.replace(tiny, stop_after=2))
        assert not (Path(tiny.run) / "round0/recognisers.pt").exists()  # not tuned on half a training
    else:
        G, data = paper.train(dataclasses.replace(tiny, rounds=0)), paper.make_data(tiny)
        phi = paper.load_recognisers(tiny, Path(tiny.run) / "round0/recognisers.pt")
        half = dataclasses.replace(paper.of_round(tiny, 1), stop_after=2)
        weight = paper.weight_of_identity(tiny, *G, *phi, data)
        paper.train_generators(half, phi, data, paper.make_data(tiny, test=True), weight)
    paper.train(tiny)
    for k in range(2):
        for file in ("last.pt", "recognisers.pt"):
            one, two = (load_checkpoint(Path(run) / f"round{k}" / file) for run in (once, tiny.run))
            for name, state in one["nets"].items():
                for key, value in state.items():
                    assert torch.equal(value, two["nets"][name][key]), (k, file, name)


def test_a_training_runs_on_cuda_and_cpu(tiny, device):
    paper.train(dataclasses.replace(tiny, device=device, amp=device == "cuda"))


def test_a_bench_measures_a_round_with_identity_loss(tiny, monkeypatch):
    calls = []
    loss = paper.loss_idp
    monkeypatch.setattr(paper, "loss_idp", lambda *args: calls.append(args) or loss(*args))
    run = measured(paper, tiny)
    assert len(calls) > 2 * run.timed and run.laps.keys() == {"data", "G", "D", "rest"}
    assert not Path(tiny.run).exists()


@pytest.mark.parametrize("change,message", [
    (dict(image_size=30), "--image-size 30"), (dict(people=0), "--people 0"),
    (dict(batch_size=60), "--pool-size 50"), (dict(epochs=0, steps=0), "--epochs 0"),
])
def test_settings_that_do_not_fit(tiny, change, message):
    with pytest.raises(UserError, match=message):
        paper.train(dataclasses.replace(tiny, **change))


def test_health_words(tiny):
    x, y = shown = paper.fixed_batch(paper.make_data(tiny, test=True), 8)

    def nothing(x):
        return x.new_zeros(len(x), 1, 1, 1)

    def word(G_X, G_Y, D=nothing):
        return paper.health(G_X, G_Y, D, D, shown)["health"]
    assert word(lambda x: -x, lambda y: -y) == "ok"
    assert word(lambda x: x, lambda y: -y) == "copying" and word(lambda x: -x, lambda y: y) == "copying"
    assert word(lambda x: 0 * x, lambda y: -y) == "collapsed"
    real = torch.cat([x, y]).mean((1, 2, 3))

    def D(p):
        return 2. * torch.isin(p.mean((1, 2, 3)), real)[:, None, None, None].float()
    assert word(lambda x: -x, lambda y: -y, D) == "D-won"


# ---------------------------------------------------------------------------------------- evaluation

def test_recognised_counts_ranks():
    gallery = torch.eye(4)
    assert claims.recognised(gallery, torch.full((4, 4), float("nan")), 4) == 0.
    probes = torch.tensor([[1., .1, 0, 0], [1., .9, 0, 0], [.9, .8, .7, .1], [0, 0, 0, 1.]])
    assert claims.recognised(gallery, probes) == .5 and claims.recognised(gallery, probes, 2) == .75
    assert claims.recognised(gallery, probes, 3) == 1.


def test_measure_of_true_pictures_is_perfect_in_likeness(tiny):
    data = paper.make_data(tiny, test=True)
    found = claims.measure(tiny, None, pair(tiny), data)
    for what in ("sketch", "photo"):
        assert found[f"{what} SSIM"] == pytest.approx(1., abs=1e-4)
        assert found[f"{what} FSIM"] == pytest.approx(1., abs=1e-3) and found[f"{what} L1"] == 0
    copies = claims.measure(tiny, (lambda x: x, lambda y: y), pair(tiny), data)
    assert copies["sketch SSIM"] < .9 and copies["sketch SSIM inner"] < .95 and copies["sketch L1"] > .05


def test_each_modality_is_read_by_its_own_recogniser(tiny, monkeypatch):
    L = paper.load_size(tiny)
    X, Y = torch.full((8, 3, L, L), 255).byte(), torch.zeros(8, 3, L, L).byte()  # photos white, others black
    seen = {}

    class Spy(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            seen.setdefault(self.name, set()).update(x.unique().tolist())
            return x.mean((2, 3))
    monkeypatch.setattr(judges, "judge", lambda kind, *_: (Spy(kind), 1.))
    monkeypatch.setattr(paper, "Recogniser", lambda cfg: Spy("untuned"))
    G = (lambda x: torch.full_like(x, -.5), lambda y: torch.full_like(y, .5))
    claims.measure(tiny, G, (Spy("phi_X"), Spy("phi_Y")), paper.Pairs(tiny, X, Y))
    assert seen["phi_X"] == {1., .5} and seen["phi_Y"] == seen["sketch"] == {-1., -.5}
    assert {round(v, 5) for v in seen["identity"]} == {1., .5}         # also shown grey


def test_drawings_of_a_round_without_recognisers_are_read_by_those_before(chain, capsys):
    (Path(chain.run) / "round1/recognisers.pt").unlink()
    phi, before = (claims.recognisers_after(paper.of_round(chain, r)) for r in (1, 0))
    for one, two in zip(phi, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    said = capsys.readouterr().out
    assert "holds no recognisers tuned after it; its drawings are read by those of " in said


def test_evaluate_has_a_row_for_each_round(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, data=str(cufs(tmp_path / "cufs")))
    paper.train(cfg)
    rows = claims.evaluate(dataclasses.replace(tiny))["rows"]          # the run knows its data
    assert list(rows) == ["CycleGAN", "round 1"]
    assert "sketch rank-1 own" in rows["round 1"] and "sketch rank-1 other" not in rows["round 1"]
    assert json.loads((Path(tiny.run) / "evaluation.json").read_text())["rows"] == rows
    with pytest.raises(UserError, match="has no round 7, only 0, 1"):
        paper.load(dataclasses.replace(tiny), 7)
    with pytest.raises(UserError, match="no such training"):
        claims.evaluate(dataclasses.replace(tiny, run=str(tmp_path / "nowhere")))


def test_infer_both_ways(tiny, tmp_path, monkeypatch):
    G = (lambda x: torch.full_like(x, -1.), lambda x: torch.full_like(x, 1.))
    monkeypatch.setattr(paper, "load", lambda cfg, r: (G, tiny))
    file, out = picture(tmp_path / "in/a.jpg", size=(30, 40)), tmp_path / "out"
    picture(tmp_path / "in/b.png", size=(60, 20))
    for backward, shade in ((False, 0), (True, 255)):
        paper.infer(tiny, [file, str(tmp_path / "in")], backward, None, str(out))
        with Image.open(out / "a.png") as image:                       # the input's shape, training's scale
            assert image.size == (27, 36) and image.getextrema() == ((shade, shade),) * 3
    assert Image.open(out / "b.png").size == (36, 12)
    assert (out / "a_1.png").exists() and (out / "b_sheet.png").exists()


def test_infer_with_a_file_of_weights(chain, tmp_path):
    weights = f"{chain.run}/round0/last.pt"
    cfg = dataclasses.replace(chain, run=str(tmp_path / "elsewhere"), weights=weights, width=9)
    paper.infer(cfg, [picture(tmp_path / "a.png")], False, None, "")
    assert (tmp_path / "elsewhere/inferred/a.png").exists()
    with pytest.raises(UserError, match="holds the generators of one round"):
        paper.infer(cfg, [picture(tmp_path / "a.png")], False, 0, "")
    afresh = dataclasses.replace(cfg, run=str(tmp_path / "no folder yet"))
    assert list(claims.evaluate(afresh)["rows"]) == ["weights", "the true pictures"]
    assert (tmp_path / "no folder yet/evaluation.png").exists()
    claims.evaluate(dataclasses.replace(chain))
    rows = json.loads((Path(chain.run) / "evaluation.json").read_text())["rows"]
    assert list(rows) == ["CycleGAN", "round 1", "the true pictures"]
    sheet = Image.open(Path(chain.run) / "evaluation.png")             # eight columns of six pictures
    scale = 128 // chain.image_size
    assert sheet.width == 8 * scale * (chain.image_size + 2) and sheet.height > 6 * scale * chain.image_size


@pytest.mark.slow
def test_ablate_runs_every_chain_and_judges(tiny, monkeypatch, capsys):
    monkeypatch.setattr("lab.claims.SEEDS", (0, 1))
    in_turn(monkeypatch)
    claims.ablate(dataclasses.replace(tiny, steps=2))
    report = json.loads((Path(tiny.run) / "ablation.json").read_text())
    assert {c["part"] for c in report["claims"]} == {"identity", "rounds", "pictures", "poor"}
    assert len(report["runs"]) == 6 * 2
    files = sorted(Path(tiny.run).glob("ablation/*-0/round0/last.pt"))
    first = [load_checkpoint(p)["nets"]["G_X"] for p in files if "poor" not in str(p)]
    assert len(first) == 5                                             # one CycleGAN begins them all
    assert all(torch.equal(value, one[k]) for one in first for k, value in first[0].items())
    assert "with shuffled identities no gain: " in capsys.readouterr().out
    claims.ablate(dataclasses.replace(tiny, steps=2, part="poor"))     # goes on from what is trained
    report = json.loads((Path(tiny.run) / "ablation_poor.json").read_text())
    assert [c["part"] for c in report["claims"]] == ["poor"] and len(report["runs"]) == 3 * 2


REAL = "CUFS_DATA names a folder with photos/ and sketches/, or train/ and test/ of them"


@pytest.mark.skipif("CUFS_DATA" not in os.environ, reason=REAL)
def test_the_real_cufs_loads(tiny):
    cfg = dataclasses.replace(tiny, data=os.environ["CUFS_DATA"])
    assert len(paper.make_data(cfg)) > 50 < len(paper.make_data(cfg, test=True))
