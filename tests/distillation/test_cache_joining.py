"""Data beside what was said of them: the right rows, other data refused, augmentation replayed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from distillation_oracles import data, hard_loss, mlp

from kdopt.distillation import cache_joining
from kdopt.distillation.cache.making import cache_teacher
from kdopt.distillation.distiller import Distiller
from kdopt.distillation.joined import split

X, Y = data(32)


def noisy(x, seed):
    return x + 0.1 * tf.random.stateless_normal(tf.shape(x), seed)


def views_by_hand(function, views):
    return [np.stack([function(x, [i, view]) for i, x in enumerate(X)]) for view in range(views)]


def carried(joined):
    """(inputs, labels, samples, views, logits) of a pass over joined data."""
    parts = []
    for x, y in joined.as_numpy_iterator():
        own, said = split(x)
        (said,) = said.values()
        parts.append((own, y, said["sample"], said["view"], said["output_0"]))
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


@pytest.mark.parametrize("memory", [2**20, 0])
def test_rows_follow_their_samples_in_any_order(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(cache_joining, "IN_MEMORY_BYTES", memory)
    teacher = mlp(2)
    expected = np.asarray(teacher(X))
    cache = cache_teacher(teacher, X, tmp_path, shard_bytes=200, verbose=0)
    joined = cache.join((X, Y), batch_size=5, seed=3)
    orders = [carried(joined) for _ in range(2)]
    for x, y, samples, views, logits in orders:
        assert sorted(samples) == list(range(32))
        np.testing.assert_array_equal(x, X[samples])
        np.testing.assert_array_equal(y, Y[samples])
        np.testing.assert_allclose(logits, expected[samples], rtol=1e-5, atol=1e-6)
        assert not views.any()
    assert not np.array_equal(orders[0][2], orders[1][2])  # a new order in each pass,
    np.testing.assert_array_equal(
        carried(cache.join((X, Y), batch_size=5, seed=3))[2], orders[0][2]
    )  # and the same again
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(5)
    x, y, samples, _, logits = carried(cache.join(batches).unbatch().shuffle(32, seed=1).batch(7))
    assert not np.array_equal(samples, range(32))
    np.testing.assert_array_equal(x, X[samples])
    np.testing.assert_allclose(logits, expected[samples], rtol=1e-5, atol=1e-6)
    part = carried(cache.join((X[:9], Y[:9]), shuffle=False))
    np.testing.assert_allclose(part[-1], expected[:9], rtol=1e-5, atol=1e-6)


def batches(x=X, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


def mixup(x, y):
    return 0.7 * x + 0.3 * tf.reverse(x, [0]), y


OTHER = {
    "data": (lambda: batches(X + 1e-6), "Sample.*0.*of the data is not the one that the cache"),
    "one of them": (lambda: batches(np.where(np.arange(32)[:, None] == 19, 0, X)), "Sample.*19"),
    "order": (lambda: batches().shuffle(4, seed=1), "Sample.*shuffle after joining"),
    "random augmentation": (lambda: batches().map(lambda x, y: (x + tf.random.normal([6]), y)), "augment="),
    "mixup": (lambda: batches().map(mixup), "changed at random before"),
    "skipped": (lambda: batches().skip(1), "Sample.*0"),
    "repeated": (lambda: batches().repeat(2), "go on with sample.*32.*holds 32.*before `.repeat"),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_data_are_refused_while_they_flow(tmp_path, name):
    make, message = OTHER[name]
    cache = cache_teacher(mlp(2), batches(), tmp_path, verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s){message}"):
        list(cache.join(make()))


def test_other_arrays_are_refused_at_once(tmp_path):
    cache = cache_teacher(mlp(2), X.astype("float64"), tmp_path, verbose=0)
    cache.join(X)  # Keras would cast it, too
    swapped = X[[*range(20), 21, 20, *range(22, 32)]]
    for given, message in (
        (swapped, r"Sample 20 of the data is not the one that the cache .* was made of"),
        (np.concatenate([X, X]), r"The data hold 64 samples, the cache '.*' 32"),
        (X.astype("int32"), r"made of inputs of the dtype float32; the data have int32"),
        ([X, X], r"made of inputs of the dtype float32; the data have float32, float32"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.join(given)


@pytest.mark.parametrize("form", ["arrays", "dataset"])
def test_views_are_replayed_as_the_teacher_saw_them(tmp_path, form):
    """One pass in each view is one epoch of the live teacher on each."""
    teacher, seen = mlp(2, "softmax"), views_by_hand(noisy, 2)
    student = mlp(1)
    live = Distiller(student=student, teacher=teacher)
    live.compile(keras.optimizers.SGD(0.1), hard_loss())
    for x in (*seen, seen[0]):
        live.fit(x, Y, batch_size=8, shuffle=False, verbose=0)
    given = (X, Y) if form == "arrays" else batches()
    cache = cache_teacher(teacher, given, tmp_path, augment=noisy, views=2, batch_size=5, verbose=0)
    joined = cache.join(given, augment=noisy, **({"batch_size": 8, "shuffle": False} if form == "arrays" else {}))
    assert joined.cardinality() == 8
    copy = mlp(1)
    distiller = Distiller(student=copy, teacher=cache)
    distiller.compile(keras.optimizers.SGD(0.1), hard_loss())
    distiller.fit(joined.repeat(), steps_per_epoch=4, epochs=3, shuffle=False, verbose=0)
    for ours, theirs in zip(copy.variables, student.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_which_views_come(tmp_path):
    teacher, seen = mlp(2), views_by_hand(noisy, 3)
    expected = np.stack([teacher(x) for x in seen])
    cache = cache_teacher(teacher, X, tmp_path, augment=noisy, views=3, shard_bytes=500, verbose=0)
    one = carried(cache.join((X, Y), augment=noisy, view=1))
    assert set(one[3]) == {1}
    drawn = cache.join((X, Y), augment=noisy, view="random", seed=1)
    passes = [carried(drawn) for _ in range(2)]
    for x, _, samples, views, logits in (one, *passes):
        np.testing.assert_allclose(x, np.stack(seen)[views, samples], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(logits, expected[views, samples], rtol=1e-5, atol=1e-5)
    by_sample = [views[np.argsort(samples)] for _, _, samples, views, _ in passes]
    assert all(set(views) == {0, 1, 2} for views in by_sample)
    assert not np.array_equal(*by_sample)
    again = carried(cache.join((X, Y), augment=noisy, view="random", seed=1))
    np.testing.assert_array_equal(again[3], passes[0][3])


def test_an_augmentation_that_is_not_the_same_is_refused(tmp_path):
    cache = cache_teacher(mlp(2), X, tmp_path, augment=noisy, views=2, verbose=0)
    for other in (lambda x, seed: noisy(x, seed + 1), lambda x, seed: x + 0.1 * tf.random.normal(tf.shape(x))):
        with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)Sample.*is not the one"):
            carried(cache.join((X, Y), augment=other))
    with pytest.raises(ValueError, match=r"made with `augment=noisy`; got None. Give `cache_teacher`"):
        cache.join((X, Y))
    plain = cache_teacher(mlp(2), X, tmp_path / "plain", verbose=0)
    with pytest.raises(ValueError, match=r"made without `augment`; got <function"):
        plain.join((X, Y), augment=noisy)


def test_a_second_cache_joins_shuffled_views(tmp_path):
    one, two = (cache_teacher(mlp(seed), X, tmp_path / str(seed), augment=noisy, views=2, verbose=0) for seed in (2, 3))
    joined = two.join(one.join((X, Y), augment=noisy, view="random"))
    expected = np.stack([mlp(3)(x) for x in views_by_hand(noisy, 2)])
    for x, _ in joined.as_numpy_iterator():
        said = split(x)[1]
        assert set(said) == {one.key, two.key}
        rows = expected[said[one.key]["view"], said[one.key]["sample"]]
        np.testing.assert_allclose(said[two.key]["output_0"], rows, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="give `augment`, `view` and `seed` to the first `join`"):
        two.join(one.join((X, Y), augment=noisy), augment=noisy)
    fewer = cache_teacher(mlp(4), X, tmp_path / "4", augment=noisy, verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)Sample.*is not the one"):
        list(fewer.join(one.join((X, Y), augment=noisy, view=1)))


BAD = {
    "batched twice": (lambda cache: cache.join(batches(), batch_size=8), ValueError, "for arrays"),
    "shuffled": (lambda cache: cache.join(batches(), shuffle=True), ValueError, "shuffle it after joining"),
    "view": (lambda cache: cache.join(X, view=1), ValueError, "`view` must be 'cycle', 'random' or a number below 1"),
    "batch size": (lambda cache: cache.join(X, batch_size=0), ValueError, "`batch_size`"),
    "shuffle": (lambda cache: cache.join(X, shuffle="yes"), TypeError, "`shuffle`"),
    "generator": (lambda cache: cache.join(iter([X])), TypeError, "must be arrays"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(tmp_path, name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call(cache_teacher(mlp(2), X, tmp_path, verbose=0))


def test_weights_without_labels(tmp_path):
    cache = cache_teacher(mlp(2), X, tmp_path, verbose=0)
    (x, y, weights) = next(iter(cache.join((X, None, np.ones(32, "float32")), batch_size=4)))
    assert y is None
    assert weights.shape == (4,)
    assert list(x) == ["kdopt/inputs", "kdopt/said"]
