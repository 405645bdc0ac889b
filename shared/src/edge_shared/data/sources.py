"""Where images come from: arrays, JPEG bytes in an npz, files in folders, IDX files, torchvision by name.

A source knows labels and contents of all its images and decodes only the rows that are asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_shared.data.cache import cache_folder
from edge_shared.errors import InputError, require

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
MIXED_SIZE = 128  # pixels; side of the images of a set whose files differ in size, unless told
DEBIAN_FASHION = Path("/usr/share/dataset-fashion-mnist")
FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DIGITS = tuple("0123456789")


class Source(Protocol):
    """Images that are read when needed."""

    labels: NDArray[np.int64]

    def keys(self) -> list[bytes]:
        """A digest of the content of each image."""
        ...

    def read(self, rows: NDArray[np.int64], size: int | None) -> NDArray[np.uint8]:
        """Decode these rows into (n, h, w, c)."""
        ...


@dataclass(frozen=True)
class Sources:
    """A data set before it is split: `val` and `test` are None where the publisher gives none."""

    train: Source
    classes: tuple[str, ...]
    val: Source | None = None
    test: Source | None = None


class ArraySource:
    """Images that are already an array, (n, h, w) or (n, h, w, c), uint8."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images = images if images.ndim == 4 else images[..., None]
        self.labels = labels

    def keys(self) -> list[bytes]:
        """A digest of each image's pixels."""
        return [_digest(image.tobytes()) for image in self.images]

    def read(self, rows: NDArray[np.int64], size: int | None) -> NDArray[np.uint8]:
        """Pick the rows, resized if asked for."""
        images = self.images[rows]
        if size is None or images.shape[1:3] == (size, size):
            return images
        from PIL import Image

        grey = images.shape[3] == 1
        return _decode(len(rows), lambda i: Image.fromarray(images[i, ..., 0] if grey else images[i]), size, grey)


class JpegSource:
    """Image files laid end to end in one array of bytes; image i is ``jpeg[offsets[i]:offsets[i + 1]]``."""

    def __init__(self, jpeg: NDArray[np.uint8], offsets: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        self.jpeg, self.offsets, self.labels = jpeg, offsets, labels

    def _bytes(self, row: int) -> bytes:
        return self.jpeg[self.offsets[row] : self.offsets[row + 1]].tobytes()

    def keys(self) -> list[bytes]:
        """A digest of each image's bytes."""
        return [_digest(self._bytes(row)) for row in range(len(self.labels))]

    def read(self, rows: NDArray[np.int64], size: int | None) -> NDArray[np.uint8]:
        """Decode the rows."""
        return _decode_files(len(rows), lambda i: io.BytesIO(self._bytes(int(rows[i]))), lambda i: f"image {int(rows[i])}", size)


class FileSource:
    """One file per image."""

    def __init__(self, paths: list[Path], labels: NDArray[np.int64]) -> None:
        self.paths, self.labels = paths, labels

    def keys(self) -> list[bytes]:
        """A digest of each file."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda path: _digest(path.read_bytes()), self.paths))

    def read(self, rows: NDArray[np.int64], size: int | None) -> NDArray[np.uint8]:
        """Decode the rows."""
        paths = [self.paths[row] for row in rows]
        return _decode_files(len(paths), lambda i: io.BytesIO(paths[i].read_bytes()), lambda i: str(paths[i]), size)


def named(name: str) -> Sources:
    """The sources of a data set known by name; downloads into the cache where it must."""
    return NAMES[name]()


def at_path(path: Path) -> Sources:
    """The sources in a .npz file, a folder of IDX files, or an ImageFolder."""
    if not path.is_dir():
        if path.suffix != ".npz" or not path.is_file():
            raise InputError(f"{path} is no data set: give a .npz file, a folder of IDX files or a folder with one subfolder per class")
        return _npz(path)
    if _idx_file(path, "train-images") is not None:
        return _idx_folder(path, None)
    return _image_folder(path)


def _digits() -> Sources:
    require("sklearn", "edge-shared[torch]")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # the set counts ink from 0 to 16
    return Sources(ArraySource(images, digits.target.astype(np.int64)), DIGITS)


def _fashion() -> Sources:
    for folder in (cache_folder() / "fashion-mnist", DEBIAN_FASHION):
        if _idx_file(folder, "train-images") is not None:
            return _idx_folder(folder, FASHION_CLASSES)
    return _torchvision_arrays("FashionMNIST", "fashion-mnist")


def _torchvision_arrays(cls: str, name: str) -> Sources:
    parts = [_torchvision(cls, name, train=train) for train in (True, False)]
    train, test = (ArraySource(np.asarray(part.data), np.asarray(part.targets, dtype=np.int64)) for part in parts)
    return Sources(train, tuple(str(one) for one in parts[0].classes), test=test)


def _flowers() -> Sources:
    parts = [_torchvision("Flowers102", "flowers", split=split) for split in ("train", "val", "test")]
    sources = [FileSource([Path(path) for path in part._image_files], np.asarray(part._labels, dtype=np.int64)) for part in parts]
    classes = tuple(str(one) for one in getattr(parts[0], "classes", range(102)))
    return Sources(sources[0], classes, sources[1], sources[2])


def _pets() -> Sources:
    parts = [_torchvision("OxfordIIITPet", "pets", split=split) for split in ("trainval", "test")]
    train, test = (FileSource([Path(path) for path in part._images], np.asarray(part._labels, dtype=np.int64)) for part in parts)
    return Sources(train, tuple(parts[0].classes), test=test)


def _food() -> Sources:
    parts = [_torchvision("Food101", "food", split=split) for split in ("train", "test")]
    train, test = (FileSource([Path(path) for path in part._image_files], np.asarray(part._labels, dtype=np.int64)) for part in parts)
    return Sources(train, tuple(parts[0].classes), test=test)


NAMES: dict[str, Callable[[], Sources]] = {
    "digits": _digits,
    "fashion-mnist": _fashion,
    "mnist": lambda: _torchvision_arrays("MNIST", "mnist"),
    "cifar10": lambda: _torchvision_arrays("CIFAR10", "cifar10"),
    "cifar100": lambda: _torchvision_arrays("CIFAR100", "cifar100"),
    "flowers": _flowers,
    "pets": _pets,
    "food": _food,
}


def _torchvision(cls: str, name: str, **arguments: Any) -> Any:
    require("torchvision", "edge-shared[torch]")
    from torchvision import datasets

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with redirect_stdout(sys.stderr):  # torchvision prints; stdout belongs to the command's JSON
            return getattr(datasets, cls)(root=str(folder), download=True, **arguments)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"cannot download {name} into {folder} ({reason}); give the path of a copy, or set EDGEWISE_CACHE") from error


def _npz(path: Path) -> Sources:
    content = _read_npz(path)
    if "jpeg" in content:
        return _jpeg_pair(path, content)
    names = ("x_train", "y_train", "x_test", "y_test")
    if missing := [name for name in names[:2] if name not in content]:
        raise InputError(
            f"{path} lacks {', '.join(missing)}; it holds x_train, y_train (x_val, y_val, x_test, y_test) or jpeg, offsets, labels"
        )
    parts = {}
    for part in ("train", "val", "test"):
        if f"x_{part}" in content:
            parts[part] = ArraySource(*_checked(path, part, content[f"x_{part}"], content.get(f"y_{part}")))
    if len({source.images.shape[1:] for source in parts.values()}) > 1:
        raise InputError(f"{path}: images of train, val and test differ in shape")
    return Sources(parts["train"], _classes(path, content, parts.values()), parts.get("val"), parts.get("test"))


def _jpeg_pair(path: Path, content: dict[str, NDArray[Any]]) -> Sources:
    train = _jpeg(path, content)
    other = path.with_name(path.name.replace("_train.npz", "_test.npz"))
    if other == path or not other.is_file():
        return Sources(train, _classes(path, content, [train]))
    test = _jpeg(other, _read_npz(other))
    return Sources(train, _classes(path, content, [train, test]), test=test)


def _jpeg(path: Path, content: dict[str, NDArray[Any]]) -> JpegSource:
    if missing := [name for name in ("jpeg", "offsets", "labels") if name not in content]:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    jpeg, offsets = content["jpeg"], content["offsets"]
    labels = _labels(path, "labels", content["labels"])
    sound = jpeg.dtype == np.uint8 and jpeg.ndim == 1 and offsets.dtype.kind in "iu" and offsets.shape == (len(labels) + 1,)
    if not sound or int(offsets[0]) < 0 or int(offsets[-1]) > len(jpeg) or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise InputError(f"{path}: offsets are n+1 increasing positions in the bytes of jpeg (uint8), for n labels; these are not")
    return JpegSource(jpeg, offsets.astype(np.int64), labels)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            _fits(sum(entry.file_size for entry in archive.infolist()), str(path))
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {path} as .npz: {' '.join(str(error).split())[:160]}") from error


def _checked(path: Path, part: str, images: NDArray[Any], labels: NDArray[Any] | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if labels is None:
        raise InputError(f"{path} has x_{part} but no y_{part}")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or 0 in images.shape:
        raise InputError(f"{path}: x_{part} has shape {images.shape}; images are (n, h, w), (n, h, w, 1) or (n, h, w, 3)")
    if images.dtype.kind not in "iu" or (images.dtype != np.uint8 and not 0 <= images.min() <= images.max() <= 255):
        raise InputError(f"{path}: x_{part} is {images.dtype}; images are whole numbers 0..255 (uint8)")
    found = _labels(path, f"y_{part}", labels)
    if len(found) != len(images):
        raise InputError(f"{path}: {len(images)} images in x_{part} but {len(found)} labels")
    return images.astype(np.uint8, copy=False), found


def _labels(path: Path, name: str, labels: NDArray[Any]) -> NDArray[np.int64]:
    flat = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or flat.dtype.kind not in "iu" or not len(flat) or int(flat.min()) < 0:
        raise InputError(f"{path}: {name} has shape {labels.shape} and type {labels.dtype}; labels are whole numbers from 0, one per image")
    return flat.astype(np.int64)


def _classes(path: Path, content: dict[str, NDArray[Any]], sources: Iterable[Source]) -> tuple[str, ...]:
    highest = max(int(source.labels.max()) for source in sources)
    if "classes" not in content:
        if highest >= 100_000:
            raise InputError(f"{path}: label {highest} is out of range; labels count classes from 0")
        return tuple(str(label) for label in range(highest + 1))
    classes = tuple(str(one) for one in content["classes"].reshape(-1))
    if highest >= len(classes):
        raise InputError(f"{path}: label {highest} has no name among {len(classes)} classes")
    return classes


def _idx_file(folder: Path, stem: str) -> Path | None:
    for name in (f"{stem}-idx{3 if 'images' in stem else 1}-ubyte", f"{stem}.idx{3 if 'images' in stem else 1}-ubyte"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def _idx_folder(folder: Path, classes: tuple[str, ...] | None) -> Sources:
    sources = []
    for part in ("train", "t10k"):
        arrays = []
        for kind, dims in (("images", 3), ("labels", 1)):
            path = _idx_file(folder, f"{part}-{kind}")
            if path is None:
                raise InputError(f"{folder} lacks {part}-{kind}-idx{dims}-ubyte[.gz], one of the four files of an IDX data set")
            arrays.append(read_idx(path, dims))
        if len(arrays[0]) != len(arrays[1]):
            raise InputError(f"{folder}: {len(arrays[0])} {part} images but {len(arrays[1])} labels")
        sources.append(ArraySource(arrays[0], arrays[1].astype(np.int64)))
    count = max(int(source.labels.max()) for source in sources) + 1
    if classes is None:
        classes = FASHION_CLASSES if "fashion" in str(folder) else tuple(str(label) for label in range(count))
    if count > len(classes):
        raise InputError(f"{folder}: label {count - 1} is out of range; there are {len(classes)} classes")
    return Sources(sources[0], classes, test=sources[1])


def read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes (the MNIST format), plain or gzipped.

    Raises:
        InputError: if it is cut short, has bytes too many, or is another kind of file.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dims)
            if len(head) < 4 + 4 * dims or head[:3] != b"\0\0\x08" or head[3] != dims:
                raise InputError(f"{path} is no IDX file of unsigned bytes in {dims} dimensions (it begins with {head[:4].hex()})")
            shape = tuple(int(number) for number in np.frombuffer(head[4:], dtype=">u4"))
            expected = int(np.prod([int(side) for side in shape], dtype=object))
            _fits(expected, str(path))
            body = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())[:160]}") from error
    if len(body) != expected or not expected:
        raise InputError(
            f"{path} has {'more' if len(body) > expected else len(body)} bytes where its header promises {expected}; get it again"
        )
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _image_folder(folder: Path) -> Sources:
    if (folder / "train").is_dir() and any(child.is_dir() for child in (folder / "train").iterdir()):  # not a class of trains
        classes = _class_folders(folder / "train")
        sources: dict[str, Source | None] = {"train": _folder_source(folder / "train", classes)}
        for part, names in (("val", ("val", "valid", "validation")), ("test", ("test",))):
            found = next((folder / name for name in names if (folder / name).is_dir()), None)
            sources[part] = None if found is None else _folder_source(found, classes)
        train = sources["train"]
        assert train is not None
        return Sources(train, classes, sources["val"], sources["test"])
    classes = _class_folders(folder)
    return Sources(_folder_source(folder, classes), classes)


def _class_folders(folder: Path) -> tuple[str, ...]:
    classes = tuple(sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")))
    if len(classes) < 2:
        raise InputError(f"{folder} has {len(classes)} class folders; an image folder has one subfolder per class, at least two")
    return classes


def _folder_source(folder: Path, classes: tuple[str, ...]) -> FileSource:
    if unknown := sorted({child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")} - set(classes)):
        raise InputError(f"{folder / unknown[0]} is a class that the train folder does not have")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise InputError(f"{folder} holds no image files ({', '.join(sorted(SUFFIXES))})")
    return FileSource(paths, np.asarray(labels, dtype=np.int64))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _fits(size: int, what: str) -> None:
    import psutil

    if size > 0.8 * psutil.virtual_memory().available:
        raise InputError(f"{what} needs {size / 2**30:.1f} GiB of memory, more than is free; use a limit or a smaller image size")


def _decode_files(count: int, open_: Callable[[int], io.BytesIO], name: Callable[[int], str], size: int | None) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    def unreadable(index: int, error: Exception) -> InputError:
        # What Pillow says of an unknown format names an object in memory.
        words = "its format is not known" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())[:120]
        return InputError(f"{name(index)} is no readable image: {words}")

    def load(index: int) -> Image.Image:
        try:
            image = Image.open(open_(index))
            image.load()
            return ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise unreadable(index, error) from error

    def header(index: int) -> tuple[str, tuple[int, int]]:
        try:
            with Image.open(open_(index)) as image:
                return image.mode, image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise unreadable(index, error) from error

    headers = [header(index) for index in range(count)]
    grey = all(mode in ("1", "L") for mode, _ in headers)
    shapes = {shape for _, shape in headers}
    if size is None and len(shapes) > 1:
        size = MIXED_SIZE
    if size is None and max(next(iter(shapes))) > 512:
        size = MIXED_SIZE
    return _decode(count, load, size, grey)


def _decode(count: int, load: Callable[[int], Image], size: int | None, grey: bool) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    def convert(index: int) -> NDArray[np.uint8]:
        image = load(index).convert("L" if grey else "RGB")
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)  # shorter side to size, centre cut out
        pixels = np.asarray(image)
        return pixels[..., None] if grey else pixels

    first = convert(0)
    _fits(count * first.size, f"{count} images of {first.shape[1]}x{first.shape[0]} pixels")
    images = np.empty((count, *first.shape), dtype=np.uint8)
    images[0] = first

    def place(index: int) -> None:
        pixels = convert(index)
        if pixels.shape != first.shape:
            raise InputError(
                f"image {index} is {pixels.shape[1]}x{pixels.shape[0]} pixels, the first {first.shape[1]}x{first.shape[0]}; give a size"
            )
        images[index] = pixels

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(place, range(1, count)):
            pass
    return images
