"""Generators: counts, independence, what is painted where. Readers: tiny folders in the published layouts, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from edge_shared import cli
from edge_shared.errors import InputError
from fairnet.cli import app
from fairnet.data import corrupted, spuco, two_colours
from fairnet.data.choose import load
from fairnet.data.parts import Part, own_groups, usual_groups
from fairnet.methods import apply
from fairnet.methods._train import Settings
from PIL import Image


def picture(path: Path, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 7, 3), value % 255, dtype=np.uint8)).save(path)


# --- generators ------------------------------------------------------------------------------------------------------


def test_two_colours_are_independent_given_the_class() -> None:
    data = two_colours.two_colour_images("digits", rho=0.9, rho_right=0.8, train=1000, val=100, balanced=100, seed=0)
    goes = data.alignment(data.train)
    assert goes is not None
    left, right = goes
    assert abs(left.mean() - 0.9) < 0.01
    assert abs(right.mean() - 0.8) < 0.01
    assert abs((left & right).mean() - 0.72) < 0.01
    assert len(data.groups) == 100
    assert data.aligned_pairs["3"] == ("left 3, right 3",)
    test = data.alignment(data.test)
    assert test is not None
    assert (abs(test.mean(1) - 0.1) < 0.05).all()


def test_pairs_are_the_product_of_both_shares() -> None:
    y = np.repeat(np.arange(5), (200, 300, 250, 1, 0))
    pairs = two_colours.assign_pairs(y, 5, 0.9, 0.6, np.random.default_rng(3))
    for label in range(3):
        n = (y == label).sum()
        for left, right in ((label, label), (label, 4), (4, label), (4, 3)):
            expected = n * (0.9 if left == label else 0.025) * (0.6 if right == label else 0.1)
            assert abs((pairs[y == label] == left * 5 + right).sum() - expected) <= 1


def test_two_colours_are_painted_left_and_right() -> None:
    grey = np.zeros((1, 24, 24), dtype=np.uint8)
    grey[0, 3, 3] = 200
    image = two_colours.paint(grey, np.array([0]), np.array([5]), np.random.default_rng(0))[0].astype(int)
    assert image[3, 3].tolist() == [255, 255, 255]
    assert (abs(image[0, :12] - 255 * two_colours.LEFT[0]) < 6).all()
    assert (abs(image[0, 12:] - 255 * two_colours.RIGHT[5]) < 6).all()
    np.testing.assert_allclose(two_colours.RIGHT, 1 - two_colours.LEFT)


def test_spuco_pairs_patches_and_round_robin() -> None:
    data = spuco.spuco_images("digits", rho=0.9, train=800, val=100, balanced=200, seed=0)
    assert data.classes[0] == "0 or 1"
    assert len(data.groups) == 5
    for label in range(5):
        counts = np.bincount(data.test.b[data.test.y == label], minlength=5)
        assert counts.max() - counts.min() <= 1
        n = (data.train.y == label).sum()
        assert ((data.train.y == label) & (data.train.b == label)).sum() == int(np.floor(n * 0.9 + 1e-9))
    grey = np.zeros((1, 28, 28), dtype=np.uint8)
    for patch, side in (("large", 28), ("medium", 4), ("small", 2)):
        image = spuco.paint(grey, np.array([[255, 0, 0]], dtype=np.uint8), spuco.PATCHES[patch])[0]
        assert (image[..., 0] == 255).sum() == side**2
        assert image[:side, :side, 0].all()
    noisy = spuco.spuco_images("digits", rho=0.9, train=800, val=100, balanced=200, seed=0, label_noise=0.25)
    assert (noisy.train.y != data.train.y).sum() == 200
    assert np.array_equal(noisy.test.y, data.test.y)


def test_each_corruption_changes_the_image_and_grows_with_severity() -> None:
    grid = np.linspace(0, 255, 32)
    image = np.stack([np.add.outer(grid, grid) / 2, np.subtract.outer(grid, grid) % 256, np.full((32, 32), 90.0)], -1).astype(np.uint8)
    for name in corrupted.CORRUPTIONS:
        change = [
            np.abs(corrupted.corrupt(image, name, severity, np.random.default_rng(0)).astype(int) - image).mean() for severity in (1, 5)
        ]
        assert 0.5 < change[0] < change[1] < 130, (name, change)
    data = corrupted.corrupted_images("digits", rho=0.8, train=300, val=40, balanced=60, seed=0, size=16)
    again = corrupted.corrupted_images("digits", rho=0.8, train=300, val=40, balanced=60, seed=0, size=16)
    assert data.fingerprint == again.fingerprint
    assert data.train.x.shape[1:] == (16, 16, 3)
    assert data.groups == tuple(corrupted.CORRUPTIONS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"plant": "glitter"}, "--plant 'glitter' is unknown; use colour, two-colours"),
        ({"layout": "wilds"}, "--layout 'wilds' is unknown; use csv, waterbirds"),
        ({"rho": 1.5}, "rho is 1.5"),
    ],
)
def test_bad_choices(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load("digits", **options)  # type: ignore[arg-type]


def test_bad_generator_settings() -> None:
    with pytest.raises(InputError, match="severity is 6"):
        corrupted.corrupted_images("digits", severity=6)
    with pytest.raises(InputError, match="patch is 'huge'"):
        spuco.spuco_images("digits", patch="huge")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="label_noise is 2"):
        spuco.spuco_images("digits", label_noise=2)
    with pytest.raises(InputError, match="rho_right is -1; the share"):
        two_colours.two_colour_images("digits", rho_right=-1)


# --- which group goes with which class -------------------------------------------------------------------------------


def test_the_usual_group_is_the_over_represented_one() -> None:
    """Blond hair: most not blond are women in CelebA, yet what is special about them is that men are among them."""
    cells = {(0, 0): 44, (0, 1): 41, (1, 0): 14, (1, 1): 1}  # (not blond, blond) x (woman, man), in per cent of the published set
    y = np.repeat([c[0] for c in cells], list(cells.values()))
    b = np.repeat([c[1] for c in cells], list(cells.values()))
    part = Part(np.zeros((len(y), 1, 1, 3), dtype=np.uint8), y, b)
    assert usual_groups(part, 2, 2).tolist() == [1, 0]
    assert own_groups(part, 2, ("one",)) == ()


# --- readers -------------------------------------------------------------------------------------------------------------


def waterbirds(folder: Path) -> Path:
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for index in range(24):
        y, split, place = index % 2, index // 8, (index // 2) % 2
        name = f"00{y}.Some_bird/Bird_{index}.jpg"
        picture(folder / name, index * 9)
        lines.append(f"{index},{name},{y},{split},{place},/o/ocean/{index}.jpg")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def celeba(folder: Path, suffix: str = ".txt") -> Path:
    names, comma = ["Bald", "Blond_Hair", "Male"], suffix == ".csv"
    attributes = ["image_id," + ",".join(names)] if comma else ["24", " ".join(names)]
    parts = ["image_id,partition"] if comma else []
    for index in range(24):
        values = ["-1", "1" if index % 2 else "-1", "1" if index // 2 % 2 else "-1"]
        file = f"{index + 1:06d}.jpg"
        picture(folder / "img_align_celeba" / file, index * 9)
        attributes.append((",".join([file, *values])) if comma else f"{file} " + "  ".join(values))
        parts.append(f"{file},{index // 8}" if comma else f"{file} {index // 8}")
    (folder / f"list_attr_celeba{suffix}").write_text("\n".join(attributes) + "\n")
    (folder / f"list_eval_partition{suffix}").write_text("\n".join(parts) + "\n")
    return folder


def bar(folder: Path) -> Path:
    for part, count in (("train", 20), ("test", 4)):
        for index in range(count):
            picture(folder / part / f"{('climbing', 'pole vaulting')[index % 2]}_{index}.jpg", index * 9)
    return folder


def bffhq(folder: Path) -> Path:
    for index in range(20):
        age, conflict = index % 2, index >= 18
        gender = 1 - age if conflict else age
        picture(folder / "0.5pct" / ("conflict" if conflict else "align") / str(age) / f"{index:05d}_{age}_{gender}.png", index * 9)
    for place in ("valid", "test"):
        for index in range(8):
            picture(folder / place / f"{index:05d}_{index % 2}_{index // 2 % 2}.png", index * 9)
    return folder


def imagenet9(folder: Path) -> Path:
    for part, count in (("train", 10), ("val", 2)):
        for synset in ("n02085620", "n02123045", "n02099601", "n01440764"):  # dog, cat, dog, and a fish that is in none of the nine
            for index in range(count):
                picture(folder / part / synset / f"{synset}_{index}.JPEG", index * 9)
    return folder


def test_waterbirds(tmp_path: Path) -> None:
    data = load(str(waterbirds(tmp_path)), layout="waterbirds", size=8)
    assert data.classes == ("landbird", "waterbird")
    assert data.groups == ("land", "water")
    assert (len(data.train), len(data.val), len(data.test)) == (8, 8, 8)
    assert data.train.y.tolist() == [0, 1] * 4
    assert data.train.b.tolist() == [0, 0, 1, 1] * 2


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_celeba(tmp_path: Path, suffix: str) -> None:
    data = load(str(celeba(tmp_path, suffix)), layout="celeba", size=8)
    assert data.classes == ("Blond_Hair", "not Blond_Hair")
    assert data.groups == ("Male", "not Male")
    assert data.train.y.tolist() == [1, 0] * 4
    assert data.train.b.tolist() == [1, 1, 0, 0] * 2
    assert (len(data.train), len(data.val), len(data.test)) == (8, 8, 8)
    assert data.attributes[0].name == "Male"


def test_bar_has_no_groups_and_says_who_needs_them(tmp_path: Path) -> None:
    data = load(str(bar(tmp_path)), layout="bar", size=8)
    assert data.classes == ("climbing", "pole vaulting")
    assert data.attributes == ()
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 4)
    for name in ("ffw", "dfr", "reweight", "groupdro", "bise", "random-mask"):
        with pytest.raises(InputError, match="needs bias groups"):
            apply(name, data, Settings(epochs=1))


def test_bffhq(tmp_path: Path) -> None:
    data = load(str(bffhq(tmp_path)), layout="bffhq", size=8)
    assert data.classes == ("young", "old")
    assert data.groups == ("female", "male")
    goes = data.alignment(data.train)
    assert goes is not None
    assert goes.sum() == 18
    assert len(data.balanced) == 8


def test_imagenet9_passes_over_other_classes(tmp_path: Path) -> None:
    data = load(str(imagenet9(tmp_path)), layout="imagenet9", size=8)
    assert data.classes == ("dog", "cat")
    assert len(data.train) + len(data.val) == 30
    assert np.bincount(data.test.y).tolist() == [4, 2]


def test_a_table_without_groups(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for index in range(12):
        picture(tmp_path / f"{index}.png", index * 9)
        lines.append(f"{index}.png,{'ab'[index % 2]},{('train', 'val', 'test')[index // 4]}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    data = load(str(tmp_path / "t.csv"), size=8)
    assert data.groups == ("unknown",)
    assert data.files[0].endswith("0.png")


@pytest.mark.parametrize(
    ("layout", "make", "spoil", "words"),
    [
        ("waterbirds", waterbirds, lambda f: edit(f / "metadata.csv", ",y,", ",label,"), "no column 'y'"),
        ("waterbirds", waterbirds, lambda f: edit(f / "metadata.csv", ".jpg,0,0,0,", ".jpg,7,0,0,"), "metadata.csv:2: y is '7'"),
        ("waterbirds", waterbirds, lambda f: (f / "metadata.csv").unlink(), "no metadata.csv in it"),
        ("waterbirds", waterbirds, lambda f: (f / "000.Some_bird/Bird_0.jpg").write_text("no"), "metadata.csv:2: cannot read image"),
        ("celeba", celeba, lambda f: edit(f / "list_attr_celeba.txt", "Blond_Hair", "Hair"), "no attribute 'Blond_Hair'"),
        (
            "celeba",
            celeba,
            lambda f: edit(f / "list_attr_celeba.txt", "-1  -1  -1", "-1  3  -1"),
            "list_attr_celeba.txt:3: Blond_Hair is '3'",
        ),
        ("celeba", celeba, lambda f: edit(f / "list_eval_partition.txt", "000001.jpg 0", "000001.jpg 9"), "000001.jpg has no partition"),
        ("celeba", celeba, lambda f: (f / "list_attr_celeba.txt").unlink(), "no list_attr_celeba.txt"),
        ("bar", bar, lambda f: picture(f / "train" / "climbing.jpg"), "does not say its action"),
        ("bffhq", bffhq, lambda f: picture(f / "test" / "00001_0.png"), "does not say age and gender"),
        ("bffhq", bffhq, lambda f: (f / "1pct").mkdir(), "2 folders called like 0.5pct"),
        ("imagenet9", bffhq, lambda f: [(f / p / "x").mkdir(parents=True) for p in ("train", "val")], "n02123045 or cat"),
        ("bar", waterbirds, lambda f: None, "no train in it"),
    ],
)
def test_broken_folders_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, make, spoil, words: str) -> None:  # type: ignore[no-untyped-def]
    spoil(make(tmp_path))
    arguments = ["discover", "--data", str(tmp_path), "--layout", layout, "--size", "8", "--out", str(tmp_path / "out")]
    assert cli.run(app, arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_discovery_in_a_published_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of one's own goes through the command, and the table names the files."""
    folder = tmp_path / "birds"
    random = np.random.default_rng(0)
    lines = ["img_filename,y,split,place"]
    for index in range(120):
        y, split = index % 2, 0 if index < 80 else 1 if index < 100 else 2
        place = 1 - y if index % 5 == 0 else y
        pixels = np.zeros((8, 8, 3), dtype=np.uint8)
        pixels[..., place] = 200 + random.integers(0, 55, (8, 8))  # the place is a colour, easy
        pixels[2:4, 2 + 3 * y, 2] = 255  # the bird is a few pixels
        (folder).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{y},{split},{place}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    arguments = ["discover", "--data", str(folder), "--layout", "waterbirds", "--size", "8", "--epochs", "40", "--batch-size", "20"]
    assert cli.run(app, [*arguments, "--model", "mlp", "--out", str(tmp_path / "found"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    assert found["against_true_groups"]["recall"] > 0.7
    rows = (tmp_path / "found" / "alignment.csv").read_text().splitlines()
    assert rows[0] == "row,label,pseudo_label,aligned,file"
    assert rows[1].endswith("0.png")
