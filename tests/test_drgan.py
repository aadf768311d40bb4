import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import common
import drgan as paper
from common import UserError
from conftest import blind_judges, in_turn
from drgan import Album, Config, Discriminator, Generator

TINY = dict(paper.SMALL, image_size=32, width=.05, pretrain=0., people=6, copies=2, batch_size=12, steps=4, log_every=1, save_every=2, sample_every=2,
            device="cpu", amp=False)


@pytest.fixture
def tiny(tmp_path, cache, monkeypatch):
    """A configuration that trains in a second, and judges that know nothing."""
    quick(monkeypatch)
    return Config(**TINY, cache=cache, run=str(tmp_path / "run"))


def quick(monkeypatch):
    blind_judges(monkeypatch)
    monkeypatch.setattr(paper, "TEST_PEOPLE", 6)
    monkeypatch.setattr(paper, "TEST_COPIES", 4)


# ------------------------------------------------------------------------------------------------------ losses

def minus_log(*probabilities):
    return -torch.log(torch.tensor(probabilities)).mean().item()


def test_loss_gan_D_is_minus_the_log_likelihoods_of_real_and_drawn():
    real, fake = torch.tensor([[2.], [-1.]]), torch.tensor([[.5], [0.]])
    expected = -(torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean())
    assert paper.loss_gan_D(real, fake).item() == pytest.approx(expected.item())


def test_loss_gan_G_is_the_non_saturating_one():
    fake = torch.tensor([[-8.], [0.]], requires_grad=True)
    loss = paper.loss_gan_G(fake)
    loss.backward()
    assert loss.item() == pytest.approx(-torch.sigmoid(fake.detach()).log().mean().item())
    assert abs(fake.grad[0]) > .49                                       # the gradient is greatest where G is worst


@pytest.mark.parametrize("loss", [paper.loss_id_D, paper.loss_pose_D, paper.loss_id_G, paper.loss_pose_G, paper.loss_softmax])
def test_losses_of_classes_are_softmax_log_likelihoods(loss):
    p = torch.tensor([[.7, .2, .1], [.1, .3, .6]])
    assert loss(p.log() + 5, torch.tensor([0, 1])).item() == pytest.approx(minus_log(.7, .3), abs=1e-6)


def test_every_class_loss_names_its_equation():
    for function, label in ((paper.loss_id_D, "T(5)"), (paper.loss_pose_D, "T(6)"), (paper.loss_id_G, "T(9)"), (paper.loss_pose_G, "T(10)")):
        assert function.__doc__.startswith(f"[{label}]")


def outputs(r, d, p):
    return tuple(torch.tensor(v, requires_grad=True) for v in (r, d, p))


def test_loss_cvpr_D_puts_drawings_into_the_last_of_N_plus_1_classes_and_does_not_ask_their_pose():
    real, fake = outputs([[0.]], [[3., 1.]], [[.5, -.5]]), outputs([[2.]], [[1., 0.]], [[7., -7.]])
    loss = paper.loss_cvpr_D(real, fake, torch.tensor([0]), torch.tensor([1]))
    expected = minus_log(torch.tensor([3., 1., 0.]).softmax(0)[0]) + minus_log(torch.tensor([.5, -.5]).softmax(0)[1])
    expected += minus_log(torch.tensor([1., 0., 2.]).softmax(0)[2])
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert fake[2].grad is None or not fake[2].grad.any()
    assert fake[0].grad.item() < 0 and (fake[1].grad > 0).all()          # "drawn" up, every person down


def test_loss_cvpr_G_asks_for_the_person_and_the_pose_wanted():
    fake = outputs([[2.]], [[1., 0.]], [[.5, -.5]])
    loss = paper.loss_cvpr_G(fake, torch.tensor([1]), torch.tensor([0]))
    expected = minus_log(torch.tensor([1., 0., 2.]).softmax(0)[1]) + minus_log(torch.tensor([.5, -.5]).softmax(0)[0])
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert fake[0].grad.item() > 0                                       # "drawn" down


def test_fuse_by_hand():
    f, w = torch.tensor([[[1., 0.], [3., 4.]]]), torch.tensor([[.25, .75]])
    assert torch.allclose(paper.fuse(f, w), torch.tensor([[2.5, 3.]]), atol=1e-5)


def test_fuse_is_a_mean_whatever_the_scale_of_the_confidences():
    f = torch.randn(3, 5, 7)
    assert torch.allclose(paper.fuse(f, torch.full((3, 5), .01)), f.mean(1), atol=1e-3)
    w = torch.rand(3, 5)
    assert torch.allclose(paper.fuse(f, w), paper.fuse(f, w / 2), atol=1e-4)
    assert torch.allclose(paper.fuse(f, w * torch.eye(5)[2]), f[:, 2], atol=1e-4)          # one alone


def test_dropout_on_confidences_leaves_at_least_one():
    w = torch.rand(500, 4) + .1
    dropped = paper.some_confidences(w, .9)
    assert (dropped > 0).any(1).all() and ((dropped == 0) | (dropped == w)).all()
    assert .6 < (dropped == 0).float().mean() < .75                     # .9 of them, but the last one stays
    assert torch.equal(paper.some_confidences(w, 0.), w)


# ---------------------------------------------------------------------------------------------------- networks

@pytest.mark.parametrize("poses,n,count", [(9, 1, 10_100_928), (9, 6, 10_102_370), (2, 1, 10_020_288), (2, 6, 10_021_730)])
def test_parameter_counts_of_G(poses, n, count):
    assert common.n_parameters(Generator(Config(images_per_subject=n), poses)) == count


@pytest.mark.parametrize("people,poses,count", [(200, 9, 2_929_394), (500, 2, 3_023_447), (10_575, 13, 6_261_053)])
def test_parameter_counts_of_D(people, poses, count):
    assert common.n_parameters(Discriminator(people, poses)) == count


def test_shapes_at_full_size():
    G, D = Generator(Config(images_per_subject=6), 9).eval(), Discriminator(200, 9).eval()
    f, w = G.encode(torch.zeros(2, 3, 96, 96))
    assert f.shape == (2, 320) and w.shape == (2,) and ((0 < w) & (w < 1)).all()
    y = G.decode(f, torch.eye(9)[:2], torch.zeros(2, 50))
    assert y.shape == (2, 3, 96, 96) and y.abs().max() <= 1
    assert [out.shape for out in D(y)] == [(2, 1), (2, 200), (2, 9)]
    assert G.dec.fc(torch.zeros(1, 379)).shape == (1, 320 * 6 * 6)


def test_features_may_be_negative_and_a_confidence_near_0():
    G = Generator(Config(images_per_subject=2, width=.1), 9)
    assert isinstance(G.enc.main[-1], nn.BatchNorm2d)                   # an ELU at the end would keep w above sigmoid(-1)
    with torch.no_grad():
        G.enc.main[-1].bias.fill_(-6.)
    f, w = G.encode(torch.randn(64, 3, 32, 32))
    assert f.max() < -3 and w.max() < .05


def test_D_pools_after_the_ELU_as_the_table_says():
    D, x = Discriminator(5, 9, width=.1).eval(), torch.randn(2, 3, 32, 32)
    maps = D.trunk.main(x)
    expected = D.fc(torch.where(maps > 0, maps, maps.exp() - 1).mean((2, 3)))
    assert torch.allclose(torch.cat(D(x), 1), expected, atol=1e-5)


def test_a_single_image_model_trusts_every_picture():
    assert (Generator(Config(width=.1), 9).encode(torch.randn(3, 3, 32, 32))[1] == 1).all()


# -------------------------------------------------------------------------------------------------------- data

def test_toy_album_is_in_order_and_its_truth_is_true(tiny):
    album = paper.make_data(tiny)[1]
    assert len(album.who) == 6 * 9 * paper.TEST_COPIES and album.poses[album.frontal] == "0"
    assert torch.equal(album.faces.yaw.cpu(), torch.tensor(paper.YAWS, dtype=torch.float32)[album.pose])
    clean = ((album.blur == 0) & (album.cover[:, 2] == 0)).nonzero()[:4, 0]
    shown = paper.pictures(album, clean, tiny)
    true = torch.cat([paper.truth(album, clean[k:k + 1], album.pose[clean[k]], tiny) for k in range(4)])
    assert (shown - true).abs().max() < .01                             # the truth of the picture's own pose is the picture


def test_the_gallery_is_frontal_neutral_and_unspoilt(tiny):
    album = paper.make_data(tiny)[1]
    gallery = paper.gallery_of(album)
    assert (album.pose[gallery] == 4).all() and torch.equal(album.who[gallery], torch.arange(6))
    assert (album.faces.smile[gallery] == 0).all() and (album.blur[gallery] == 0).all() and (album.cover[gallery, 2] == 0).all()


def test_train_and_test_people_differ(tiny):
    train, test = paper.make_data(tiny)
    assert not set(train.people) & set(test.people)
    assert (train.faces.head_width[::18, None] != test.faces.head_width[None, ::9 * paper.TEST_COPIES]).all()


def test_a_batch_holds_n_pictures_of_one_person(tiny):
    cfg = dataclasses.replace(tiny, images_per_subject=3)
    album, _ = paper.make_data(cfg)
    data = paper.Faces(cfg, dataclasses.replace(album, faces=None, bank=(album.who * 9 + album.pose).byte()[:, None, None, None].expand(-1, 3, 34, 34)))
    x, x_seen, y_d, y_p = data.sample(12)
    assert x.shape == x_seen.shape == (4, 3, 3, 32, 32) and y_d.shape == (4,) and y_p.shape == (4, 3)
    code = ((x[:, :, 0, 0, 0] + 1) * 127.5).round().long()              # the picture says whose it is and in which pose
    assert torch.equal(code, y_d[:, None] * 9 + y_p)


def test_the_encoder_sees_spoilt_pictures_and_D_does_not(tiny, monkeypatch):
    seen, build = {}, paper.build

    def spying(*args):
        G, D = build(*args)
        for name, net in (("G", G.enc), ("D", D)):
            net.register_forward_pre_hook(lambda net, args, name=name: seen.setdefault(name, args[0]) is None or None)
        return G, D
    monkeypatch.setattr(paper, "build", spying)
    paper.train(dataclasses.replace(tiny, spoilt=1., steps=1))
    plain = dict(seen)
    seen.clear()
    paper.train(dataclasses.replace(tiny, spoilt=0., steps=1, run=tiny.run + "2"))
    assert torch.equal(plain["D"], seen["D"]) and torch.allclose(seen["G"], seen["D"], atol=1e-3)
    assert (plain["G"] - plain["D"]).abs().flatten(1).amax(1).gt(.1).all()


def test_spoil_blurs_covers_and_leaves_alone():
    x = torch.rand(3, 3, 48, 48) * 2 - 1
    y = paper.spoil(x, torch.tensor([.05, 0., 0.]), torch.tensor([[0., 0., 0.], [.5, .5, .2], [.5, .5, 0.]]))
    assert torch.allclose(y[2], x[2], atol=1e-4)
    assert y[0].std() < .5 * x[0].std() and abs(y[0].mean() - x[0].mean()) < .05
    assert (y[1, :, 20:28, 20:28] == 0).all() and torch.allclose(y[1, :, :10, :10], x[1, :, :10, :10], atol=1e-4)


def test_spoil_is_a_gaussian_of_that_sigma():
    x = torch.zeros(1, 3, 49, 49)
    x[:, :, 24, 24] = 1.                                                 # the answer to a point is the kernel
    y = paper.spoil(x, torch.tensor([.03]), torch.zeros(1, 3))[0, 0].double()
    axis = torch.arange(49, dtype=torch.float64) - 24
    assert y.sum().item() == pytest.approx(1., abs=1e-5)
    for square in (axis ** 2, axis[:, None] ** 2):
        assert ((y * square).sum() ** .5).item() == pytest.approx(.03 * 49, rel=.01)


def test_half_of_the_spoilt_are_blurred_half_covered():
    blur, cover = paper.some_spoilt(4000, .5, torch.Generator().manual_seed(0))
    assert not ((blur > 0) & (cover[:, 2] > 0)).any()
    assert (blur > 0).float().mean().item() == pytest.approx(.25, abs=.03) and (cover[:, 2] > 0).float().mean().item() == pytest.approx(.25, abs=.03)


def picture(path, seed=0, size=(50, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return str(path)


def cfp(root, people=12, fiducials=True, protocol=False):
    """A small CFP in its official layout."""
    for p in range(1, people + 1):
        for kind, n in (("frontal", 4), ("profile", 2)):
            for k in range(1, n + 1):
                picture(root / "Data/Images" / f"{p:03d}" / kind / f"{k:02d}.jpg", 100 * p + 10 * k + n)
                if fiducials:
                    file = root / "Data/Fiducials" / f"{p:03d}" / kind / f"{k:02d}.txt"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text("\n".join(f"{10 + i / 2},{15 + i}" for i in range(30)))
    if protocol:
        folder = root / "Protocol"
        folder.mkdir()
        for letter, kind, n in (("F", "frontal", 4), ("P", "profile", 2)):
            lines = [f"../Data/Images/{p:03d}/{kind}/{k:02d}.jpg" for p in range(1, people + 1) for k in range(1, n + 1)]
            (folder / f"Pair_list_{letter}.txt").write_text("\n".join(f"{k + 1} {line}" for k, line in enumerate(lines)))
        for kind, n in (("FF", 4), ("FP", 2)):
            for fold in range(people // 2):                            # two people a fold
                one, other = 2 * fold, 2 * fold + 1
                (folder / f"Split/{kind}/{fold + 1:02d}").mkdir(parents=True)
                (folder / f"Split/{kind}/{fold + 1:02d}/same.txt").write_text("".join(f"{4 * p + 1},{n * p + 2}\n" for p in (one, other)))
                (folder / f"Split/{kind}/{fold + 1:02d}/diff.txt").write_text(f"{4 * one + 1},{n * other + 1}\n{4 * other + 1},{n * one + 2}\n")
    return root


def test_cfp_as_distributed(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, data=str(cfp(tmp_path / "cfp")))
    found = paper.scan(cfg)
    assert found["poses"] == ("frontal", "profile") and len(found["images"]) == 72 and found["n_test"] == 4
    train, test = paper.make_data(cfg)
    assert train.people[0] == "cfp/001" and test.people == ("cfp/009", "cfp/010", "cfp/011", "cfp/012") and len(train.who) == 48 and len(test.who) == 24
    assert train.bank.shape == (48, 3, 33, 33) and (train.pose[:6].tolist(), train.frontal) == ([0, 0, 0, 0, 1, 1], 0)


def test_held_out_people_of_the_data_sets(tiny):
    sets = ("cfp", 500), ("cfp", 50), ("multipie", 337), ("folders", 10_575), ("cfp", 15), ("multipie", 40)
    assert [paper.held_out(tiny, *one) for one in sets] == [50, 10, 137, 1057, 5, 10]
    assert paper.held_out(dataclasses.replace(tiny, test_people=7), "cfp", 500) == 7


def test_faces_of_cfp_are_cut_by_their_fiducials(tmp_path):
    root = cfp(tmp_path / "cfp", 1)
    image = Image.new("RGB", (100, 80))
    front, side, other = (root / "Data/Images/001" / name for name in ("frontal/01.jpg", "profile/01.jpg", "frontal/99.jpg"))
    low, high = paper.face_square(front, image)                          # points from (10, 15) to (24.5, 44)
    assert ((low + high) / 2).tolist() == pytest.approx([24.5, .55 * 15 + .45 * 44]) and (high - low).tolist() == pytest.approx([1.7 * 29] * 2)
    assert ((lambda b: (b[0] + b[1]) / 2)(paper.face_square(side, image))[0]).item() == pytest.approx((10 + 24.5) / 2)
    low, high = paper.face_square(other, image)                          # no fiducials: the central square
    assert low.tolist() == [9.5, -.5] and high.tolist() == [89.5, 79.5]
    for text in ("1,2\nx,y", "1,2\n3,40", "\n".join(["5,5"] * 30), "\n".join(f"{k},1e9" for k in range(30)), ""):
        (root / "Data/Fiducials/001/frontal/01.txt").write_text(text)
        with pytest.raises(UserError, match="expected 30 lines 'x,y' on the picture of 100 x 80"):
            paper.face_square(front, image)


def test_multipie_by_its_names(tiny, tmp_path):
    for person in range(1, 13):
        for camera in ("051", "190", "110", "080"):
            for light in ("00", "07"):
                picture(tmp_path / "data/session01" / f"{person:03d}_01_01_{camera}_{light}.png", person)
    found = paper.scan(dataclasses.replace(tiny, data=str(tmp_path), test_people=2))
    assert len(found["images"]) == 12 * 3 * 2 and found["poses"] == tuple(map(str, paper.YAWS))          # 110 is 75 degrees: left out
    assert [paper.YAWS[k] for k in found["pose"][:6]] == [-45, -45, 0, 0, 45, 45]
    assert found["images"][2].name == "001_01_01_051_07.png"            # the gallery's light comes first


def test_folders_of_people_with_a_pose_file(tiny, tmp_path):
    lines = []
    for person in range(12):
        for k, yaw in enumerate((-88.2, -7.6, 0, 52.)):
            lines.append(f"{person:07d}/s1/{k:03d}.jpg{(' ', chr(9), ', ')[k % 3]}{yaw}")
            picture(tmp_path / f"{person:07d}/s1/{k:03d}.jpg", person)
    (tmp_path / "poses.txt").write_text("\n".join([*lines, lines[0]]))    # a picture named twice is one picture
    picture(tmp_path / "0000001/s1/extra.jpg")
    cfg = dataclasses.replace(tiny, data=str(tmp_path))
    found = paper.scan(cfg)
    assert len(found["poses"]) == 13 and [found["poses"][k] for k in found["pose"][:4]] == ["-90", "-15", "0", "45"]
    assert found["people"][:2] == ("folders/0000000/s1", "folders/0000001/s1") and len(found["people"]) == 12 and len(found["images"]) == 48
    assert found["notes"]["pictures without a line in poses.txt"] == 1
    assert paper.make_data(cfg)[0].yaw.max() == 90
    (tmp_path / "poses.txt").write_text("\n".join(lines) + "\n0000001/s1/009.jpg 3\n0000001/s1/001.jpg left\n0000001/s1/001.jpg 170")
    assert len(paper.scan(cfg)["bad"]) == 3
    with pytest.raises(UserError, match="009.jpg is not there.*2 more of 51.*--skip-bad"):
        paper.make_data(cfg)
    assert len(paper.make_data(dataclasses.replace(cfg, skip_bad=True))[0].who) == 32


def test_the_gallery_is_the_picture_that_is_turned_least():
    poses = tuple(map(str, range(-90, 91, 15)))
    album = Album(None, torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 5, 1, 7, 6]), ("a", "b"), poses)
    assert paper.gallery_of(album).tolist() == [1, 4]


def test_an_unreadable_picture_or_person_is_left_out_and_the_rest_stays_in_step(tiny, tmp_path):
    root = cfp(tmp_path / "cfp", 16, protocol=True)
    (root / "Data/Images/001/frontal/01.jpg").write_bytes(b"")
    for path in (root / "Data/Images/014").rglob("*.jpg"):
        path.write_bytes(b"")
    cfg = dataclasses.replace(tiny, data=str(root), skip_bad=True)
    _, everyone = paper.make_data(cfg, known=("toy/1",))
    assert len(everyone.people) == 15 and everyone.who.max() == 14 and "cfp/014" not in everyone.people
    for who, path in zip(everyone.who, everyone.paths, strict=True):
        assert everyone.people[who] == "cfp/" + path.parts[-3]
    a, b, same, _ = paper.official_pairs(everyone, root, "FP")
    assert torch.equal(torch.tensor([everyone.paths[i].parts[-3] == everyone.paths[j].parts[-3] for i, j in zip(a, b, strict=True)]), same)
    paper.train(dataclasses.replace(cfg, steps=1))


def test_new_fiducials_are_new_pictures(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, data=str(cfp(tmp_path / "cfp")))
    before = paper.make_data(cfg)[0].bank.clone()
    for path in (tmp_path / "cfp/Data/Fiducials").rglob("*.txt"):
        path.write_text("\n".join(f"{20 + i / 2},{5 + i}" for i in range(30)))
    assert not torch.equal(before, paper.make_data(cfg)[0].bank)


@pytest.mark.parametrize("make,message", [
    (lambda root: picture(root / "a.jpg"), "found 1 pictures, but neither 001/frontal/"),
    (lambda root: (root / "poses.txt").write_text(""), "poses.txt: empty"),
    (lambda root: picture(root / "001/frontal/01.jpg"), "1 people, 0 of them held out; expected at least 2 to train on and 4 to test on"),
    (lambda root: [picture(root / f"{k:03d}/frontal/01.jpg") for k in range(12)], "4 pictures of 4 people to test on; expected .*some with several"),
])
def test_spoilt_data_gives_one_error(tiny, tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        paper.train(dataclasses.replace(tiny, data=str(tmp_path)))
    assert not Path(tiny.run).exists()


def test_people_known_to_the_model_are_never_tested_on(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, data=str(cfp(tmp_path / "cfp")))
    train, _ = paper.make_data(cfg)
    nobody, strangers = paper.make_data(cfg, known=train.people)
    assert nobody is None and not set(strangers.people) & set(train.people)
    assert len(paper.make_data(cfg, known=("folders/0000045",))[1].people) == 12           # trained elsewhere: all are strangers
    inside = dataclasses.replace(cfg, data=cfg.data + "/Data/Images")
    assert paper.make_data(inside)[0].people == train.people            # the same names, wherever --data points


def test_people_of_the_weights_that_a_training_began_with_are_known_too(tiny, tmp_path):
    first = dataclasses.replace(tiny, data=str(cfp(tmp_path / "cfp")), run=str(tmp_path / "first"))
    paper.train(first)
    second = dataclasses.replace(tiny, weights=str(tmp_path / "first/last.pt"), run=str(tmp_path / "second"))
    with pytest.raises(UserError, match="other shape"):                  # two poses there, nine here
        paper.train(second)
    second.data = str(cfp(tmp_path / "other", 40))
    paper.train(second)
    known = common.load_checkpoint(tmp_path / "second/last.pt")["about"]["people"]
    assert set(paper.make_data(first)[0].people) <= set(known)


def test_a_multi_image_model_may_begin_as_a_single_image_one(tiny, tmp_path):
    single = paper.train(dataclasses.replace(tiny, run=str(tmp_path / "single")))
    cfg = dataclasses.replace(tiny, images_per_subject=2, weights=str(tmp_path / "single/last.pt"), lr=0.)
    multi = paper.train(cfg)
    x = torch.randn(5, 3, 32, 32)
    single.eval(), multi.eval()
    same = [k for k, v in single.state_dict().items() if v.dim() and "running" not in k and not torch.equal(v, multi.state_dict()[k][:len(v)])]
    assert same == [] and multi.multi and single.encode(x)[0].shape == multi.encode(x)[0].shape


# ---------------------------------------------------------------------------------------------------- training

def grads(net):
    return sum(p.grad.abs().sum().item() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("head", ["tpami", "cvpr"])
@pytest.mark.parametrize("n", [1, 3])
def test_gradients_reach_exactly_the_networks_they_should(tiny, monkeypatch, head, n):
    cfg, seen, update = dataclasses.replace(tiny, head=head, images_per_subject=n, steps=1), {}, common.Run.update

    def spy(self, name, loss):
        for net in self.nets.values():
            net.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        seen[name] = {k: grads(net) > 0 for k, net in self.nets.items()} | {"enc": grads(self.nets["G"].enc) > 0, "dec": grads(self.nets["G"].dec) > 0}
        update(self, name, loss)
    monkeypatch.setattr(common.Run, "update", spy)
    paper.train(cfg)
    assert seen["D"] == {"D": True, "G": False, "who": False, "balance": False, "enc": False, "dec": False}
    assert seen["G"] == {"D": False, "G": True, "who": False, "balance": False, "enc": True, "dec": True}


def test_drawings_one_for_each_picture_and_one_fused(tiny):
    cfg = dataclasses.replace(tiny, images_per_subject=3)
    G, _ = paper.build(cfg, 6, 9)
    x_hat, c, whose = paper.draws(G, torch.randn(2, 3, 3, 32, 32), 9, cfg)
    assert len(x_hat) == len(c) == 2 * (3 + 1) and whose.tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    codes = torch.cat([paper.draws(G, torch.randn(2, 3, 3, 32, 32), 9, cfg)[1] for _ in range(40)])
    assert set(codes.tolist()) == set(range(9))


def test_the_confidence_learns_through_the_fused_drawing(tiny):
    cfg = dataclasses.replace(tiny, images_per_subject=3, drop=0.)
    G = paper.build(cfg, 6, 9)[0].eval()                                # in training batch norm mixes the pictures of a batch
    x_hat, _, _ = paper.draws(G, torch.randn(4, 3, 3, 32, 32), 9, cfg)
    x_hat[:12].abs().sum().backward(retain_graph=True)
    last = G.enc.main[-2].weight                                        # rows: the features and, last, the confidence
    assert last.grad[-1].abs().sum() == 0                               # single drawings know nothing of it
    x_hat[12:].abs().sum().backward()
    assert last.grad[-1].abs().sum() > 0


def test_without_pose_code_the_decoder_is_not_told(tiny):
    assert (paper.code(torch.tensor([3]), 9, tiny) == torch.eye(9)[3]).all()
    assert not paper.code(torch.tensor([3]), 9, dataclasses.replace(tiny, pose_code=False)).any()


@pytest.mark.parametrize("head,score", [("tpami", 9.), ("cvpr", -30.)])
def test_D_steps_less_often_once_it_is_near_its_optimum_in_every_task(head, score):
    balance, y = paper.Balance(4), torch.arange(3)
    real, fake, lost = ((torch.full((3, 1), r), 10 * torch.eye(3), None) for r in (score, -score, score))
    assert all(balance.D_is_due(step) for step in range(1, 9))
    for step in range(1, 401):
        balance.note(step, real, lost, y, head)
    assert balance.accuracy.tolist() == pytest.approx([1., 0., 1.], abs=.01) and balance.D_is_due(1)     # it knows everybody and is fooled all the same
    for step in range(1, 401):
        balance.note(step, real, fake, y, head)
    assert [balance.D_is_due(step) for step in range(1, 9)] == [False, False, False, True] * 2
    assert torch.equal(balance.state_dict()["accuracy"], balance.accuracy)                 # in the checkpoint


def test_pretraining_teaches_the_encoder_and_D_but_no_decoder(tiny):
    G0, _ = paper.build(tiny, 6, 9)
    torch.manual_seed(tiny.seed)
    before, D0 = (net.state_dict() for net in paper.build(tiny, 6, 9))
    after = paper.train(dataclasses.replace(tiny, pretrain=1.)).state_dict()
    moved = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert moved == {"enc"} and G0.n_f == 16
    D = common.load_checkpoint(Path(tiny.run) / "last.pt")["nets"]["D"]
    assert (D["fc.weight"] != D0["fc.weight"]).any(1).tolist() == [False] + [True] * (len(D["fc.weight"]) - 1)     # who and which pose, not real or drawn


def test_nobody_becomes_a_classifier_again(tiny, tmp_path):
    def logged(run):
        return [("L_softmax" in line, "L_gan" in line, line["health"], "D_pose" in line) for line in common.read_jsonl(Path(run) / "metrics.jsonl")]

    first = dataclasses.replace(tiny, pretrain=.5, sample_every=99)
    paper.train(first)
    assert [line[:2] for line in logged(tiny.run)] == [(True, False)] * 2 + [(False, True)] * 2
    assert all(line[3] for line in logged(tiny.run)) and {line[2] for line in logged(tiny.run)[:2]} == {"ok"}              # nothing is drawn yet
    paper.train(dataclasses.replace(first, steps=8))                   # half of eight would be four
    assert [line[0] for line in logged(tiny.run)] == [True] * 2 + [False] * 6
    paper.train(dataclasses.replace(first, run=str(tmp_path / "on"), weights=str(Path(tiny.run) / "last.pt")))
    assert [line[0] for line in logged(tmp_path / "on")] == [False] * 4


@pytest.mark.parametrize("change", [{}, {"images_per_subject": 3, "head": "cvpr"}, {"pretrain": .375}])
def test_n_plus_n_steps_are_2n_steps(tiny, tmp_path, monkeypatch, change):
    monkeypatch.setattr(paper.Balance, "note", lambda self, step, *_: self.accuracy.fill_(.95 if step > 2 else .1))      # from then on D rests
    cfg = dataclasses.replace(tiny, steps=8, g_steps=3, **change)
    paper.train(dataclasses.replace(cfg, run=str(tmp_path / "whole")))
    paper.train(dataclasses.replace(cfg, stop_after=4))
    paper.train(cfg)
    one, two = (common.load_checkpoint(Path(run) / "last.pt") for run in (tmp_path / "whole", cfg.run))
    for name, state in one["nets"].items():
        assert all(torch.equal(value, two["nets"][name][k]) for k, value in state.items()), name
    for name, state in one["opts"].items():
        for k, values in state["state"].items():
            assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(two["opts"][name]["state"][k][what])) for what, v in values.items()), name
    assert one["nets"]["balance"]["accuracy"].tolist() == pytest.approx([.95] * 3)


@pytest.mark.parametrize("n", [1, 3])
def test_G_is_asked_for_the_person_of_the_input_and_the_pose_of_the_code(tiny, monkeypatch, n):
    seen, sample, draws = {}, paper.Faces.sample, paper.draws
    monkeypatch.setattr(paper.Faces, "sample", lambda self, b: seen.setdefault("batch", sample(self, b)))
    monkeypatch.setattr(paper, "draws", lambda *args: seen.setdefault("drawn", draws(*args)))
    for name in ("loss_id_G", "loss_pose_G", "loss_id_D", "loss_pose_D"):
        monkeypatch.setattr(paper, name, lambda logits, target, name=name: (seen.setdefault(name, target), F.cross_entropy(logits, target))[1])
    paper.train(dataclasses.replace(tiny, images_per_subject=n, steps=1))
    (_, _, y_d, y_p), (_, c, whose) = seen["batch"], seen["drawn"]
    assert torch.equal(seen["loss_pose_G"], c) and torch.equal(seen["loss_id_G"], y_d[whose])
    assert torch.equal(seen["loss_pose_D"], y_p.flatten()) and torch.equal(seen["loss_id_D"], y_d.repeat_interleave(n))


def test_noise_on_all_that_D_sees_fades_to_nothing(tiny, monkeypatch):
    seen, hazy = [], paper.hazy
    monkeypatch.setattr(paper, "hazy", lambda x, std: (seen.append(std), hazy(x, std))[1])
    paper.train(dataclasses.replace(tiny, d_noise=.4, steps=4, g_steps=1))
    assert seen == pytest.approx([.3] * 3 + [.2] * 3 + [.1] * 3 + [0.] * 3)                 # real, drawn, drawn for G
    x = torch.rand(8, 3, 64, 64, requires_grad=True)
    assert hazy(x, 0.) is x and (hazy(x, .3) - x).std().item() == pytest.approx(.3, rel=.02)
    hazy(x, .3).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_nearest_upsampling_is_as_large_and_weaves_no_checkerboard():
    """A flat input: a transposed 3 x 3 convolution of stride 2 adds up other weights at every other pixel, a copied pixel the same ones."""
    nets = {name: paper.Decoder(20, 48, width=.25, upsampling=name) for name in ("transposed", "nearest")}
    assert len({common.n_parameters(net) for net in nets.values()}) == 1
    assert nets["nearest"](torch.rand(2, 12), torch.rand(2, 5), torch.rand(2, 3)).shape == (2, 3, 48, 48)
    uneven = {}
    for name, net in nets.items():
        first = next(k for k, m in enumerate(net.main) if isinstance(m, (torch.nn.ConvTranspose2d, torch.nn.Upsample)))
        y = net.main[first:first + (1 if name == "transposed" else 2)](torch.ones(1, 64, 8, 8))[..., 2:-2, 2:-2]
        uneven[name] = (y - y[..., :1, :1]).abs().max().item()
    assert uneven["nearest"] < 1e-5 < .01 < uneven["transposed"]


def test_a_training_and_its_evaluation_run_on_cuda_and_cpu(tiny, tmp_path, device, monkeypatch):
    blind_judges(monkeypatch, device)
    cfg = dataclasses.replace(tiny, device=device, amp=device == "cuda", images_per_subject=2)
    paper.train(cfg)
    assert paper.evaluate(dataclasses.replace(cfg))["rows"]["6 pictures, 4 spoilt"]
    paper.infer(cfg, [picture(tmp_path / "a.png")], None, None, "")


@pytest.mark.parametrize("change,message", [
    (dict(image_size=40), "--image-size 40: expected a multiple of 16"), (dict(images_per_subject=9), "--batch-size 12: expected at least 18"),
    (dict(load_size=20), "--load-size 20: expected at least --image-size 32"), (dict(drop=1.), "--drop 1.0"),
    (dict(images_per_subject=0), "--images-per-subject 0"), (dict(people=1), "--people 1: expected at least 2"),
])
def test_settings_that_do_not_fit(tiny, change, message):
    with pytest.raises(UserError, match=message):
        paper.train(dataclasses.replace(tiny, **change))


class Painter(nn.Module):
    """A generator with known answers. turn, people: how much of the code and of the input its drawings show."""
    n_f, n_poses, multi = 12, 9, False

    def __init__(self, turn, people):
        super().__init__()
        self.turn, self.people = turn, people

    def encode(self, x):
        return F.adaptive_avg_pool2d(x, 2).flatten(1), torch.ones(len(x))

    def decode(self, f, c, z):
        shown = self.turn * (c.argmax(1) / 4 - 1)[:, None, None, None] + self.people * f[:, :3, None, None]
        return shown.expand(-1, 3, 32, 32)


def test_health_words(tiny):
    album, no = paper.make_data(tiny)[1], (None, None)
    assert paper.report(Painter(.5, 2.), album, tiny, *no)["health"] == "ok"
    assert paper.report(Painter(0., 2.), album, tiny, *no)["health"] == "pose-ignored"
    assert paper.report(Painter(.5, 0.), album, tiny, *no)["health"] == "identity-lost"
    far = outputs([[20.]], [[1., 0.]], [[0.] * 9]), outputs([[-20.]], [[1., 0.]], [[0.] * 9])
    assert paper.report(Painter(.5, 2.), album, tiny, *far)["health"] == "D-won"
    cvpr = dataclasses.replace(tiny, head="cvpr")                        # there the first output is the class "drawn"
    assert paper.report(Painter(.5, 2.), album, cvpr, *far[::-1])["health"] == "D-won"
    assert paper.report(Painter(.5, 2.), album, cvpr, *far)["health"] == "ok"


# -------------------------------------------------------------------------------------------------- evaluation

def test_identify_is_the_nearest_by_cosine():
    gallery, probes = torch.tensor([[1., 0.], [0., 1.]]), torch.tensor([[9., 1.], [.1, .2], [-1., .5]])
    assert paper.identify(gallery, probes).tolist() == [0, 1, 1]


def test_verification_by_hand():
    same = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0]).bool()
    fold = torch.tensor([0] * 4 + [1] * 4)
    for order in (same, ~same):                                          # scores that say nothing are worth nothing, in any order
        blind = paper.verification(torch.zeros(8), order, fold)
        assert (blind["AUC"], blind["EER"]) == (.5, .5)
    perfect = paper.verification(same.float(), same, fold)
    assert (perfect["accuracy"], perfect["std"], perfect["AUC"], perfect["EER"]) == (1., 0., 1., 0.)
    reverse = paper.verification(-same.float(), same, fold)
    assert reverse["AUC"] == 0. and reverse["EER"] == 1.
    score = torch.tensor([.9, .4, .5, .1, .8, .7, .6, .2])              # fold 0's best threshold on fold 1 is .65, fold 1's on fold 0 .7 or .45
    found = paper.verification(score, same, fold)
    assert found["AUC"] == pytest.approx(14 / 16)                        # pairs (same, different) in the right order
    assert found["accuracy"] == pytest.approx(.75)                       # at .65 fold 0 misses one, at .7 (of fold 0) fold 1 none or one


def test_verification_agrees_with_counting():
    g = torch.Generator().manual_seed(0)
    same, fold = torch.rand(300, generator=g) < .5, torch.arange(300) % 5
    score = torch.randn(300, generator=g) + same
    found = paper.verification(score, same, fold)
    assert found["AUC"] == pytest.approx((score[same][:, None] > score[~same][None]).double().mean().item())
    accuracy = []
    for k in range(5):                                                   # every threshold tried
        others = fold != k
        best = max(sorted(score[others].tolist()), key=lambda t: ((score[others] >= t) == same[others]).float().mean().item())
        accuracy.append(((score[~others] >= best) == same[~others]).float().mean().item())
    assert found["accuracy"] == pytest.approx(np.mean(accuracy), abs=.02)
    errors = [((score[same] < t).float().mean().item(), (score[~same] >= t).float().mean().item()) for t in sorted(score.tolist())]
    assert found["EER"] == pytest.approx(sum(min(errors, key=lambda e: abs(e[0] - e[1]))) / 2, abs=.01)


def test_spearman_with_ties():
    assert paper.spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.) and paper.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.)
    assert paper.spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(.9486833)         # as in textbooks: tied values share their mean rank
    assert paper.spearman([1, 1, 1], [1, 2, 3]) == 0.


def test_pose_probe_reads_pose_where_it_is_and_not_where_it_is_not():
    g = torch.Generator().manual_seed(0)
    pose, who = torch.arange(360) % 9, torch.arange(360) // 9
    with_pose = torch.cat([F.one_hot(pose, 9) + .1 * torch.randn(360, 9, generator=g), torch.randn(360, 4, generator=g)], 1)
    assert paper.pose_probe(with_pose, pose, who) > .95
    assert paper.pose_probe(torch.randn(360, 13, generator=g), pose, who) < .3


def album_of(people, frontal, profile):
    """An album without pictures."""
    who = torch.arange(people).repeat_interleave(frontal + profile)
    pose = torch.tensor([0] * frontal + [1] * profile).repeat(people)
    return Album(None, who, pose, tuple(map(str, range(people))), ("frontal", "profile"))


def test_pairs_are_drawn_by_cfps_rule():
    album = album_of(20, 10, 4)
    frontal, profile = album.pose == 0, album.pose == 1
    a, b, same, fold = paper.verification_pairs(album, frontal, profile, 10, torch.Generator().manual_seed(0))
    assert len(a) == 20 * 14 and same.sum() == 140
    assert (album.pose[a] == 0).all() and (album.pose[b] == 1).all()
    assert torch.equal(album.who[a] == album.who[b], same)
    assert (album.who[a] // 2 == fold).all() and (album.who[b] // 2 == fold).all()         # nobody in two folds
    a, b, same, _ = paper.verification_pairs(album, frontal, frontal, 10, torch.Generator().manual_seed(0))
    pairs = {tuple(sorted(p)) for p in zip(a[same].tolist(), b[same].tolist(), strict=True)}
    assert len(pairs) == 140 and (a != b).all()                         # no pair twice, no picture with itself


def test_cfps_own_pairs(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, data=str(cfp(tmp_path / "cfp", protocol=True)), test_people=2)
    (tmp_path / "cfp/Protocol/Split/FP/.DS_Store").write_text("")
    _, everyone = paper.make_data(cfg, known=("toy/1",))
    for kind, second in (("FF", 0), ("FP", 1)):
        a, b, same, fold = paper.official_pairs(everyone, tmp_path / "cfp", kind)
        assert len(a) == 6 * 4 and torch.equal(everyone.who[a] == everyone.who[b], same)
        assert (everyone.pose[a] == 0).all() and (everyone.pose[b] == second).all() and len(fold.unique()) == 6
    held_out = dataclasses.replace(everyone, paths=everyone.paths[-12:])
    assert paper.official_pairs(held_out, tmp_path / "cfp", "FP") is None                  # only one fold of strangers: no threshold from others
    (tmp_path / "cfp/Protocol/Split/FP/01/same.txt").write_text("1;2")
    with pytest.raises(UserError, match="not as CFP distributes it"):
        paper.official_pairs(everyone, tmp_path / "cfp", "FP")


def test_sets_hold_as_many_spoilt_pictures_as_asked(tiny):
    album = paper.make_data(tiny)[1]
    gallery = paper.gallery_of(album)
    sets = paper.sets_of(album, gallery, 6, torch.Generator().manual_seed(0), spoilt=2)
    assert sets.shape == (6 * 20, 6) and (album.who[sets] == album.who[sets[:, :1]]).all() and not torch.isin(sets, gallery).any()
    assert ((~album.clean[sets]).sum(1) == 2).all()
    assert all(len(set(row)) == 6 for row in sets.tolist())


def test_fusion_follows_the_confidence():
    album, gallery = album_of(2, 3, 0), torch.tensor([0, 3])
    f = torch.tensor([[1., 0.], [1., 0.], [-1., 1.2], [0., 1.], [0., 1.], [.1, 1.]])
    w = torch.tensor([1., 1., .01, 1., 1., 1.])                          # one bad picture, and it is known to be bad
    assert paper.fusions(album, f, w, gallery, torch.tensor([[1, 2], [4, 5]])) == {"by confidence": 1., "mean": .5, "best one": 1.}


def test_share_is_the_part_of_the_variance_between_groups():
    f, who = torch.tensor([[0.], [2.], [10.], [12.]]), torch.tensor([7, 7, 9, 9])
    assert paper.share(f, who) == pytest.approx(25 / 26) and paper.share(f, torch.arange(4)) == pytest.approx(1) and paper.share(f, 0 * who) == 0


def test_measures_by_hand(tiny, monkeypatch):
    """Features that name the person, but for the pictures turned by 60 to the left, which look like the next person."""
    album = paper.make_data(tiny)[1]
    shown = (album.who + (album.pose == 0)) % 6
    w = torch.where(album.clean, 1 - album.yaw / 100, .2 - album.blur - album.cover[:, 2] / 10)
    monkeypatch.setattr(paper, "encode_all", lambda G, album, cfg: (F.one_hot(shown, 6).float(), w))
    monkeypatch.setattr(paper, "rotation", lambda *_: ({}, {}))
    G = Painter(1., 1.)
    G.multi = True
    rows = paper.measure(tiny, G, album)
    assert [rows[f"pose {yaw}"]["rank-1"] for yaw in paper.YAWS] == [0.] + [1.] * 8
    assert rows["mean of the poses"]["rank-1"] == pytest.approx(8 / 9) and rows["pose 45"]["confidence"] == pytest.approx(.55)
    assert rows["verification FF"]["accuracy"] == 1. and rows["verification FP"]["accuracy"] < 1.
    assert rows["confidence against"]["yaw"] == pytest.approx(-1.) and rows["confidence against"]["blur"] < -.8 and rows["confidence against"]["cover"] < -.8
    assert rows["6 pictures, 0 spoilt"]["by confidence"] >= rows["6 pictures, 0 spoilt"]["mean"]


def test_measures_of_a_perfect_painter(tiny, monkeypatch):
    """A generator that draws the truth: rotation must say so."""
    album = paper.make_data(tiny)[1]
    asked = []

    class Truth(Painter):
        def decode(self, f, c, z):
            index, pose = asked.pop(0)
            return paper.truth.original(album, index, pose, tiny)
    original = paper.truth
    monkeypatch.setattr(paper, "truth", lambda album, index, pose, cfg: (asked.append((index, pose)), original(album, index, pose, cfg))[1])
    paper.truth.original = original
    f, gallery = torch.randn(len(album.who), 12), paper.gallery_of(album)
    rows, far = paper.rotation(tiny, Truth(1., 1.), album, f, gallery)
    assert all(row["L1"] < 1e-6 and row["SSIM"] > .999 for row in rows.values())
    assert far["L1"] < 1e-6 < .01 < far["copy L1"] and far["copy SSIM"] < .9 and far["who"] == far["truth who"]


def test_evaluate_on_toy_faces_and_on_cfp(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, images_per_subject=2)
    paper.train(cfg)
    rows = paper.evaluate(dataclasses.replace(cfg))["rows"]
    assert {f"pose {yaw}" for yaw in paper.YAWS} | {"mean of the poses", "features", "verification FF", "verification FP", "turned by 30 and more",
            "the input instead", "another true picture", "the true faces", "confidence against", "1 pictures, 1 spoilt", "6 pictures, 4 spoilt"} <= set(rows)
    assert set(rows["6 pictures a person"]) == {"by confidence", "mean", "best one"} and rows["the true faces"]["SSIM"] == pytest.approx(1.)
    assert json.loads((Path(cfg.run) / "evaluation.json").read_text())["rows"] == rows
    real = paper.evaluate(dataclasses.replace(cfg, data=str(cfp(tmp_path / "cfp", protocol=True))))         # trained on other people: all are strangers
    assert "verification FP, CFP's pairs" in real["rows"] and not {"turned by 30 and more", "features"} & set(real["rows"]) and "12 people" in real["notes"]


def test_train_and_evaluate_on_cfp(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, data=str(cfp(tmp_path / "cfp", 24)), test_people=4)
    paper.train(cfg)
    rows = paper.evaluate(dataclasses.replace(cfg, data=""))["rows"]      # the run knows its data
    assert {"pose frontal", "pose profile", "verification FF", "verification FP", "4 pictures a person"} <= set(rows)


def test_infer(tiny, tmp_path, capsys, monkeypatch):
    G = Painter(.8, .2)
    G.multi = True
    monkeypatch.setattr(paper, "trained", lambda cfg: (G, {"poses": list(map(str, paper.YAWS))}))
    a, b, c = (picture(tmp_path / f"{name}.png", k) for k, name in enumerate("abc"))
    paper.infer(tiny, [a, b], None, None, str(tmp_path / "out"))
    assert capsys.readouterr().out.count("50 x 60, central square, confidence 1.") == 2
    with Image.open(tmp_path / "out/a.gif") as gif:
        assert gif.n_frames == 16                                        # there and back
    assert Image.open(tmp_path / "out/a.png").size == (10 * 34 * 3, 3 * 34 * 3 + 14)      # a, b, fused; input and nine poses
    paper.infer(tiny, [a], ["0", "-30"], [b, c], str(tmp_path / "out"))
    assert Image.open(tmp_path / "out/a_to_b.png").size == (3 * 34 * 3, 7 * 34 * 3 + 14)
    with pytest.raises(UserError, match="--pose 31: this model draws -60, -45"):
        paper.infer(tiny, [a], ["31"], None, "")


def test_a_checkpoint_of_another_paper_is_refused(tiny, tmp_path):
    torch.save({"paper": "stargan", "nets": {"G": {}}, "config": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="a checkpoint of stargan, not of drgan"):
        paper.evaluate(dataclasses.replace(tiny, weights=str(tmp_path / "other.pt")))


def test_ablate_runs_every_part_and_judges(tiny, monkeypatch, capsys):
    monkeypatch.setattr(paper, "SEEDS", (0, 1))
    in_turn(monkeypatch)
    paper.ablate(dataclasses.replace(tiny, steps=2))
    report = json.loads((Path(tiny.run) / "ablation.json").read_text())
    assert {c["part"] for c in report["claims"]} == {"pose", "leak", "rotation", "fusion"} and report["verdict"] in ("not reproduced", "partly reproduced")
    assert len(report["runs"]) == 5 * 2 and (Path(tiny.run) / "ablation.png").exists()
    assert "by confidence 1 point better and within 1 where none is spoilt: " in capsys.readouterr().out
    multi, single = (common.load_checkpoint(Path(tiny.run) / f"ablation/{name}-0/last.pt") for name in ("multi", "single"))
    name = "enc.main.0.weight"
    assert (multi["nets"]["G"][name] - single["nets"]["G"][name]).abs().max() < .005 and single["config"]["pretrain"] == 0     # it went on
    assert common.load_checkpoint(Path(tiny.run) / "ablation/classifier-1/last.pt")["config"]["pretrain"] == 1


@pytest.mark.skipif("CFP_DATA" not in os.environ, reason="CFP_DATA names a folder that holds CFP, or a part of it")
def test_the_real_cfp_loads(tiny):
    cfg = dataclasses.replace(tiny, data=os.environ["CFP_DATA"])
    train, test = paper.make_data(cfg)
    assert len(train.who) > 8 * len(train.people) and len(test.people) >= 10
