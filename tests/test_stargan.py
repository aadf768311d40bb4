import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image

import common
import stargan as star
from conftest import blind_judges, grads, in_turn
from lab import UserError, authors, labels, toyfaces, toysets
from lab.claims import stargan as claims
from lab.files import load_checkpoint, load_weights, read_json, read_jsonl
from lab.images import to_uint8
from lab.run import Run, frozen
from makers import celeba, classes
from stargan import Config, Discriminator, Generator

TINY = dict(
    star.SMALL,
    image_size=32,
    width=4,
    residual_blocks=1,
    d_width=4,
    d_layers=3,
    batch_size=4,
    people=16,
    studio=2,
    steps=4,
    n_critic=2,
    copy_steps=0,
    log_every=1,
    save_every=2,
    sample_every=2,
    device="cpu",
    amp=False,
)


@pytest.fixture
def tiny(tmp_path, cache, monkeypatch):
    """A configuration that trains in a second, and judges that know nothing."""
    quick(monkeypatch)
    return Config(**TINY, cache=cache, run=str(tmp_path / "run"))


def quick(monkeypatch):
    blind_judges(monkeypatch)
    monkeypatch.setattr(star, "TEST_PEOPLE", {"attributes": 8, "expressions": 2})
    monkeypatch.setattr(claims, "CLASSIFIER_PEOPLE", {"attributes": 8, "expressions": 2})
    monkeypatch.setattr(claims, "CLASSIFIER_STEPS", 2)


# ------------------------------------------------------------------------------------------------------
# losses


def test_loss_adv_D_is_minus_the_difference_of_means():
    assert star.loss_adv_D(torch.tensor([[3.0, 1.0]]), torch.tensor([[-1.0], [2.0]])).item() == pytest.approx(
        0.5 - 2.0
    )


def test_loss_adv_G_falls_when_the_score_rises():
    score = torch.tensor([[1.0, 3.0]], requires_grad=True)
    loss = star.loss_adv_G(score)
    loss.backward()
    assert loss.item() == -2.0 and (score.grad == -0.5).all()


class Linear(nn.Module):
    """D with a known gradient: patch scores w_p . x, and a class head."""

    def __init__(self, w):
        super().__init__()
        # [patches, 3, S, S]
        self.w = nn.Parameter(w)

    def forward(self, x):
        return (x[:, None] * self.w).sum((2, 3, 4)), x.mean((2, 3))


def test_loss_gp_by_hand_one_norm_a_picture_on_the_sum_of_scores():
    w = torch.zeros(2, 3, 4, 4)
    # the sum's gradient has norm 5
    w[0, 0, 0, 0], w[1, 1, 2, 2] = 3.0, 4.0
    D = Linear(w)
    assert star.loss_gp(D, torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)).item() == pytest.approx(16.0)
    assert star.loss_gp(
        Linear(w / 5), torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    ).item() == pytest.approx(0.0, abs=1e-6)


def test_loss_gp_draws_one_alpha_a_picture_and_reaches_D_only():
    seen = []

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            seen.append(x.detach())
            return (self.k * x**2).sum((1, 2, 3)), None

    D, real, fake = Square(), torch.ones(64, 3, 4, 4), torch.zeros(64, 3, 4, 4, requires_grad=True)
    star.loss_gp(D, real, fake).backward()
    alpha = seen[0]
    # constant in a picture, different between them
    assert (alpha == alpha[:, :1, :1, :1]).all() and len(alpha[:, 0, 0, 0].unique()) == 64
    assert fake.grad is None and D.k.grad.item() != 0
    assert alpha.min() < 0.1 and alpha.max() > 0.9


def test_loss_cls_real_of_attributes_is_summed_over_attributes_and_divided_by_the_batch():
    logits, label = torch.tensor([[2.0, -1.0], [0.0, 0.5]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    p = torch.sigmoid(logits)
    expected = -(label * p.log() + (1 - label) * (1 - p).log()).sum() / 2
    assert star.loss_cls_real(logits, label, False).item() == pytest.approx(expected.item())


def test_loss_cls_fake_of_classes_is_softmax():
    logits, label = (
        torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.5, 1.0]]),
        torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    )
    expected = -(logits.softmax(1) * label).sum(1).log().mean()
    assert star.loss_cls_fake(logits, label, True).item() == pytest.approx(expected.item())
    assert star.loss_cls_fake(100 * label, label, True).item() == pytest.approx(0.0)


def test_loss_rec_is_the_mean_absolute_difference():
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    b[0, 0, 0, 0], b[1, 2, 3, 3] = -2.0, 1.0
    assert star.loss_rec(a, b).item() == pytest.approx(3 / 96) and star.loss_rec(b, b) == 0


class Add(nn.Module):
    """A toy generator with a known answer: adds the mean of the label, times a parameter."""

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(1.0))

    def forward(self, x, c):
        return x + self.k * c.mean(1)[:, None, None, None]


def test_loss_triple_compares_two_routes_and_reaches_both():
    G, x = Add(), torch.randn(2, 3, 4, 4)
    c, c_n = torch.full((2, 5), 0.3), torch.full((2, 5), 0.2)
    # .3 + .2 against .2
    loss = star.loss_triple(G(G(x, c), c_n), G(x, c_n))
    assert loss.item() == pytest.approx(0.3)
    loss.backward()
    # (.3 + .2) - .2: both routes count
    assert G.k.grad.item() == pytest.approx(0.3)


# ------------------------------------------------------------------------------------------------------
# labels


def test_unified_label_with_one_set_is_the_label():
    label = torch.rand(3, 5)
    assert torch.equal(star.unified_label(label, 0, (5,)), label)


def test_unified_label_puts_zeros_for_the_unknown_and_a_mask_behind():
    a, b = torch.ones(2, 5), torch.eye(8)[:2]
    assert star.unified_label(a, 0, (5, 8)).tolist() == [[1.0] * 5 + [0.0] * 8 + [1.0, 0.0]] * 2
    joined = star.unified_label(b, 1, (5, 8))
    assert (
        joined.shape == (2, 15)
        and torch.equal(joined[:, 5:13], b)
        and joined[:, :5].sum() == 0
        and joined[:, 13:].tolist() == [[0.0, 1.0]] * 2
    )


def test_targets_set_hair_exclusively_and_flip_the_rest():
    names = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Beard", "Young")
    # black and young; grey with a beard
    label = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0, 0.0]])
    columns = {
        name: (wanted.tolist(), changes.tolist())
        for name, wanted, changes in star.targets(label, names, False)
    }
    assert columns["Blond_Hair"] == ([[0, 1, 0, 0, 1], [0, 1, 0, 1, 0]], [True, True])
    assert columns["Black_Hair"][1] == [False, True]
    assert columns["Beard"] == ([[1, 0, 0, 1, 1], [0, 0, 0, 0, 0]], [True, True])
    assert columns["Young"][0] == [[1, 0, 0, 0, 0], [0, 0, 0, 1, 1]]
    # never two hair colours
    for name in names[:3]:
        assert all(sum(row[:3]) == 1 for row in columns[name][0])


def test_targets_of_classes_are_one_hot():
    columns = star.targets(torch.eye(3), ("angry", "happy", "sad"), True)
    assert [wanted.tolist() for _, wanted, _ in columns] == [[row] * 3 for row in torch.eye(3).tolist()]
    assert columns[1][2].tolist() == [True, False, True]


def test_training_targets_are_the_batch_own_labels_in_another_order(tiny, monkeypatch):
    asked, given = [], []
    forward, sample = Generator.forward, star.Faces.sample
    monkeypatch.setattr(Generator, "forward", lambda self, x, c: asked.append(c) or forward(self, x, c))
    monkeypatch.setattr(star.Faces, "sample", lambda self, n: given.append(sample(self, n)) or given[-1])
    monkeypatch.setattr(star, "health", lambda *_: {})
    monkeypatch.setattr(star, "sample_grid", lambda *_: Image.new("RGB", (1, 1)))
    star.train(dataclasses.replace(tiny, steps=3, n_critic=10))
    # one pass of G a step of D
    for c, [(_, label)] in zip(asked, given, strict=True):
        assert sorted(c.tolist()) == sorted(label.tolist()) and c[:, :3].sum(1).max() <= 1


def test_counterfactual_changes_what_it_says_where_it_says():
    faces = toyfaces.sample(6, 1)
    on = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    changed = toysets.counterfactual(faces, "Beard", on)
    assert ((changed.beard > 0) == (on > 0)).all() and torch.equal(changed.hair, faces.hair)
    assert (toysets.counterfactual(faces, "Blond_Hair", on).hair == 1).all() and (
        toysets.counterfactual(faces, "happy", on).smile == 1
    ).all()


SETS = [(("Black_Hair", "Blond_Hair", "Brown_Hair", "Beard", "Young"), False), (("angry", "happy"), True)]


KNOWN = [torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0]]), torch.zeros(1, 2)]


@pytest.mark.parametrize(
    "text, row, d",
    [
        ("Blond_Hair", [0, 1, 0, 0, 1], 0),
        ("not-Young", [1, 0, 0, 0, 0], 0),
        ("Beard", [1, 0, 0, 1, 1], 0),
        ("not-Black_Hair", [0, 0, 0, 0, 1], 0),
        ("happy", [0, 1], 1),
    ],
)
def test_wishes(text, row, d):
    home, wanted = labels.wish(text, KNOWN, SETS)
    assert wanted.tolist() == [row] and home == d and KNOWN[0].tolist() == [[1, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("Green_Hair", "knows Black_Hair"),
        ("not-Green_Hair", "unknown label"),
        ("not-happy", "exactly one of angry, happy"),
    ],
)
def test_impossible_wishes(text, message):
    with pytest.raises(UserError, match=message):
        labels.wish(text, KNOWN, SETS)


def test_a_class_called_not_something_can_be_asked_for():
    sets = [(("not-smiling", "smiling"), True)]
    assert labels.wish("not-smiling", [torch.tensor([[0.0, 1.0]])], sets)[1].tolist() == [[1, 0]]


def test_a_lone_hair_colour_is_read_as_any_attribute():
    logits = torch.tensor([[-5., 1.], [5., -1.]])
    assert labels.read(logits, ("Blond_Hair", "Young"), False).tolist() == [[0, 1], [1, 0]]
    assert labels.read(logits, ("Blond_Hair", "Black_Hair"), False).tolist() == [[0, 1], [1, 0]]
    assert labels.read(-logits.abs(), ("Blond_Hair", "Black_Hair"), False).tolist() == [[0, 1], [0, 1]]
    assert labels.read(logits[:, :1], ("happy",), True).tolist() == [[1], [1]]      # no other class


# ----------------------------------------------------------------------------------------------------
# networks


def test_parameter_counts_of_the_authors_networks():
    assert [common.n_parameters(Generator(n)) for n in (5, 8, 15)] == [8_430_528, 8_439_936, 8_461_888]
    assert [common.n_parameters(Discriminator(n)) for n in (5, 8, 13)] == [44_762_048, 44_786_624, 44_827_584]
    assert common.n_parameters(Discriminator(5, 256)) == 44_884_928
    G, D = star.build(Config(), (5,))
    assert common.n_parameters(G) + common.n_parameters(D) == 53_192_576 and D.receptive_field() == 318
    G, D = star.build(Config(), (5, 8))
    # no mask in D's output
    assert common.n_parameters(G) == 8_461_888 and common.n_parameters(D) == 44_827_584


def test_discriminator_shapes():
    src, cls = Discriminator(5, 128, 4)(torch.zeros(2, 3, 128, 128))
    assert src.shape == (2, 1, 2, 2) and cls.shape == (2, 5)
    src, cls = Discriminator(5, 64, 4, 5)(torch.zeros(2, 3, 64, 64))
    assert src.shape == (2, 1, 2, 2) and cls.shape == (2, 5)


def test_label_planes_are_seen_through_zero_padding_only():
    """A constant plane adds a constant to each feature map, and instance norm takes it away; only the zeros
    at the border tell."""
    x, one, other = (
        torch.rand(1, 3, 64, 64) * 2 - 1,
        torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]),
        torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0]]),
    )
    change = {}
    for mode in ("zeros", "reflect"):
        torch.manual_seed(0)
        G = Generator(5, 16, 2)
        for layer in G.modules():
            if isinstance(layer, nn.Conv2d):
                layer.padding_mode = mode
        with torch.no_grad():
            change[mode] = (G(x, one) - G(x, other)).abs().max().item()
    assert change["zeros"] > 0.01 and change["reflect"] < 1e-4, change


def test_train_and_eval_mode_agree():
    G, x, c = Generator(5, 4, 1), torch.rand(2, 3, 32, 32), torch.rand(2, 5)
    with torch.no_grad():
        for _ in range(3):
            a = G.train()(torch.rand(2, 3, 32, 32), c)
        a = G(x, c)
        assert torch.equal(a, G.eval()(x, c)) and not [k for k in G.state_dict() if "running" in k]


def authors_names(G, D):
    """Our weights under the authors' names, with the running statistics that theirs drag along."""
    theirs_G = {k.replace(".body.", ".main."): v for k, v in G.state_dict().items()}
    theirs_G |= {"main.1.running_mean": torch.zeros(4), "main.1.num_batches_tracked": torch.tensor(0)}
    rename = {"trunk.": "main.", "head.": "conv1.", "cls.": "conv2."}
    return theirs_G, {
        next(new + k[len(old) :] for old, new in rename.items() if k.startswith(old)): v
        for k, v in D.state_dict().items()
    }


def test_authors_key_names_are_mapped():
    G, D = Generator(5, 4, 2), Discriminator(5, 64, 4, 4)
    theirs_G, theirs_D = authors_names(G, D)
    assert {"main.0.weight", "main.9.main.0.weight"} <= theirs_G.keys() and {
        "main.0.bias",
        "conv1.weight",
        "conv2.weight",
    } <= theirs_D.keys()
    load_weights(Generator(5, 4, 2), authors.stargan_G(theirs_G), "theirs")
    load_weights(Discriminator(5, 64, 4, 4), authors.stargan_D(theirs_D), "theirs")


@pytest.mark.skipif(
    "PARITY_DATA" not in os.environ,
    reason="set PARITY_DATA to a folder with the authors' networks as numbers",
)
def test_outputs_equal_the_authors_networks():
    data = torch.load(Path(os.environ["PARITY_DATA"]) / "official_networks_tiny.pt", weights_only=True)
    theirs, about = data["stargan_G"], data["stargan_G"]["about"]
    G = Generator(about["c_dim"], about["conv_dim"], about["repeat_num"])
    load_weights(G, authors.stargan_G(theirs["state_dict"]), "parity")
    with torch.no_grad():
        assert torch.allclose(G(*theirs["inputs"]), theirs["outputs"][0], atol=1e-5)
    theirs, about = data["stargan_D"], data["stargan_D"]["about"]
    D = Discriminator(about["c_dim"], about["image_size"], about["conv_dim"], about["repeat_num"])
    load_weights(D, authors.stargan_D(theirs["state_dict"]), "parity")
    with torch.no_grad():
        for mine, its in zip(D(*theirs["inputs"]), theirs["outputs"], strict=True):
            assert torch.allclose(mine, its.reshape(mine.shape), atol=1e-5)


# --------------------------------------------------------------------------------------------------------
# data


def test_toy_sets_know_nothing_of_each_other(tiny):
    data = star.make_data(dataclasses.replace(tiny, toy="both"))
    (x, attributes), (y, classes) = data.sample(6)
    assert x.shape == y.shape == (6, 3, 32, 32) and data.sizes == (5, 8) and len(data) == 16 + 2 * 8
    assert (
        data.sets[0].names == ("Black_Hair", "Blond_Hair", "Brown_Hair", "Beard", "Young")
        and data.sets[1].names == toysets.EXPRESSIONS
    )
    assert (classes.sum(1) == 1).all() and (attributes[:, :3].sum(1) <= 1).all()
    again = star.make_data(dataclasses.replace(tiny, toy="both")).sample(6)
    # the seed decides
    assert torch.equal(again[0][0], x) and torch.equal(again[1][1], classes)


def test_train_and_test_people_differ(tiny):
    train, test = star.make_data(tiny).sets[0], star.make_data(tiny, test=True).sets[0]
    assert not any((train.images == picture).flatten(1).all(1).any() for picture in test.images)


def test_without_variety_nothing_but_the_faces_tells_the_toy_sets_apart(tiny):
    for variety in (0.0, 1.0):
        cfg = dataclasses.replace(tiny, variety=variety)
        wild, studio = (make(cfg, 8, 5)[1] for make in (toysets.wild, toysets.studio))
        for name in ("background", "light", "light_strength"):
            a, b = getattr(wild, name), getattr(studio, name)
            assert torch.allclose(a, a[:1].expand_as(a)) == (variety == 0) and torch.allclose(
                b, b[:1].expand_as(b)
            )
            assert torch.allclose(a[:1], b[:1]) == (variety == 0)
        assert wild.lip_alpha.any() == (variety > 0)


def test_people_without_variety_wear_make_up_only_where_it_is_an_attribute(tiny):
    cfg = dataclasses.replace(tiny, variety=0.0, attributes=("Makeup", "Young"))
    _, faces, labels = toysets.wild(cfg, 40, 5)
    assert torch.equal(faces.lip_alpha > 0, labels[:, 0] > 0) and 5 < labels[:, 0].sum() < 35


def test_toy_labels_tell_the_truth(tiny):
    s = star.make_data(tiny).sets[0]
    names = [toyfaces.ATTRIBUTES.index(n) for n in s.names]
    assert torch.equal(s.labels, toyfaces.attributes(s.faces)[:, names])
    assert ((s.faces.age < 0.31) | (s.faces.age > 1.29)).all()
    # and a label that is set or taken away can be read back
    for name in s.names:
        yes, no = (
            toysets.counterfactual(s.faces, name, torch.full((len(s.faces),), on)) for on in (1.0, 0.0)
        )
        k = toyfaces.ATTRIBUTES.index(name)
        assert toyfaces.attributes(yes)[:, k].all()
        if name not in toysets.HAIR:
            assert not toyfaces.attributes(no)[:, k].any()


def test_toy_hair_is_grey_by_age_unless_grey_is_asked_for(tiny):
    for names, grey in ((("Black_Hair", "Young"), False), (("Gray_Hair", "Young"), True)):
        faces = toysets.wild(dataclasses.replace(tiny, attributes=names), 200, 5)[1]
        assert (faces.hair == 3).any() == grey


def test_celeba_as_distributed(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, data=(str(celeba(tmp_path / "Celeb A 脸")[0]),), test_images=3)
    s = star.make_data(cfg).sets[0]
    assert len(s.labels) == 37 and s.images.shape[1:] == (3, 32, 32)
    # the white above and below is cut off
    assert not (s.images[:, :, 0] == 255).all(1).any()


def test_some_classes_only(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, data=(str(classes(tmp_path / "faces")),), classes=("neutral", "angry"))
    assert star.scan(cfg)["names"] == ("angry", "neutral") and len(star.scan(cfg)["images"]) == 40


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda rows, pictures: (pictures / "000005.jpg").unlink(), "000005.jpg is not among"),
        (lambda rows, pictures: cut(pictures / "000006.jpg"), "000006.jpg: not a readable"),
        (lambda rows, pictures: rows.unlink(), "only one folder of pictures.*list_attr_celeba.txt"),
    ],
)
def test_spoilt_data_gives_one_error_before_anything_is_written(tiny, tmp_path, spoil, message):
    root, _ = celeba(tmp_path / "c")
    spoil(root / "list_attr_celeba.txt", root / "img_align_celeba")
    with pytest.raises(UserError, match=message):
        star.train(dataclasses.replace(tiny, data=(str(root),)))
    assert not Path(tiny.run).exists()


def test_skip_bad_goes_on(tiny, tmp_path):
    root, _ = celeba(tmp_path / "c")
    (root / "img_align_celeba" / "000005.jpg").unlink()
    (root / "img_align_celeba" / "000006.jpg").write_bytes(b"")
    cfg = dataclasses.replace(tiny, data=(str(root),), skip_bad=True)
    assert len(star.make_data(cfg)) + len(star.make_data(cfg, test=True)) == 38


def test_two_real_sets_train_jointly_and_are_evaluated(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, data=(str(celeba(tmp_path / "c")[0]), str(classes(tmp_path / "r"))))
    G = star.train(cfg)
    assert G.main[0].in_channels == 3 + 5 + 3 + 2
    result = claims.evaluate(cfg)
    assert {"Blond_Hair", "happy", "across: angry", "across: all targets (angry happy ...)"} <= result[
        "rows"
    ].keys() and "back" in result["rows"]["happy"]
    with pytest.raises(UserError, match="trained on 2 data sets.*in the same order"):
        claims.evaluate(dataclasses.replace(cfg, data=cfg.data[:1]))
    with pytest.raises(UserError, match="both have the label"):
        star.make_data(dataclasses.replace(cfg, data=cfg.data[:1] * 2))
    with pytest.raises(UserError, match="given 3 times"):
        star.make_data(dataclasses.replace(cfg, data=cfg.data + cfg.data[:1]))


# -------------------------------------------------------------------------------------------------- the
# training


def test_gradients_reach_exactly_the_networks_they_should(tiny):
    data = star.make_data(tiny)
    G, D = star.build(tiny, data.sizes)
    x, label = data.sample(4)[0]
    c = label.flip(0)
    fake = G(x, c)
    for loss in (
        star.loss_adv_D(D(x)[0], D(fake.detach())[0]),
        star.loss_gp(D, x, fake),
        star.loss_cls_real(D(x)[1], label, False),
    ):
        D.zero_grad()
        loss.backward()
        assert grads(D) > 0 and grads(G) == 0
    D.zero_grad()
    with frozen(D):
        src, cls = D(fake)
        for loss in (
            star.loss_adv_G(src),
            star.loss_cls_fake(cls, c, False),
            star.loss_rec(x, G(fake, label)),
            star.loss_triple(G(fake, label), G(x, label)),
        ):
            G.zero_grad()
            loss.backward(retain_graph=True)
            assert grads(G) > 0 and grads(D) == 0


def test_Ds_class_head_learns_from_real_pictures_only(tiny, monkeypatch):
    """Whatever G paints, the first step leaves the class head with the same weights."""
    heads = []
    forward = Generator.forward
    for k in (1.0, -1.0):

        def paint(self, x, c, k=k):
            return forward(self, x, c) * 0 + k

        monkeypatch.setattr(Generator, "forward", paint)
        cfg = dataclasses.replace(tiny, lambda_gp=0.0, stop_after=1, run=f"{tiny.run}{k}")
        star.train(cfg)
        saved = load_checkpoint(Path(cfg.run) / "last.pt")["nets"]["D"]
        heads.append((saved["cls.weight"], saved["head.weight"]))
    monkeypatch.undo()
    start = Discriminator(5, 32, 4, 3).state_dict()["cls.weight"]
    assert (
        heads[0][0].shape == start.shape
        and torch.equal(heads[0][0], heads[1][0])
        and not torch.equal(heads[0][1], heads[1][1])
    )


@pytest.fixture
def updates(monkeypatch):
    """The order in which optimisers step, as a list of "D" and "G"."""
    calls, init = [], Run.__init__

    def noted(self, *args, **kwargs):
        init(self, *args, **kwargs)
        for name, optimiser in self.opts.items():
            optimiser.register_step_post_hook(lambda *_, name=name: calls.append(name))

    monkeypatch.setattr(Run, "__init__", noted)
    return calls


def test_n_critic_counts_steps_of_D(tiny, updates):
    star.train(dataclasses.replace(tiny, steps=6, n_critic=3))
    assert "".join(updates) == "DDDGDDDG"


def test_joint_training_alternates_the_sets(tiny, updates):
    star.train(dataclasses.replace(tiny, toy="both", steps=2, n_critic=2))
    assert "".join(updates) == "DDDGDG"


def test_copying_comes_first_and_is_a_phase_of_its_own(tiny, updates):
    cfg = dataclasses.replace(tiny, steps=5, copy_steps=3, sample_every=100)
    star.train(cfg)
    # step 4 is G's turn, too
    assert "".join(updates) == "GGGDGD"
    lines = read_jsonl(Path(cfg.run) / "metrics.jsonl")
    assert ["L_copy" in line and "L_D" not in line for line in lines] == [True] * 3 + [False] * 2


def test_learning_rate_falls_to_zero_after_the_last_step(tiny):
    star.train(dataclasses.replace(tiny, decay_from=0.5))
    saved = load_checkpoint(Path(tiny.run) / "last.pt")
    # 1, 1, 2/3, 1/3, and then 0
    assert saved["opts"]["G"]["param_groups"][0]["lr"] == pytest.approx(tiny.lr / 3)
    assert saved["about"] == [[["Black_Hair", "Blond_Hair", "Brown_Hair", "Beard", "Young"], False]]


def test_copying_has_a_weight_of_its_own(tiny, tmp_path):
    """Without the reconstruction loss G still learns to copy first, as in the ablation."""
    runs, tiny = {}, dataclasses.replace(tiny, copy_steps=4)
    for lambda_rec in (0.0, 10.0):
        cfg = dataclasses.replace(tiny, lambda_rec=lambda_rec, run=str(tmp_path / str(lambda_rec)))
        runs[lambda_rec] = star.train(cfg).state_dict()
    torch.manual_seed(tiny.seed)
    fresh = star.build(tiny, [5])[0].state_dict()
    assert all(torch.equal(runs[0.0][k], runs[10.0][k]) for k in fresh)
    assert not torch.equal(runs[0.0]["main.0.weight"], fresh["main.0.weight"])


@pytest.mark.parametrize(
    "change",
    [{}, {"toy": "both"}, {"lambda_triple": 10.0, "copy_steps": 3}, {"toy": "expressions", "amp": True}],
)
def test_n_plus_n_steps_are_2n_steps(tiny, tmp_path, change):
    tiny = dataclasses.replace(tiny, log_every=4, sample_every=4)
    whole = star.train(dataclasses.replace(tiny, run=str(tmp_path / "a"), **change)).state_dict()
    cfg = dataclasses.replace(tiny, run=str(tmp_path / "b"), **change)
    star.train(dataclasses.replace(cfg, stop_after=2))
    again = star.train(cfg).state_dict()
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_a_run_on_other_labels_is_another_run(tiny, tmp_path):
    root = classes(tmp_path / "r")
    cfg = dataclasses.replace(tiny, data=(str(root),), stop_after=2)
    star.train(cfg)
    for part in ("train", "test"):
        (root / part / "angry").rename(root / part / "bored")
    with pytest.raises(UserError, match="data set or loss network .was .*angry.*now .*bored"):
        star.train(cfg)


def test_a_training_runs_on_cuda_and_cpu(tiny, device):
    cfg = dataclasses.replace(tiny, device=device, steps=20, log_every=10, sample_every=20)
    star.train(cfg)
    lines = read_jsonl(Path(cfg.run) / "metrics.jsonl")
    assert all(np.isfinite(v) for line in lines for k, v in line.items() if k != "health" and v is not None)
    with Image.open(Path(cfg.run) / "samples" / "0000020.png") as sheet:
        assert sheet.width > 7 * 32


def test_health_words(tiny):
    held_out = star.make_data(tiny, test=True)
    shown, planes = star.fixed_batch(held_out), torch.arange(1.0, 6) / 10
    good = lambda x, c: x + (c @ planes)[:, None, None, None]  # noqa: E731
    assert star.health(lambda x, c: x, shown)["health"] == "copying"
    assert star.health(lambda x, c: -x, shown)["health"] == "label-ignored"
    found = star.health(good, shown)
    assert found["health"] == "ok" and found["copy"] > 0
    x, c_org, columns = shown
    assert len(columns) == 5 and x.shape == (6, 3, 32, 32) and c_org.shape == (6, 5)
    truth = {tuple(c.flatten().tolist()): true for _, c, true in columns}
    assert star.health(lambda x, c: truth.get(tuple(c.flatten().tolist()), x), shown)["error"] == 0


# --------------------------------------------------------------------------------------- evaluation,
# inference


def test_evaluate_of_a_copy_is_as_bad_as_copying(tiny, monkeypatch):
    star.train(dataclasses.replace(tiny, steps=1))
    monkeypatch.setattr(Generator, "forward", lambda self, x, c: x)
    result = claims.evaluate(tiny)
    rows = result["rows"]
    assert (
        rows["all targets"] == pytest.approx(rows["copy the input"]) and rows["the true pictures"]["L1"] == 0
    )
    assert rows["all targets"]["L1 outside"] == 0 and rows["all targets"]["identity"] == pytest.approx(1)
    assert {"Blond_Hair", "Young"} <= rows.keys() and (Path(tiny.run) / "evaluation.json").exists()


def test_several_attributes_at_a_time_are_those_of_table_2():
    names = ("Black_Hair", "Blond_Hair", "Beard", "Young")
    label = torch.tensor([[1., 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1]])  # the third has grey hair
    columns = {name: (wanted.tolist(), changed.tolist())
               for name, wanted, changed in claims.several(label, names)}
    assert list(columns) == ["hair + Beard", "hair + Young", "Beard + Young", "hair + Beard + Young"]
    assert columns["hair + Beard"] == ([[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1]], [True, True, False])
    assert columns["Beard + Young"] == ([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]], [True] * 3)
    assert claims.several(label[:, 2:3], names[2:3]) == []


def test_what_is_asked_together_errs_if_any_of_it_is_not_read():
    names = ("Black_Hair", "Blond_Hair", "Beard", "Young")
    label, wanted = torch.tensor([[1., 0, 0, 1]] * 4), torch.tensor([[0., 1, 1, 1]] * 4)
    shown = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 0]])
    found = claims.read((lambda y: 2. * shown - 1, names, 0.), torch.zeros(4), label, wanted, names, False)
    assert found["error"].tolist() == [0, 1, 0, 0]                     # an old colour may stay
    assert found["others"].tolist() == [0, 0, 0, 1]
    found = claims.read((lambda y: 2. * shown - 1, names, 0.), torch.zeros(4), label, 1 - label, names, False)
    assert "others" not in found


def test_measure_with_the_wrong_mask_flips_the_mask_and_nothing_else(tiny):
    data, seen = star.make_data(dataclasses.replace(tiny, toy="both"), test=True), []
    jury = (
        (lambda x: x.mean((2, 3)), 1.0),
        [
            (lambda x: x.mean((2, 3)), ("a",), 0.0),
            (lambda x: x.mean((2, 3)).repeat(1, 3), toysets.EXPRESSIONS, 0.0),
        ],
    )

    def G(x, c):
        seen.append(c)
        return x

    right = claims.measure(tiny, G, data, jury, 0, 1)
    wrong = claims.measure(tiny, G, data, jury, 0, 1, wrong_mask=True)
    half = len(seen) // 2
    for a, b in zip(seen[:half], seen[half:], strict=True):
        assert (
            torch.equal(a[:, :13], b[:, :13])
            and a[0, 13:].tolist() == [0, 1]
            and b[0, 13:].tolist() == [1, 0]
        )
    assert right == wrong and set(right["truth"]) == set(toysets.EXPRESSIONS)


def test_a_pair_is_read_by_the_reader_of_all_expressions(tiny):
    cfg = dataclasses.replace(tiny, toy="expressions", classes=("neutral", "happy"))
    data = star.make_data(cfg, test=True)
    _, names, _ = claims.classifier(cfg, data, 0)
    assert names == toysets.EXPRESSIONS and data.sets[0].names == ("happy", "neutral")

    def always(name):
        def reader(x):
            return torch.eye(8)[[toysets.EXPRESSIONS.index(name)] * len(x)]

        return reader

    for name, error in (("happy", 0.0), ("sad", 1.0)):
        found = claims.measure(
            cfg, lambda x, c: x, data, ((lambda x: x.mean((2, 3)), 1.0), [(always(name), names, 0.0)]), 0, 0
        )
        # from neutral, to the other
        assert found["G"].keys() == {"happy"} and found["G"]["happy"]["error"] == error


@pytest.mark.slow
def test_the_classifier_learns(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "CLASSIFIER_STEPS", 20)
    monkeypatch.setattr(claims, "CLASSIFIER_PEOPLE", {"attributes": 200})
    monkeypatch.setattr(star, "TEST_PEOPLE", {"attributes": 60})
    cfg = dataclasses.replace(tiny, attributes=("Black_Hair", "Blond_Hair"))
    cfg.cache = str(tmp_path)
    net, names, error = claims.classifier(cfg, star.make_data(cfg, test=True), 0)
    # a third have each colour
    assert error < 0.25 and not net.training and names == cfg.attributes
    # from the cache
    assert claims.classifier(cfg, star.make_data(cfg, test=True), 0)[2] == error
    (kept,) = tmp_path.glob("stargan-classifier-*")
    kept.write_bytes(kept.read_bytes()[:999])
    # damaged: made anew
    assert claims.classifier(cfg, star.make_data(cfg, test=True), 0)[2] == error


def test_progressive_compares_with_the_true_person(tiny, monkeypatch):
    """A generator that paints the truth of one label has no direct error where only that label changed."""
    data = star.make_data(dataclasses.replace(tiny, attributes=("Beard",)), test=True)
    # there and back: the person as before
    found = claims.progressive(tiny, lambda x, c: x, data, passes=2)
    assert found["direct"] == pytest.approx(0, abs=0.01) and found["excess"] == pytest.approx(0, abs=1e-7)
    assert claims.progressive(tiny, lambda x, c: x, data, passes=1)["direct"] > 0.003


def photo(folder, name="me.png", mode="RGB", size=(90, 70)):
    Image.fromarray(to_uint8(toyfaces.render(toyfaces.sample(1, 3), 96))[0].permute(1, 2, 0).numpy()).convert(
        mode
    ).resize(size).save(folder / name)
    return str(folder / name)


def test_infer_on_any_photo(tiny, tmp_path, capsys):
    star.train(tiny)
    for mode in ("RGB", "L", "RGBA"):
        star.infer(
            tiny, [photo(tmp_path, mode=mode)], ["Blond_Hair", "not-Young"], None, str(tmp_path / "out")
        )
        with Image.open(tmp_path / "out" / "me.png") as sheet:
            assert sheet.width == 4 * (32 + 2) * 4
        out = capsys.readouterr().out
        assert "90 x 70, central square of 70 px" in out and "read by D as" in out
    star.infer(tiny, [photo(tmp_path)], None, ["Black_Hair", "Young"], str(tmp_path / "out"))
    assert "given as Black_Hair Young" in capsys.readouterr().out
    star.infer(tiny, [photo(tmp_path)], None, [], str(tmp_path / "out"))
    assert "none of the labels" in capsys.readouterr().out
    for source, message in (
        (["Green_Hair"], "--source Green_Hair: unknown"),
        (["Black_Hair", "Blond_Hair"], "only one of"),
    ):
        with pytest.raises(UserError, match=message):
            star.infer(tiny, [photo(tmp_path)], None, source, str(tmp_path / "out"))


@pytest.mark.parametrize("size, width", [(128, 8), (256, 4)])
def test_infer_with_the_authors_weights(tiny, tmp_path, capsys, size, width):
    theirs_G, theirs_D = authors_names(Generator(5, 4, 2), Discriminator(5, size, width))
    torch.save(theirs_G, tmp_path / "200000-G.ckpt")
    cfg = dataclasses.replace(tiny, attributes=Config.attributes, weights=str(tmp_path / "200000-G.ckpt"))
    with pytest.raises(UserError, match="give --source"):
        star.infer(cfg, [photo(tmp_path)], None, None, str(tmp_path / "out"))
    star.infer(cfg, [photo(tmp_path)], None, ["Male"], str(tmp_path / "out"))
    torch.save(theirs_D, tmp_path / "200000-D.ckpt")
    star.infer(cfg, [photo(tmp_path)], ["Blond_Hair"], None, str(tmp_path / "out"))
    out = capsys.readouterr().out
    assert "read by D as" in out and f"resized to {size}" in out
    with pytest.raises(UserError, match="a generator of 5 labels; give their names"):
        star.infer(
            dataclasses.replace(cfg, attributes=("Male",)),
            [photo(tmp_path)],
            None,
            None,
            str(tmp_path / "out"),
        )


@pytest.mark.slow
def test_ablate_runs_every_part_and_judges(tiny, monkeypatch, capsys):
    in_turn(monkeypatch)
    monkeypatch.setattr("lab.claims.SEEDS", (0, 1))
    reader = lambda x: x.mean((2, 3)).repeat(1, 3)[:, :8]  # noqa: E731
    readers = {
        "attributes": (lambda x: reader(x)[:, :5], Config.attributes, 0.5),
        "expressions": (reader, toysets.EXPRESSIONS, 0.5),
    }

    def judges_of(cfg, data):
        kinds = ["expressions" if s.exclusive else "attributes" for s in data.sets]
        return (lambda x: x.mean((2, 3)), 1.0), [readers[kind] for kind in kinds]

    monkeypatch.setattr(claims, "judges_of", judges_of)
    monkeypatch.setattr(Run, "plot", lambda self: None)
    # what --toy says does not matter
    tiny = dataclasses.replace(tiny, toy="both", log_every=4, save_every=4, sample_every=4)
    claims.ablate(tiny)
    result = read_json(Path(tiny.run) / "ablation.json")
    assert (
        result["verdict"] in ("reproduced", "partly reproduced", "not reproduced")
        and len(result["claims"]) == 3
        and len(result["criteria"]) == 8
    )
    assert {
        "across: joint, wrong mask, mean",
        "five edits, with triple, mean",
    } <= result["rows"].keys()
    # all done: only measured again
    claims.ablate(dataclasses.replace(tiny, part="joint"))
    again = read_json(Path(tiny.run) / "ablation_joint.json")
    assert (
        len(again["claims"]) == 1
        and again["rows"].items() <= result["rows"].items()
        and (Path(tiny.run) / "ablation.png").exists()
    )
    with pytest.raises(UserError, match="was trained for 4 steps, now 6"):
        claims.ablate(dataclasses.replace(tiny, part="joint", steps=6))
