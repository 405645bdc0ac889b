"""Image sets: real data from every kind of source, no leak, and one clear line for everything broken."""

import gzip
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from edge_shared.data import sources
from edge_shared.data.vision import from_arrays, load_images
from edge_shared.errors import InputError
from PIL import Image

REAL = Path(os.environ.get("EDGEWISE_DATA", Path(__file__).parents[2].parent / "shared/data")) / "vision"


def rows(images):
    return {image.tobytes() for image in images}


def no_leak(data):
    parts = [rows(data.train_x), rows(data.val_x), rows(data.test_x)]
    return not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_digits_are_the_real_ones_in_a_fixed_split():
    from sklearn.datasets import load_digits

    data, again, other = load_images("digits"), load_images("digits"), load_images("digits", seed=1)
    assert data.shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert len(data.train_y) + len(data.val_y) + len(data.test_y) == 1797
    assert data.fingerprint == again.fingerprint != other.fingerprint
    assert not data.synthetic
    assert no_leak(data)
    everything = np.concatenate([data.train_x, data.val_x, data.test_x])
    assert everything.sum(dtype=float) / 255 == pytest.approx(load_digits().images.sum() / 16, rel=1e-3)
    counts = np.bincount(data.test_y, minlength=10)
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_batches_are_normalised_by_train_and_shuffled_by_seed():
    data = load_images("digits")
    pixels = data.train_x.astype(np.float64) / 255
    assert data.mean == pytest.approx([pixels.mean()])
    assert data.std == pytest.approx([pixels.std()])
    batches = list(data.loader("train", 100))
    assert sum(len(labels) for _, labels in batches) == len(data.train_y)
    x_BCHW = batches[0][0].numpy()
    expected = (pixels[:100].transpose(0, 3, 1, 2) - pixels.mean()) / pixels.std()
    assert x_BCHW.dtype == np.float32
    assert np.allclose(x_BCHW, expected, atol=1e-5)
    orders = [np.concatenate([labels for _, labels in data.loader("train", 100, shuffle=True, seed=seed)]) for seed in (1, 1, 2)]
    assert np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    loader = data.loader("train", 100, shuffle=True, seed=1)
    first, second = (np.concatenate([labels for _, labels in loader]) for _ in range(2))
    assert not np.array_equal(first, second)
    with pytest.raises(InputError, match="train, val, test"):
        data.loader("dev")


def test_size_and_limit():
    data = load_images("digits", size=16, limit=50)
    assert data.train_x.shape == (50, 16, 16, 1)
    assert len(data.test_y) == 50
    assert np.bincount(data.train_y).tolist() == [5] * 10
    for arguments, match in [({"size": 0}, "image size"), ({"limit": 0}, "limit")]:
        with pytest.raises(InputError, match=match):
            load_images("digits", **arguments)


@pytest.fixture
def folder(tmp_path):
    """Sixty images of three classes, of two sizes; twenty of them are copies of one another."""
    generator = np.random.default_rng(0)
    for index in range(60):
        target = tmp_path / "set" / f"class{index % 3}" / f"{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        if index >= 40:
            target.write_bytes((tmp_path / "set" / f"class{(index - 39) % 3}" / f"{index - 39}.png").read_bytes())
        else:
            shape = (10, 12, 3) if index % 2 else (12, 12, 3)
            Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(target)
    return tmp_path / "set"


def test_an_image_folder_splits_by_content(folder):
    data = load_images(folder, size=8)
    assert data.shape == (3, 8, 8)
    assert data.classes == ("class0", "class1", "class2")
    assert len(data.train_y) + len(data.val_y) + len(data.test_y) == 60
    assert no_leak(data)
    assert load_images(folder).shape == (3, sources.MIXED_SIZE, sources.MIXED_SIZE)


def test_given_parts_are_kept_but_copies_of_test_leave_train(folder, tmp_path):
    parts = tmp_path / "parts"
    (parts / "train").parent.mkdir()
    folder.rename(parts / "train")
    for name in ("class0", "class1", "class2"):
        (parts / "test" / name).mkdir(parents=True)
    for index in (1, 2, 3):
        name = f"class{index % 3}/{index}.png"
        (parts / "test" / name).write_bytes((parts / "train" / name).read_bytes())
    data = load_images(parts, size=8)
    assert len(data.test_y) == 3
    assert data.duplicates_dropped == 6  # each of the three, and its copy
    assert len(data.train_y) + len(data.val_y) == 54
    assert no_leak(data)


def test_grey_files_stay_grey(tmp_path):
    generator = np.random.default_rng(0)
    for index in range(40):
        target = tmp_path / ("bus", "train")[index % 2] / f"{index}.png"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (6, 6), dtype=np.uint8)).save(target)
    data = load_images(tmp_path)
    assert data.shape == (1, 6, 6)
    assert data.classes == ("bus", "train")


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def noise(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, *shape), dtype=np.uint8)


def test_arrays_in_an_npz(tmp_path):
    path = npz(
        tmp_path / "a.npz", x_train=noise(50, 4, 4), y_train=np.arange(50) % 2, x_test=noise(9, 4, 4, seed=1), y_test=np.arange(9) % 2
    )
    data = load_images(path)
    assert (len(data.train_y), len(data.val_y), len(data.test_y)) == (44, 6, 9)
    assert data.classes == ("0", "1")
    assert np.array_equal(data.test_x[..., 0], noise(9, 4, 4, seed=1))


def jpegs(count, seed):
    files = []
    for image in noise(count, 8, 8, 3, seed=seed):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    return {
        "jpeg": np.frombuffer(b"".join(files), dtype=np.uint8),
        "offsets": offsets,
        "labels": np.arange(count) % 2,
        "classes": ["cat", "dog"],
    }


def test_a_pair_of_jpeg_npz(tmp_path):
    train = npz(tmp_path / "some_train.npz", **jpegs(40, 0))
    alone = load_images(train)
    assert len(alone.train_y) + len(alone.val_y) + len(alone.test_y) == 40
    npz(tmp_path / "some_test.npz", **jpegs(11, 1))
    data = load_images(train)
    assert (len(data.train_y), len(data.val_y), len(data.test_y)) == (36, 4, 11)
    assert data.classes == ("cat", "dog")
    expected = np.asarray(Image.open(io.BytesIO(jpegs(11, 1)["jpeg"][: jpegs(11, 1)["offsets"][1]].tobytes())))
    assert np.array_equal(data.test_x[0], expected)


def idx(path, array):
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def idx_folder(tmp_path):
    for part, count in (("train", 40), ("t10k", 10)):
        idx(tmp_path / f"{part}-images-idx3-ubyte.gz", noise(count, 5, 5, seed=count))
        idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(count) % 4)
    return tmp_path


def test_idx_files(idx_folder):
    data = load_images(idx_folder)
    assert (len(data.train_y), len(data.val_y), len(data.test_y)) == (36, 4, 10)
    assert np.array_equal(data.test_x[..., 0], noise(10, 5, 5, seed=10))


def test_fashion_mnist_comes_from_the_cache_or_debian(idx_folder, monkeypatch):
    monkeypatch.setenv("EDGEWISE_CACHE", str(idx_folder / "none"))
    monkeypatch.setattr(sources, "DEBIAN_FASHION", idx_folder)
    assert load_images("fashion-mnist").classes[9] == "Ankle boot"


@pytest.mark.parametrize("cut", [0, 3, 10, 300, -1])
def test_a_truncated_idx_file_is_named(idx_folder, cut):
    path = idx_folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="train-images-idx3-ubyte"):
        load_images(idx_folder)


def test_idx_files_that_lie_are_refused(idx_folder):
    labels = idx_folder / "train-labels-idx1-ubyte"
    for content in [b"\0\0\x08\x01" + b"\xff" * 4, b"\0\0\x08\x01\0\0\0\x28" + bytes(41), b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0"]:
        labels.write_bytes(content)
        with pytest.raises(InputError, match="train-labels"):
            load_images(idx_folder)
    labels.unlink()
    with pytest.raises(InputError, match="lacks train-labels"):
        load_images(idx_folder)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x_train": noise(4, 4, 4)}, "lacks y_train"),
        ({"y_train": [0, 1]}, "lacks x_train"),
        ({"x_train": noise(4, 4, 4), "y_train": [0, 1]}, "4 images in x_train but 2 labels"),
        ({"x_train": np.full((4, 4, 4), np.nan), "y_train": [0, 1, 0, 1]}, "float64; images are whole numbers"),
        ({"x_train": noise(4, 4, 4).astype(int) * 300, "y_train": [0, 1, 0, 1]}, "0..255"),
        ({"x_train": noise(4, 4), "y_train": [0, 1, 0, 1]}, "shape"),
        ({"x_train": noise(4, 4, 4), "y_train": [0, -1, 0, 1]}, "labels are whole numbers"),
        ({"x_train": noise(4, 4, 4), "y_train": [0.5, 0, 0, 1]}, "labels are whole numbers"),
        ({"x_train": noise(4, 4, 4), "y_train": [0, 9, 0, 1], "classes": ["a", "b"]}, "label 9 has no name"),
        ({"x_train": noise(4, 4, 4), "y_train": [0, 1, 0, 1], "x_test": noise(4, 5, 5), "y_test": [0, 1, 0, 1]}, "differ in shape"),
        ({"x_train": np.asarray([Evil()] * 4), "y_train": [0, 1, 0, 1]}, "allow_pickle"),
        ({"jpeg": noise(9), "offsets": [0, 20], "labels": [0]}, "offsets"),
        ({"jpeg": noise(9), "offsets": [0, 5, 5], "labels": [0, 1]}, "offsets"),
        ({"jpeg": noise(9), "labels": [0]}, "lacks offsets"),
        ({"jpeg": noise(9), "offsets": [0, 3, 6, 9], "labels": [0, 1, 0]}, "no readable image"),
        ({"x_train": noise(2, 4, 4), "y_train": [0, 1]}, "too few"),
    ],
)
def test_a_broken_npz_is_one_clear_line(tmp_path, monkeypatch, arrays, match):
    monkeypatch.chdir(tmp_path)
    path = npz(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=match) as caught:
        load_images(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_other_broken_places(tmp_path, folder, monkeypatch):
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "table.csv").write_text("1,2")
    (tmp_path / "empty").mkdir()
    for path, match in [
        (tmp_path / "text.npz", "cannot read"),
        (tmp_path / "table.csv", "is no data set"),
        (tmp_path / "empty", "0 class folders"),
        ("emnist", "names: digits"),
        (tmp_path / "absent", "no such path"),
    ]:
        with pytest.raises(InputError, match=match):
            load_images(path)
    (folder / "class0" / "0.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"0\.png is no readable image"):
        load_images(folder)


def test_a_download_that_fails_is_one_line_and_stdout_stays_clean(tmp_path, monkeypatch, capsys):
    import urllib.request

    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path))
    for name in ("cifar10", "cifar100", "mnist", "flowers", "pets", "food"):
        with pytest.raises(InputError, match=f"cannot download {name}"):
            load_images(name)
    assert capsys.readouterr().out == ""


def test_sets_of_files_by_name_read_what_torchvision_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path))
    images, annotations = tmp_path / "oxford-iiit-pet/images", tmp_path / "oxford-iiit-pet/annotations"
    for place in (images, annotations):
        place.mkdir(parents=True)
    for part, count, seed in (("trainval", 40, 0), ("test", 8, 1)):
        names = [f"{'Cat' if index % 2 else 'dog'}_{part}{index}" for index in range(count)]
        for name, image in zip(names, noise(count, 9, 9, 3, seed=seed), strict=True):
            Image.fromarray(image).save(images / f"{name}.jpg")
        (annotations / f"{part}.txt").write_text("".join(f"{name} {1 + index % 2} 1 1\n" for index, name in enumerate(names)))
    from torchvision.datasets import OxfordIIITPet

    monkeypatch.setattr(OxfordIIITPet, "_download", lambda self: None)
    data = load_images("pets")
    assert (len(data.train_y), len(data.val_y), len(data.test_y)) == (36, 4, 8)
    assert data.shape == (3, 9, 9)
    assert np.bincount(data.test_y).tolist() == [4, 4]


def test_own_arrays_say_whether_they_are_made_up():
    data = from_arrays("noise", noise(100, 4, 4), np.repeat([0, 1], [60, 40]), ["a", "b"], synthetic=True)
    assert data.synthetic
    assert (len(data.train_y), len(data.val_y), len(data.test_y)) == (65, 15, 20)  # 39 + 26, 9 + 6, 12 + 8


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real data sets")
@pytest.mark.parametrize(
    ("path", "shape", "sizes"),
    [("mnist.npz", (1, 28, 28), (54000, 6000, 10000)), ("fashion-mnist", (1, 28, 28), (54000, 6000, 10000))],
)
def test_the_published_sets(path, shape, sizes):
    data = load_images(REAL / path)
    assert data.shape == shape
    got = (len(data.train_y), len(data.val_y), len(data.test_y))
    assert sum(got) + data.duplicates_dropped == sum(sizes)
    assert got == pytest.approx(sizes, abs=10)
    assert no_leak(data)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real data sets")
def test_the_published_jpeg_pair():
    data = load_images(REAL / "cifar10_jpeg_train.npz", limit=200)
    assert data.train_x.shape == (200, 32, 32, 3)
    assert data.classes[0] == "airplane"
    assert np.bincount(data.test_y).tolist() == [20] * 10
