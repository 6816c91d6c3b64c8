"""Training on what a teacher said is training with the teacher."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from distillation_oracles import CLASSES, data, hard_loss, mlp
from keras import layers

from kdopt.distillation.cache import joining
from kdopt.distillation.cache.cache import TeacherCache
from kdopt.distillation.cache.making import cache_teacher
from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.attention import AttentionTransfer
from kdopt.distillation.losses.hint import Hint
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.distillation.losses.relational import RelationalDistance

X, Y = data(48)


def fit(student, teacher, losses, given, epochs=2, jit=False, steps=1, **options):
    """The student's weights and the logs of a few SGD steps."""
    keras.utils.set_random_seed(7)  # projectors
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=losses, **options)
    hard = None if options.get("student_loss_weight") == 0 else hard_loss()
    distiller.compile(keras.optimizers.SGD(0.1), hard, jit_compile=jit, steps_per_execution=steps)
    arguments, size = (given, 8) if isinstance(given, tuple) else ((given,), None)
    history = distiller.fit(*arguments, batch_size=size, epochs=epochs, shuffle=False, verbose=0)
    return [np.asarray(v) for v in distiller.variables], history.history


def assert_same(one, other, tolerance=1e-5):
    for ours, theirs in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    assert set(one[1]) == set(other[1])
    for name, values in one[1].items():
        np.testing.assert_allclose(values, other[1][name], rtol=tolerance, atol=tolerance, err_msg=name)


def both_losses():
    return [SoftTargets(3.0), Hint(1, 1)]


@pytest.fixture(scope="module")
def live():
    """Training with the teacher itself."""
    return fit(mlp(1), mlp(2, "softmax"), both_losses(), (X, Y))


@pytest.mark.parametrize("way", ["arrays", "dataset", "jit", "steps"])
def test_outputs_and_taps(tmp_path, monkeypatch, live, way):
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    cache_teacher(mlp(2, "softmax"), (X, Y), tmp_path, taps=[1, 2], batch_size=20, shard_bytes=900, verbose=0)
    if way == "dataset":
        monkeypatch.setattr(joining, "IN_MEMORY_BYTES", 0)  # read from the mapped shards
    cache = TeacherCache.open(tmp_path)
    joined = cache.join(batches) if way == "dataset" else cache.join((X, Y), batch_size=8, shuffle=False)
    assert joined.cardinality() == 6
    options = {"jit": way == "jit", "steps": 3 if way == "steps" else 1}
    assert_same(live, fit(mlp(1), cache, both_losses(), joined, **options))
    assert (cache.samples, cache.views, len(cache.taps)) == (48, 1, 2)


def test_float16_is_half_the_size_and_close(tmp_path, live):
    teacher = mlp(2, "softmax")
    small = cache_teacher(teacher, X, tmp_path / "16", taps=1, dtype="float16", verbose=0)
    full = cache_teacher(teacher, X, tmp_path / "32", taps=1, verbose=0)
    header = 48 * 8 + 300  # a fingerprint for each sample, and what NumPy writes before them
    assert small.size_bytes - 48 * 11 * 2 < header
    assert full.size_bytes - 48 * 11 * 4 < header
    assert_same(live, fit(mlp(1), small, both_losses(), small.join((X, Y), batch_size=8, shuffle=False)), 2e-3)


@pytest.mark.parametrize(("ends", "dtype"), [("softmax", "float16"), ("sigmoid", "float32")])
def test_small_probabilities_survive(tmp_path, ends, dtype):
    """Logits of +-60: probabilities of 1e-26, which float16 does not hold and 1 - p does not resolve."""
    teacher = mlp(2, ends)
    teacher.layers[-1].kernel.assign(np.asarray(teacher.layers[-1].kernel) * 40)
    cache = cache_teacher(teacher, X, tmp_path, dtype=dtype, verbose=0)
    values = []
    for one, given in ((teacher, X), (cache, cache.join(X, batch_size=8, shuffle=False))):
        loss = SoftTargets(20.0, activation=ends)
        distiller = Distiller(student=mlp(1, ends), teacher=one, distillation_losses=loss, student_loss_weight=0)
        distiller.compile("sgd")
        values.append(distiller.evaluate(given, batch_size=8 if one is teacher else None, verbose=0, return_dict=True))
    assert values[0]["loss"] > 1
    assert values[0] == pytest.approx(values[1], rel=1e-5 if dtype == "float32" else 2e-3)


def pooled(seed, activation="softmax"):
    """Probabilities that Keras keeps no logits of: the mean of two softmax vectors, or the larger of each."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    one = layers.Dense(CLASSES, activation="softmax", name=f"a{seed}")(inputs)
    other = layers.Dense(CLASSES, activation="softmax", name=f"b{seed}")(inputs)
    return keras.Model(inputs, (layers.Average if activation == "softmax" else layers.Maximum)()([one, other]))


@pytest.mark.parametrize("kind", ["softmax", "maximum"])
def test_probabilities_without_logits_come_back_as_they_were(tmp_path, kind):
    teacher = pooled(2, kind)
    expected = np.asarray(teacher(X))
    cache = cache_teacher(teacher, X, tmp_path, verbose=0)
    seen = []

    def function(theirs, ours):
        seen.append(theirs)
        return keras.ops.mean(keras.ops.square(theirs - ours), axis=-1)

    student = pooled(1, kind)
    distiller = Distiller(student=student, teacher=cache, distillation_losses=function, student_loss_weight=0)
    distiller.compile("sgd")
    value = distiller.evaluate(cache.join(X, shuffle=False), verbose=0)
    loss = value[0] if isinstance(value, list) else value
    np.testing.assert_allclose(loss, np.mean((expected - np.asarray(student(X))) ** 2), rtol=1e-5)


def two_headed(seed, form):
    keras.utils.set_random_seed(seed)
    inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((2,), name="b")}
    x = layers.Dense(8, activation="tanh")(layers.Concatenate()([inputs["a"], inputs["b"]]))
    heads = {"kind": layers.Dense(CLASSES, activation="softmax")(x), "tags": layers.Dense(4, activation="sigmoid")(x)}
    return keras.Model(inputs, heads) if form is dict else keras.Model(list(inputs.values()), list(heads.values()))


@pytest.mark.parametrize("form", [dict, list])
def test_several_inputs_and_outputs(tmp_path, form):
    x = {"a": X, "b": X[:, :2] * 2} if form is dict else [X, X[:, :2] * 2]
    teacher, options = two_headed(2, form), {"student_loss_weight": 0, "epochs": 1}
    batches = tf.data.Dataset.from_tensor_slices((x if form is dict else tuple(x),)).batch(8)
    expected = fit(two_headed(1, form), teacher, SoftTargets(2.0), batches, **options)
    cache = cache_teacher(teacher, batches if form is dict else x, tmp_path, verbose=0)
    joined = cache.join(batches) if form is list else cache.join(x, batch_size=8, shuffle=False)
    assert_same(expected, fit(two_headed(1, form), cache, SoftTargets(2.0), joined, **options))
    x["b" if form is dict else 1] = X[:, 2:4]
    with pytest.raises(ValueError, match=r"Sample 0 of the data is not the one"):
        cache.join(x)


def test_a_mixed_precision_teacher(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        teacher = mlp(2, "softmax")
    finally:
        keras.config.set_dtype_policy("float32")
    expected = fit(mlp(1), teacher, SoftTargets(2.0), (X, Y))
    cache = cache_teacher(teacher, X, tmp_path, verbose=0)
    assert_same(expected, fit(mlp(1), cache, SoftTargets(2.0), cache.join((X, Y), batch_size=8, shuffle=False)), 1e-4)


def conv(seed, width, size):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 1))
    x = layers.Conv2D(width, 3, padding="same", activation="relu", name="stem")(inputs)
    x = layers.Conv2D(width, 3, 2, padding="same", activation="relu", name="down")(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def test_only_the_preprocessing_sees_what_the_student_does_not(tmp_path):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(24, 8, 8, 1)).astype("float32"), generator.integers(0, CLASSES, 24)
    teacher, resize = conv(2, 6, 16), layers.Resizing(16, 16)
    losses = lambda: [SoftTargets(2.0), AttentionTransfer("down", "down")]  # noqa: E731
    expected = fit(conv(1, 4, 8), teacher, losses(), (x, y), teacher_preprocessing=resize)
    cache = cache_teacher(teacher, x, tmp_path, taps="stages", preprocessing=resize, verbose=0)
    assert cache.taps == ("stem", "down")
    joined = cache.join((x, y), batch_size=8, shuffle=False)
    assert_same(expected, fit(conv(1, 4, 8), cache, losses(), joined))


def test_several_teachers_cached_and_live(tmp_path):
    teachers = [mlp(2, "softmax"), mlp(3), mlp(4)]
    options = {"teacher_weights": "confidence"}
    expected = fit(mlp(1), teachers, SoftTargets(2.0), (X, Y), **options)
    one, two = (cache_teacher(teacher, X, tmp_path / teacher.name, verbose=0) for teacher in teachers[:2])
    joined = two.join(one.join((X, Y), batch_size=8, shuffle=False))
    assert_same(expected, fit(mlp(1), [one, two, teachers[2]], SoftTargets(2.0), joined, **options))


def test_stock_losses_and_sample_weights(tmp_path):
    teacher, weights = mlp(2, width=8), np.linspace(0, 2, 48).astype("float32")
    stock = lambda: [keras.distillation.LogitsDistillation(2.0, loss=keras.losses.KLDivergence())]  # noqa: E731
    cache = cache_teacher(teacher, X, tmp_path, verbose=0)
    cache.model = None
    expected = fit(mlp(1), teacher, stock(), (X, Y))
    assert_same(expected, fit(mlp(1), cache, stock(), cache.join((X, Y), batch_size=8, shuffle=False)))
    expected = fit(mlp(1), teacher, SoftTargets(2.0), tf.data.Dataset.from_tensor_slices((X, Y, weights)).batch(8))
    joined = cache.join((X, Y, weights), batch_size=8, shuffle=False)
    assert_same(expected, fit(mlp(1), cache, SoftTargets(2.0), joined))


def reader(seed, masks):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=masks)(inputs)
    x = layers.Dense(5, activation="tanh", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))


def test_the_mask_of_a_tap_comes_with_it(tmp_path):
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 9, (24, 7)).astype("int32")
    tokens[:, 4:] = 0
    y = generator.integers(0, CLASSES, 24)
    teacher, loss = reader(2, True), lambda: RelationalDistance("hidden")
    expected = fit(reader(1, False), teacher, loss(), (tokens, y))
    cache = cache_teacher(teacher, tokens, tmp_path, taps="hidden", verbose=0)
    joined = cache.join((tokens, y), batch_size=8, shuffle=False)
    assert_same(expected, fit(reader(1, False), TeacherCache.open(tmp_path), loss(), joined))
