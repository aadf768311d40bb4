import pytest
import torch

from common import FLIP_68
from lab import toyfaces as toy
from lab.run import Settings
from lab.toyfaces import REGIONS


def mask(face, size, *names):
    labels = toy.regions(face, size)
    return torch.stack([labels == REGIONS.index(name) for name in names]).any(0)


def test_same_seed_same_faces_on_every_device(device):
    a, b = toy.sample(3, 5), toy.sample(3, 5, device)
    assert all(torch.equal(getattr(a, f), getattr(b, f).cpu()) for f in vars(a))
    assert torch.allclose(toy.render(a, 32), toy.render(b, 32).cpu(), atol=2e-2)
    assert not torch.equal(toy.sample(3, 6).skin_rgb, a.skin_rgb)


def test_alike_moves_fields_towards_usual_values():
    faces = toy.sample(9, 3)
    half = faces.alike(0.5, skin_rgb=[0.8, 0.6, 0.4], background=1.0)
    assert torch.allclose(
        half.skin_rgb, (faces.skin_rgb + torch.tensor([0.8, 0.6, 0.4])) / 2
    ) and torch.allclose(half.background, (faces.background + 1) / 2)
    assert torch.allclose(faces.alike(1.0, light_strength=0.0).light_strength, faces.light_strength)
    none = faces.alike(0.0, light=[0.0, 3.0, 4.0])
    assert torch.allclose(none.light, torch.tensor([0.0, 0.6, 0.8]).expand(9, 3)) and torch.equal(
        none.iris_rgb, faces.iris_rgb
    )


def test_shapes_and_ranges(device):
    face = toy.sample(3, 0, device)
    image, drawing = toy.render(face, 48), toy.sketch(face, 48)
    assert (
        image.shape == (3, 3, 48, 48)
        and drawing.shape == (3, 1, 48, 48)
        and toy.regions(face, 48).shape == (3, 48, 48)
    )
    for x in (image, drawing):
        assert x.min() >= -1 and x.max() <= 1 and torch.isfinite(x).all() and x.std() > 0.1
    assert toy.landmarks(face, 48).shape == (3, 68, 2)


def test_a_batch_is_its_faces():
    face = toy.sample(5, 2)
    assert torch.allclose(toy.render(face, 32)[3], toy.render(face[3], 32)[0], atol=1e-5)
    assert torch.allclose(toy.landmarks(face, 32)[3], toy.landmarks(face[3], 32)[0], atol=1e-4)


def test_landmarks_scale_with_the_picture():
    face = toy.sample(4, 3)
    assert torch.allclose((toy.landmarks(face, 128) + 0.5) / 2, toy.landmarks(face, 64) + 0.5, atol=1e-3)


def inside(points, polygon, margin):
    """Are points [n, 2] inside a polygon [k, 2], or within `margin` of it? Even-odd rule and distance to
    edges."""
    x, y = points[:, None, 0], points[:, None, 1]
    a, b = polygon[None], polygon.roll(-1, 0)[None]
    crosses = ((a[..., 1] > y) != (b[..., 1] > y)) & (
        x < (b[..., 0] - a[..., 0]) * (y - a[..., 1]) / (b[..., 1] - a[..., 1] + 1e-9) + a[..., 0]
    )
    along = b - a
    t = (((points[:, None] - a) * along).sum(2) / (along**2).sum(2).clamp(min=1e-9)).clamp(0, 1)
    near = (points[:, None] - a - t[..., None] * along).norm(dim=2).amin(1) < margin
    return (crosses.sum(1) % 2 == 1) | near


@pytest.mark.parametrize(
    "names, polygon",
    [
        (("lips", "inner mouth"), list(range(48, 60))),
        (("inner mouth",), list(range(60, 68))),
        (("eyes",), None),
    ],
)
def test_drawn_features_lie_inside_their_landmarks(names, polygon):
    face = toy.sample(24, 7, pose=0.6).set(glasses=0.0)
    points, size, seen = toy.landmarks(face, 128), 128, 0
    for k, region in enumerate(mask(face, size, *names)):
        at = region.nonzero().flip(1).float()
        seen += len(at)
        polygons = [polygon] if polygon else [list(range(36, 42)), list(range(42, 48))]
        ok = (
            torch.stack([inside(at, points[k, p], 3.0) for p in polygons]).any(0)
            if len(at)
            else torch.ones(1, dtype=torch.bool)
        )
        assert ok.float().mean() > 0.98, k
    assert seen > 300


def test_landmarks_of_eyes_brows_and_lips_lie_on_what_is_drawn():
    face = toy.sample(16, 11, pose=0).set(glasses=0.0, eye_open=1.0)
    points = toy.landmarks(face, 128)
    for names, index in (
        (("eyes",), range(36, 48)),
        (("brows",), range(18, 26)),
        (("lips", "inner mouth"), range(48, 60)),
    ):
        region = mask(face, 128, *names)
        for k in range(len(face)):
            at = region[k].nonzero().flip(1).float()
            distance = torch.cdist(points[k, list(index)], at).amin(1)
            assert distance.max() < 5, (names, k)


def test_jaw_points_on_the_far_side_lie_on_the_outline():
    face = toy.sample(12, 4, expression=False).set(
        yaw=55.0, roll=0.0, pitch=0.0, beard=0.0, hair_length=0.1, glasses=0.0, nose_len=0.0
    )
    points = toy.landmarks(face, 128)[:, 12:16]  # the viewer's right, turned away
    for k, background in enumerate(mask(face, 128, "background", "clothes", "hair")):
        at = background.nonzero().flip(1).float()
        assert torch.cdist(points[k], at).amin(1).max() < 3


def test_far_features_do_not_stick_out_of_the_face():
    face = toy.sample(16, 9, pose=0).set(glasses=0.0)
    for yaw in (-60.0, 60.0):
        turned = face.set(yaw=yaw, pitch=0.0, roll=0.0)
        for region in ("brows", "eyes"):
            feature, outside = mask(turned, 64, region), mask(turned, 64, "background")
            both_sides = outside[:, :, :-2] & feature[:, :, 1:-1] & outside[:, :, 2:]
            assert both_sides.sum() == 0  # no feature pixel hangs in the air


def test_turning_the_other_way_mirrors_a_symmetric_person():
    face = toy.sample(6, 8, expression=False).set(
        roll=0.0, shift=0.0, brow_asym=0.0, hair_part=0.0, moles=0.0, gaze_x=0.0, curl=0.0
    )
    face = face.set(light=[0.0, -0.4, 0.9165])
    left, right = face.set(yaw=-35.0), face.set(yaw=35.0)
    mirrored = toy.landmarks(left, 64)[:, FLIP_68]
    mirrored = torch.stack([63 - mirrored[..., 0], mirrored[..., 1]], 2)
    assert torch.allclose(mirrored, toy.landmarks(right, 64), atol=0.02)
    brow = slice(18, 46)  # the strands of the hair are not symmetric
    assert (toy.render(left, 64).flip(3) - toy.render(right, 64))[:, :, brow, brow].abs().mean() < 0.03


def test_a_counterfactual_changes_what_it_should_and_nothing_else():
    face = toy.sample(8, 1, makeup=False)
    before = toy.render(face, 64)
    happy = face.express("surprised")
    background = mask(face, 64, "background") & mask(happy, 64, "background")
    change = (toy.render(happy, 64) - before).abs().mean(1)
    assert change.mean() > 0.01 and change[background].mean() < 1e-3
    made_up = face.set(lip_alpha=1.0, lip_rgb=[0.9, 0.0, 0.6])
    change = (toy.render(made_up, 64) - before).abs().mean(1)
    lips = mask(face, 64, "lips", "inner mouth")
    grown = torch.nn.functional.max_pool2d(lips.float()[:, None], 3, 1, 1)[:, 0] > 0
    assert change[lips].mean() > 0.1 and change[~grown].mean() < 2e-3
    assert torch.equal(toy.render(made_up.no_makeup(), 64), before)


@pytest.mark.parametrize("name", toy.ATTRIBUTES)
def test_with_attribute_sets_that_attribute(name):
    face, k = toy.sample(6, 2, expression=False), toy.ATTRIBUTES.index(name)
    changed = toy.with_attribute(face, name)
    assert (toy.attributes(changed)[:, k] == 1).all()
    others = [j for j in range(len(toy.ATTRIBUTES)) if j != k and (k > 3 or j > 3)]
    assert torch.equal(toy.attributes(changed)[:, others], toy.attributes(face)[:, others])
    assert (toy.render(changed, 48) - toy.render(face, 48)).abs().amax() > 0.05 or torch.equal(
        toy.attributes(face), toy.attributes(changed)
    )
    if k > 3:
        assert (toy.attributes(toy.with_attribute(face, name, 0))[:, k] == 0).all()


def test_hair_colours_exclude_each_other_and_unknown_attributes_are_refused():
    assert (toy.attributes(toy.sample(50, 3))[:, :4].sum(1) == 1).all()
    with pytest.raises(ValueError, match="Beard"):
        toy.with_attribute(toy.sample(1), "Moustache")
    with pytest.raises(ValueError, match="another hair colour"):
        toy.with_attribute(toy.sample(1), "Black_Hair", 0)


def test_eight_expressions_differ():
    face = toy.sample(1, 0, pose=0)
    pictures = torch.cat([toy.render(face.express(name), 64) for name in toy.EXPRESSIONS])
    apart = torch.cdist(pictures.flatten(1), pictures.flatten(1)) + 99 * torch.eye(8)
    assert len(toy.EXPRESSIONS) == 8 and apart.min() > 1


def test_moles_show_on_one_side_only():
    face = toy.sample(1, 0, pose=0, expression=False).set(
        moles=[[-0.4, 0.4, 0.04], [0.4, 0.4, 0.0]], beard=0.0, glasses=0.0
    )
    bare = face.set(moles=0.0)
    change = (toy.render(face, 64) - toy.render(bare, 64)).abs().mean(1)[0]
    assert change[:, :32].max() > 0.05 and change[:, 32:].max() == 0


def test_frames_keep_the_person_and_the_scene():
    people = toy.sample(3, 0)
    video = toy.frames(people, 4, 1)
    assert len(video) == 12 and torch.equal(video.skin_rgb[4:8], people.skin_rgb[1:2].expand(4, -1))
    assert (
        torch.equal(video.background[:4], people.background[:1].expand(4, -1, -1))
        and video.yaw.unique().numel() == 12
    )


def test_a_sketch_is_no_filtered_photograph():
    face = toy.sample(4, 6, pose=0)
    assert not torch.allclose(toy.sketch(face, 64), toy.sketch(face, 64, exaggeration=1.0), atol=0.2)
    assert torch.equal(toy.sketch(face, 64), toy.sketch(face, 64))
    assert toy.sketch(face, 64).mean() > 0.2  # mostly paper


def test_region_map_paints_the_regions():
    faces = toy.sample(3, 8)
    colours = torch.tensor(toy.REGION_RGB)[toy.regions(faces, 32)].permute(0, 3, 1, 2)
    assert len(toy.REGION_RGB) == len(toy.REGIONS) and torch.allclose(
        (toy.region_map(faces, 32) + 1) * 127.5, colours.float(), atol=1e-3
    )


def test_colour_map_paints_the_regions_in_the_persons_own_colours():
    faces = toy.sample(4, 8)
    colours, label = (toy.colour_map(faces, 32) + 1) / 2, toy.regions(faces, 32)
    own = {"skin": faces.skin_rgb, "clothes": faces.clothes, "background": faces.background.mean(1)}
    for name, rgb in own.items():
        for one, where, c in zip(colours, label == toy.REGIONS.index(name), rgb, strict=True):
            assert torch.allclose(one[:, where], c[:, None].expand(-1, int(where.sum())), atol=1e-5)
    black, blond = (toy.colour_map(faces.set(hair=k, age=0.1), 32) for k in (0.0, 1.0))
    hairy = (label == 2) | (label == 3) | (label == 7)  # hair, brows, beard
    assert torch.equal((black < blond).all(1), hairy) and torch.equal((black == blond).all(1), ~hairy)


def test_a_sketch_is_smooth_paper_is_white_and_every_time_the_same():
    faces = toy.sample(3, 4, makeup=False)
    drawing, wall = toy.sketch(faces, 48, 1.0), toy.regions(faces, 48) == 0
    inside = torch.nn.functional.max_pool2d((~wall).float()[:, None], 9, 1, 4) == 0
    assert inside.any() and drawing[inside].std() < 1e-4 and drawing[inside].min() > 0.9
    light, dark = (toy.sketch(faces.set(skin_rgb=tone), 48, 1.0) for tone in (0.9, 0.3))
    assert (light - dark).abs().mean() < 0.1  # a pencil tells little of skins


def test_images_are_drawn_once_for_the_same_faces_and_the_same_painter(tmp_path, monkeypatch):
    cfg, drawn = Settings(cache=str(tmp_path), device="cpu"), []

    def paint(faces, size):
        drawn.append(len(faces))
        return toy.render(faces, size)

    faces = toy.sample(70, 3)
    images = toy.images(cfg, faces, 16, paint)
    assert images.shape == (70, 3, 16, 16) and images.dtype == torch.uint8 and sum(drawn) == 70
    assert torch.equal(images, toy.images(cfg, faces, 16, paint)) and sum(drawn) == 70
    assert (images.float() / 127.5 - 1 - toy.render(faces, 16)).abs().max() < 0.01
    toy.images(cfg, faces.set(glasses=1.0), 16, paint)
    assert sum(drawn) == 140
    assert (
        not torch.equal(images, toy.images(cfg, faces, 16, toy.region_map))
        and len(list(tmp_path.iterdir())) == 3
    )
    assert torch.equal(images, toy.images(cfg, faces, 16))
