"""Agreement on data that got worse, and the pictures of it."""

import io

import keras
import numpy as np
import pytest
from distillation_oracles import data, mlp
from keras import layers as L

from kdopt.core.corruptions import blur, brightness, contrast
from kdopt.distillation import agreement
from kdopt.distillation.comparing.corrupting import NAMES, corruptions_for, noise


def images(samples=24, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    shades = rng.uniform(0, 255, (samples, 1, 1, 3)) * np.linspace(0.2, 1, 64).reshape(8, 8, 1)
    return np.clip(shades + rng.normal(size=shades.shape) * 20, 0, 255).astype(dtype)


def net(seed):
    keras.utils.set_random_seed(seed)
    x = keras.Input((8, 8, 3))
    h = L.Conv2D(4, 3, activation="relu")(L.Rescaling(1 / 255)(x))
    return keras.Model(x, L.Dense(3, activation="softmax", kernel_initializer="random_normal")(L.Flatten()(h)))


def test_noise_is_a_share_of_the_datas_own_deviation():
    x = np.random.default_rng(0).normal(5, 3, (400, 200)).astype("float32")
    for severity in (1, 5):
        added = noise(x, severity, seed=1) - x
        # 80,000 values: the standard error of the deviation is 0.25 %.
        assert added.std() == pytest.approx(0.1 * severity * x.std(), rel=0.01)
        assert abs(added.mean()) < 0.02 * added.std()
    np.testing.assert_array_equal(noise(x, 1, seed=1), noise(x, 1, seed=1))
    assert np.abs(noise(x, 1, seed=2) - noise(x, 1, seed=1)).max() > 0.5
    pictures = images()
    strong = noise(pictures, 9)
    assert (strong.min(), strong.max()) == (pictures.min(), pictures.max())


def test_every_corruption_is_measured_with_both_nets():
    teacher, student, x = net(1), net(2), images()
    y = teacher.predict(x, verbose=0).argmax(-1)
    found = agreement(teacher, student, (x, y), severities=[1, 4], seed=3, batch_size=10)
    assert [(row.name, row.severity) for row in found.corruptions] == [(n, s) for n in NAMES for s in (1, 4)]
    functions = {
        "noise": lambda x, s: noise(x, s, seed=3),
        "blur": blur,
        "contrast": contrast,
        "brightness": brightness,
    }
    for row in found.corruptions:
        worse = functions[row.name](x, row.severity)
        p, q = (model.predict(worse, verbose=0).argmax(-1) for model in (teacher, student))
        assert row.top1_agreement == np.mean(p == q)
        assert row.teacher_accuracy == np.mean(p == y)
        assert row.student_accuracy == np.mean(q == y)
    assert found.teacher_accuracy == 1
    assert len({row.teacher_accuracy for row in found.corruptions}) > 2  # they do change answers


def test_bytes_stay_bytes():
    x = images(dtype="uint8")
    for name, corrupt in corruptions_for("auto", x, 0).items():
        worse = corrupt(x, 3)
        assert worse.dtype == np.uint8
        function = {"noise": noise, "blur": blur, "contrast": contrast, "brightness": brightness}[name]
        np.testing.assert_array_equal(worse, np.round(function(x.astype("float32"), 3)))
        assert np.abs(worse.astype(int) - x).mean() > 1


def test_what_fits_is_chosen():
    assert list(corruptions_for("auto", images(), 0)) == list(NAMES)
    assert list(corruptions_for("auto", np.ones((4, 9), "float32"), 0)) == ["noise"]
    assert list(corruptions_for("auto", np.ones((4, 9), int), 0)) == []
    assert list(corruptions_for(None, images(), 0)) == []
    assert list(corruptions_for(["contrast", "noise"], images(), 0)) == ["contrast", "noise"]
    with pytest.raises(ValueError, match="'darker' needs floats, or images of bytes; the data is int64"):
        corruptions_for({"darker": noise}, np.ones((4, 9), int), 0)


def test_corruptions_of_ones_own():
    teacher, student, x = mlp(1), mlp(2), data(40)[0]
    found = agreement(teacher, student, x, corruptions={"flip": lambda x, severity: -severity * x}, severities=[1, 2])
    p, q = (model.predict(-2 * x, verbose=0).argmax(-1) for model in (teacher, student))
    assert found.corruptions[1].name == "flip"
    assert found.corruptions[1].top1_agreement == np.mean(p == q)
    with pytest.raises(ValueError, match=r"The teacher answers 40 of 40 samples \(gone, severity 1\) with NaN"):
        agreement(teacher, student, x, corruptions={"gone": lambda x, severity: x * np.nan})


def heights(axes):
    return [patch.get_height() for patch in axes.patches]


def test_the_picture():
    teacher, student, x = net(1), net(2), images()
    y = teacher.predict(x, verbose=0).argmax(-1)
    found = agreement(teacher, student, (x, y), severities=[1, 4], bins=5)
    figure = found.plot()
    upper, lower = figure.subfigs
    reliability, _, shares, _ = upper.axes
    bins = found.teacher_reliability
    there = [place for place, count in enumerate(bins.counts) if count]
    for place, bar in zip(there, reliability.patches, strict=False):
        assert bar.get_x() == pytest.approx(100 * bins.edges[place])
        assert bar.get_height() == pytest.approx(100 * min(bins.accuracy[place], bins.confidence[place]))
    np.testing.assert_allclose(heights(shares), 100 * np.array(bins.counts) / 24)
    assert "student: calibration error" in upper.axes[1].get_title(loc="left")
    (bars,) = lower.axes
    rows = [found, *found.corruptions]
    wanted = [row.teacher_accuracy for row in rows], [row.student_accuracy for row in rows]
    wanted = [*wanted[0], *wanted[1], *(row.top1_agreement for row in rows)]
    np.testing.assert_allclose(heights(bars), 100 * np.array(wanted))
    figure.savefig(io.BytesIO())


def test_pictures_of_less():
    blind = agreement(mlp(1), mlp(2), data(20)[0], severities=[1]).plot()
    assert len(blind.subfigs) == 1
    assert len(heights(blind.subfigs[0].axes[0])) == 2
    clean = agreement(mlp(1), mlp(2), data(20), corruptions=None).plot()
    assert len(clean.subfigs[0].axes) == 4
    with pytest.raises(ValueError, match="nothing to draw: `agreement` got no labels, and no corruptions"):
        agreement(mlp(1), mlp(2), data(20)[0], corruptions=None).plot()
