"""Data: disjoint splits, ranges, and batches that repeat with their seed."""

import numpy as np
import pytest

from kdopt.pipeline import datasets


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def test_digits_are_split_into_disjoint_parts(digits):
    parts = [digits.train, digits.validation, digits.test]
    assert [len(x) for x, _ in parts] == [1150, 250, 397]
    assert digits.image_shape == (8, 8, 1)
    together = np.concatenate([x for x, _ in parts])
    assert together.min() == 0
    assert together.max() == 1
    assert together.dtype == np.float32
    assert sum(np.bincount(y, minlength=10) for _, y in parts).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]
    sets = [{image.tobytes() for image in x} for x, _ in parts]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert all(set(y) == set(range(10)) for _, y in parts)


def test_batches_repeat_with_the_seed_and_differ_between_epochs(digits):
    def epochs(seed):
        batches = datasets.augmented_batches(digits, 64, seed)
        return [np.concatenate([x.numpy() for x, _ in batches]) for _ in range(2)]

    first, again, other = epochs(3), epochs(3), epochs(4)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])
    assert first[0].shape == (1150 // 64 * 64, 8, 8, 1)


def test_batches_hold_moved_images_with_their_classes(digits):
    """Every image of a batch is a training image moved by at most one pixel, beside its class."""
    x, y = next(iter(datasets.augmented_batches(digits, 8, 0)))
    images, classes = digits.train
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for image, label in zip(x.numpy(), y.numpy(), strict=True):
        matches = [
            np.flatnonzero((padded[:, i : i + 8, j : j + 8] == image).all((1, 2, 3)))
            for i in range(3)
            for j in range(3)
        ]
        found = np.concatenate(matches)
        assert len(found)
        assert label in classes[found]


def test_unknown_set_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'digits'"):
        datasets.load("digit")


def test_failed_download_says_which(monkeypatch):
    def fail():
        raise Exception("URL fetch failure")

    monkeypatch.setitem(datasets.DATASETS, "fashion_mnist", fail)
    with pytest.raises(OSError, match="'fashion_mnist' could not be read or downloaded: URL fetch failure"):
        datasets.load("fashion_mnist")
