"""A cache in the place of the teacher: what the Distiller asks of it, saves of it, and says without it."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
from distillation_oracles import CLASSES, data, hard_loss, mlp
from keras import layers

from kdopt.distillation.cache.cache import TeacherCache
from kdopt.distillation.cache.making import cache_teacher
from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.attention_maps import AttentionMapsKL
from kdopt.distillation.losses.hint import Hint
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.distillation.losses.overhaul import OverhaulFeature
from kdopt.distillation.taps import resolve, tensors_of

X, Y = data(32)


def compiled(cache, student=None, losses="soft_targets", **options):
    distiller = Distiller(student=student or mlp(1, name="small"), teacher=cache, distillation_losses=losses, **options)
    distiller.compile(keras.optimizers.SGD(0.1), hard_loss(), metrics=["accuracy"])
    return distiller


def weights(model):
    return [np.asarray(v) for v in model.variables]


@pytest.mark.parametrize("with_model", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_saved_loaded_and_gone_on_with(tmp_path, with_model):
    teacher = mlp(2, "softmax")
    cache_teacher(teacher, X, tmp_path / "c", taps=1, verbose=0)
    cache = TeacherCache.open(tmp_path / "c", teacher=teacher if with_model else None)
    distiller = compiled(cache, losses=[SoftTargets(2.0), Hint(1, 1)])
    assert distiller.teacher is cache
    joined = cache.join((X, Y), batch_size=8, shuffle=False)
    distiller.fit(joined, shuffle=False, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert (loaded.teacher.path, loaded.teacher.key) == (str(tmp_path / "c"), cache.key)
    for model in (distiller, loaded):
        model.fit(joined, shuffle=False, verbose=0)
    for ours, theirs in zip(weights(loaded), weights(distiller), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    if with_model:
        for ours, theirs in zip(loaded.teacher.model.get_weights(), teacher.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        expected = distiller.evaluate(X, Y, verbose=0, return_dict=True)
        assert loaded.evaluate(X, Y, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-5)
    assert Distiller.from_config(distiller.get_config()).teacher.key == cache.key


def test_a_distiller_whose_cache_is_gone(tmp_path):
    cache = cache_teacher(mlp(2), X, tmp_path / "c", verbose=0)
    compiled(cache).save(tmp_path / "d.keras")
    shutil.move(tmp_path / "c", tmp_path / "elsewhere")
    with pytest.raises(Exception, match=r"learned from the teacher cache '.*', which is not there .*Put it back"):
        keras.saving.load_model(tmp_path / "d.keras")
    cache_teacher(mlp(3), X, tmp_path / "c", verbose=0)
    with pytest.raises(Exception, match=rf"learned from a cache of the key {cache.key}; the one in .* another teacher"):
        keras.saving.load_model(tmp_path / "d.keras")


def test_data_that_were_not_joined(tmp_path):
    teacher = mlp(2)
    cache = cache_teacher(teacher, X, tmp_path / "c", verbose=0)
    other = cache_teacher(mlp(3), X, tmp_path / "other", verbose=0)
    for opened in (cache, TeacherCache.open(tmp_path / "c")):
        distiller = compiled(opened)
        with pytest.raises(ValueError, match=r"carry no answers of the teacher in the cache .*cache.join\(\(x, y\)"):
            distiller.fit(X, Y, verbose=0)
        with pytest.raises(ValueError, match=rf"they carry those of {other.key}.*Train on `cache.join"):
            distiller.fit(other.join((X, Y)), shuffle=False, verbose=0)
    with pytest.raises(ValueError, match=r"its model was not given.*TeacherCache.open\(path, teacher=model\)"):
        distiller.evaluate(X, Y, verbose=0)
    np.testing.assert_allclose(distiller.predict(X, verbose=0), distiller.student(X), rtol=1e-5, atol=1e-6)


def test_validation_by_the_model_or_by_a_cache_of_its_own(tmp_path):
    teacher, (x, y) = mlp(2, "softmax"), data(16, seed=5)
    train = cache_teacher(teacher, X, tmp_path / "train", verbose=0)
    held_out = cache_teacher(teacher, x, tmp_path / "held_out", verbose=0)
    assert train.key == held_out.key
    joined = train.join((X, Y), batch_size=8)
    live = compiled(train).fit(joined, validation_data=(x, y), shuffle=False, verbose=0).history
    alone = compiled(TeacherCache.open(tmp_path / "train"))
    expected = compiled(teacher, alone.student).evaluate(x, y, verbose=0, return_dict=True)
    got = alone.evaluate(held_out.join((x, y)), verbose=0, return_dict=True)
    assert got == pytest.approx(expected, rel=1e-5)
    assert {name for name in live if name.startswith("val_")} == {f"val_{name}" for name in got}
    np.testing.assert_allclose(alone.predict(joined, verbose=0).shape, (32, CLASSES))


def staged(seed):
    """Padded, with a nested model, a shared layer and an attention layer."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((12, 12, 2))
    x = layers.ZeroPadding2D(name="pad")(layers.Rescaling(2.0, name="scale")(inputs))
    inner = keras.Input((14, 14, 2))
    body = layers.Conv2D(4, 3, 2, name="conv")(layers.Conv2D(3, 3, name="early")(inner))
    x = keras.Model(inner, layers.BatchNormalization(name="norm")(body), name="body")(x)
    shared = layers.Conv2D(4, 1, name="shared")
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="after")(shared(shared(x))))
    x = layers.Conv2D(6, 3, 2, name="last")(x)
    tokens = layers.Reshape((-1, 6), name="tokens")(x)
    x = layers.MultiHeadAttention(1, 2, name="look")(tokens, tokens)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="head")(x))


IMAGES = np.random.default_rng(0).normal(size=(8, 12, 12, 2)).astype("float32")


@pytest.mark.parametrize(
    "taps", ["stages", "embedding", 5, "shared@1", "body/norm", re.compile("conv|relu"), ["last", "pool"]]
)
@pytest.mark.parametrize("with_model", [True, False])
def test_taps_name_the_same_tensors_without_the_teacher(tmp_path, taps, with_model):
    teacher = staged(2)
    cache_teacher(teacher, IMAGES, tmp_path, taps=taps, verbose=0)
    cache = TeacherCache.open(tmp_path, teacher if with_model else None)
    found = resolve(taps, cache.tensors(None), teacher if with_model else cache, "teacher")
    expected = resolve(taps, tensors_of(teacher, teacher.inputs[0]), teacher, "teacher")
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.name, ours.shape, ours.call, ours.calls) == (theirs.name, theirs.shape, theirs.call, theirs.calls)
        assert (ours.operation is theirs.operation) == with_model


def test_taps_that_are_not_in_the_cache(tmp_path):
    teacher = staged(2)
    cache_teacher(teacher, IMAGES, tmp_path / "taps", taps=["relu", "after"], verbose=0)
    cache_teacher(teacher, IMAGES, tmp_path / "none", verbose=0)
    cache, bare = TeacherCache.open(tmp_path / "taps"), TeacherCache.open(tmp_path / "none")
    for opened, loss, message in (
        (cache, Hint("last"), r"'last' is not in the cache '.*', which holds 'after', 'relu'|'relu', 'after'. Tap one"),
        (cache, Hint("lasts", "lasts"), r"Nothing to tap in the student"),
        (cache, Hint("last", "lasts"), r"Nothing to tap in the teacher .*Did you mean 'last'"),
        (cache, AttentionMapsKL("look"), r"'look' of the teacher is an attention layer: its queries"),
        (bare, Hint("relu"), r"holds what the teacher returns, but the loss looks at its inner layers"),
        (cache, OverhaulFeature("after"), r"reads the margin from the teacher's 'after'.*open\(path, teacher=model\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Distiller(student=staged(1), teacher=opened, distillation_losses=loss)
    given = TeacherCache.open(tmp_path / "taps", teacher=teacher)
    live, cached = (
        Distiller(student=staged(1), teacher=one, distillation_losses=OverhaulFeature("after"), student_loss_weight=0)
        for one in (teacher, given)
    )
    for distiller in (live, cached):
        distiller.compile("sgd")
    expected = live.evaluate(IMAGES, verbose=0, return_dict=True)
    assert cached.evaluate(given.join(IMAGES), verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_shared_layer_tapped_in_its_second_call(tmp_path):
    teacher = staged(2)
    cache_teacher(teacher, IMAGES, tmp_path, taps=["shared@0", "shared@1"], verbose=0)
    cache = TeacherCache.open(tmp_path)
    found = []
    for one, given in ((teacher, IMAGES), (cache, cache.join(IMAGES))):
        losses = [Hint("shared@1", name="second"), Hint("shared@0", ["shared@1"], name="crossed")]
        distiller = Distiller(student=staged(1), teacher=one, distillation_losses=losses, student_loss_weight=0)
        distiller.compile("sgd")
        found.append(distiller.evaluate(given, verbose=0, return_dict=True))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_arguments_that_do_not_go_with_a_cache(tmp_path):
    cache = cache_teacher(mlp(2), X, tmp_path, verbose=0)
    with pytest.raises(ValueError, match=r"leave `teacher_preprocessing` out.*cache_teacher\(..., preprocessing="):
        Distiller(student=mlp(1), teacher=cache, teacher_preprocessing=lambda x: x)
    with pytest.raises(ValueError, match="are the same model"):
        Distiller(student=cache.model, teacher=cache)
    with pytest.raises(ValueError, match="differs in shape"):
        Distiller(student=mlp(1, units=5), teacher=TeacherCache.open(tmp_path))
    with pytest.raises(TypeError, match="`student` must be a keras.Model"):
        Distiller(student=3, teacher=TeacherCache.open(tmp_path))
    with pytest.raises(ValueError, match="is for the teacher"):
        TeacherCache.open(tmp_path, preprocessing=lambda x: x)
    assert repr(cache) == f"TeacherCache({str(tmp_path)!r}: {cache.name!r} on 32 samples)"


def test_an_unbuilt_student_and_class_weights(tmp_path):
    cache = cache_teacher(mlp(2), X, tmp_path, taps=1, verbose=0)
    student = keras.Sequential([layers.Dense(8, name="first"), layers.Dense(CLASSES)])
    distiller = compiled(cache, student, [SoftTargets(2.0), Hint("first", 1)])
    joined = cache.join((X, Y), batch_size=8)
    history = distiller.fit(joined, class_weight={0: 1.0, 1: 2.0, 2: 0.5}, epochs=8, shuffle=False, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]


DISTRIBUTED = """
    import os, sys, json
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras, tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.path.insert(0, sys.argv[1])
    from distillation_oracles import data, hard_loss, mlp
    from kdopt.distillation import Distiller, SoftTargets, cache_teacher, losses
    from kdopt.distillation.cache import joining

    x, y = data(64)
    cache = cache_teacher(mlp(2), x, sys.argv[2], taps=1, verbose=0)
    joining.IN_MEMORY_BYTES = 64 * 12  # the logits; features are read

    def run(strategy):
        with strategy.scope():
            student = mlp(1)
            student.layers[2].trainable = False
            both = [SoftTargets(4.0), losses.Hint(1, 1)]
            distiller = Distiller(student=student, teacher=cache, distillation_losses=both)
            distiller.compile(keras.optimizers.SGD(0.1), loss=hard_loss())
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
        history = distiller.fit(cache.join(dataset), epochs=2, shuffle=False, verbose=0).history
        return history, [w.tolist() for w in student.get_weights()]

    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert two.num_replicas_in_sync == 2
    print(json.dumps([run(tf.distribute.get_strategy()), run(two)]))
"""


@pytest.mark.slow
def test_two_replicas_train_as_one(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(DISTRIBUTED), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (one, one_weights), (two, two_weights) = json.loads(done.stdout.splitlines()[-1])
    for key, values in one.items():
        np.testing.assert_allclose(two[key], values, rtol=1e-4, err_msg=key)
    for ours, expected in zip(two_weights, one_weights, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)
