"""Zeros hold through whatever trains the model next, and go when they are released."""

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.distillation import Distiller
from kdopt.pruning.callbacks import GradualPruning
from kdopt.pruning.prune import prune
from kdopt.pruning.zeros import keep_zeros, masks_of
from kdopt.quantization import quantize_aware
from kdopt.schedules import Constant

X = np.random.default_rng(0).normal(size=(64, 6, 6, 2)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 64)
CE = "sparse_categorical_crossentropy"


def make_model(name="net", dtype=None):
    """Conv, BatchNormalization, a residual, a depthwise layer, a concatenation and a nested head."""
    x = keras.Input((6, 6, 2))
    h = layers.Conv2D(4, 3, padding="same", name="conv", dtype=dtype)(x)
    h = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm", dtype=dtype)(h))
    h = layers.Add(name="add")([h, layers.DepthwiseConv2D(3, padding="same", name="depthwise", dtype=dtype)(h)])
    h = layers.Concatenate(name="join")([h, layers.Conv2D(2, 1, name="side")(h)])
    head = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, name="hidden"), layers.Dense(3, "softmax", name="out", dtype="float32")],
        name="head",
    )
    return keras.Model(x, head(layers.GlobalAveragePooling2D(name="pool")(h)), name=name)


PATHS = ["conv", "depthwise", "side", "head/hidden", "head/out"]


class Twice(keras.Model):
    """Subclassed."""

    def __init__(self):
        super().__init__()
        self.one, self.two = layers.Dense(8, name="one"), layers.Dense(3, "softmax", name="two")

    def call(self, x):
        return self.two(self.one(x))


def compiled(model, optimizer=None, **options):
    model.compile(optimizer or keras.optimizers.Adam(0.02), CE, **options)
    return model


def fit(model, x=X, epochs=1):
    """8 updates an epoch."""
    return model.fit(x, Y, batch_size=8, epochs=epochs, verbose=0)


def kernels(model):
    head = model.get_layer("head")
    return [model.get_layer(name).kernel.numpy() for name in PATHS[:3]] + [
        layer.kernel.numpy() for layer in head.layers
    ]


def assert_zero_where(kernels, masks):
    for kernel, mask in zip(kernels, masks, strict=True):
        assert not mask.all()
        np.testing.assert_array_equal(kernel != 0, mask)


def test_masks_of_says_what_is_not_zero():
    sparse, _ = prune(make_model(), 0.5)
    masks = masks_of(sparse)
    assert list(masks) == PATHS
    for kernel, mask in zip(kernels(sparse), masks.values(), strict=True):
        np.testing.assert_array_equal(mask, kernel != 0)
    assert list(masks_of(sparse, layers=["head"])) == PATHS[3:]


SETTINGS = {
    "plain": (None, {}, None),
    "jit_compile": (None, {"jit_compile": True}, None),
    "eager": (None, {"run_eagerly": True}, None),
    "steps_per_execution": (None, {"steps_per_execution": 4}, None),
    "mixed_float16": (None, {}, "mixed_float16"),
    "averages": (lambda: keras.optimizers.Adam(0.02, use_ema=True), {}, None),
    "accumulation": (lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), {}, None),
}


_SLOW = {"jit_compile", "accumulation", "eager", "steps_per_execution"}


@pytest.mark.parametrize(
    "setting", [pytest.param(one, marks=pytest.mark.slow) if one in _SLOW else one for one in SETTINGS]
)
def test_a_model_that_was_fit_before_keeps_its_zeros_until_released(setting, recwarn):
    make_optimizer, options, dtype = SETTINGS[setting]
    hidden = layers.Dense(9, "relu", name="hidden", dtype=dtype)
    model = keras.Sequential([keras.Input((2,)), hidden, layers.Dense(3, "softmax", name="out", dtype="float32")])
    compiled(model, make_optimizer() if make_optimizer else None, **options)
    x = X[:, 0, 0]
    fit(model, x)
    masks = masks_of(prune(model, 0.5)[0])
    before = hidden.kernel.numpy()
    zeros = keep_zeros(model, masks)
    fit(model, x)
    assert_zero_where([layer.kernel.numpy() for layer in model.layers], masks.values())
    assert np.any((hidden.kernel.numpy() != before)[masks["hidden"]])  # a ReLU may be dead
    zeros.release()
    assert all(variable.constraint is None for variable in model.trainable_variables)
    assert_zero_where([layer.kernel.numpy() for layer in model.layers], masks.values())
    fit(model, x)
    assert np.count_nonzero(hidden.kernel.numpy()) > 14
    assert [str(w.message) for w in recwarn if "keep_zeros" in str(w.message)] == []


def test_a_fresh_model_that_is_compiled_later_and_again():
    source = compiled(make_model())
    pruning = GradualPruning(Constant(0.5))
    assert pruning.masks == {}
    source.fit(X, Y, batch_size=8, verbose=0, callbacks=[pruning])
    assert list(pruning.masks) == PATHS
    assert_zero_where(kernels(source), pruning.masks.values())
    fresh = make_model("other")
    with keep_zeros(fresh, pruning.masks) as zeros:
        assert_zero_where(kernels(fresh), pruning.masks.values())  # at once
        for _ in range(2):
            fit(compiled(fresh))
            assert_zero_where(kernels(fresh), pruning.masks.values())
        assert list(zeros.masks) == PATHS
    fit(fresh)
    assert np.all(kernels(fresh)[0] != 0)


def test_it_holds_what_is_left_of_the_users_constraint():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, kernel_constraint=keras.constraints.UnitNorm(axis=0), name="d")]
    )
    model = prune(model, 0.5)[0]
    model.compile("adam", "mse")
    own = model.layers[0].kernel.constraint
    mask = masks_of(model)["d"]
    with keep_zeros(model):
        model.fit(X[:, 0, 0, [0, 1, 0, 1]], X[:, 0, :4].reshape(64, 8), verbose=0)
        kernel = model.layers[0].kernel.numpy()
        np.testing.assert_array_equal(kernel != 0, mask)
        np.testing.assert_allclose(np.linalg.norm(kernel, axis=0)[mask.any(axis=0)], 1, rtol=1e-5)
    assert model.layers[0].kernel.constraint is own


def test_channels_that_are_gone_stay_gone_with_bias_and_norm():
    model = compiled(make_model())
    fit(model)
    sparse, _ = prune(model, 0.5, "l2", "channel", layers=["conv", "side"])
    masks = masks_of(sparse)
    assert list(masks) == [*PATHS, "conv/bias", "norm/gamma", "norm/beta", "side/bias"]
    gone = ~masks["norm/beta"]
    assert gone.sum() == 2
    with keep_zeros(sparse):
        fit(sparse)
    conv, norm = sparse.get_layer("conv"), sparse.get_layer("norm")
    for vector in (conv.bias, norm.gamma, norm.beta, sparse.get_layer("side").bias):
        assert np.count_nonzero(vector.numpy() == 0) == len(gone) / 2 or vector.shape == (2,)
    np.testing.assert_array_equal(norm.beta.numpy() == 0, gone)
    inner = keras.Model(sparse.inputs, sparse.get_layer("relu").output)
    assert not inner.predict(X, verbose=0)[..., gone].any()
    assert norm.beta.constraint is None


def test_a_distiller_holds_its_students_zeros():
    student, _ = prune(make_model("student"), 0.5)
    masks = masks_of(student)
    distiller = compiled(Distiller(student=student, teacher=make_model("teacher")))
    distiller.evaluate(X, Y, verbose=0)
    with keep_zeros(distiller, masks):  # paths of the student, which are "student/conv" here
        fit(distiller)
        assert_zero_where(kernels(student), masks.values())
    with keep_zeros(distiller) as zeros:
        assert list(zeros.masks) == [f"student/{path}" for path in PATHS]
        fit(distiller)
    assert_zero_where(kernels(student), masks.values())
    with keep_zeros(student, zeros.masks) as back:  # and paths of the Distiller for the student
        assert list(back.masks) == PATHS


def test_a_student_of_a_distiller_that_was_fit_before_is_told():
    student, _ = prune(make_model("student"), 0.5)
    distiller = compiled(Distiller(student=student, teacher=make_model("teacher")))
    fit(distiller)
    zeros = keep_zeros(prune(student, 0.5)[0])
    zeros.release()
    zeros = keep_zeros(student, zeros.masks)
    fit(distiller)
    with pytest.warns(UserWarning, match="pass keep_zeros the model that you fit"):
        zeros.release()
    assert_zero_where(kernels(student), zeros.masks.values())


@pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_quantize_aware_model_takes_the_masks_of_its_float_source(trained):
    model = compiled(make_model())
    if trained:
        fit(model)
    else:
        model.set_weights([weight + 0.1 for weight in model.get_weights()])
    sparse, _ = prune(model, 0.5)
    sparse, _ = prune(sparse, 0.5, "l2", "channel", layers=["conv"])
    masks = masks_of(sparse)
    qat = quantize_aware(sparse, calibration=X)
    assert list(masks_of(qat)) == PATHS
    compiled(qat, run_eagerly=not trained)  # faster for two batches than to trace them
    with keep_zeros(qat, masks) as zeros:
        assert list(zeros.masks) == list(masks)
        if trained:
            fit(qat)
        else:
            qat.fit(X, Y, batch_size=32, verbose=0)
    float_again = qat.strip()
    assert_zero_where(kernels(float_again), [masks[path] for path in PATHS])
    gone = ~masks["conv/bias"]
    assert gone.sum() == 2
    norm = float_again.get_layer("norm")
    for vector in (float_again.get_layer("conv").bias, norm.gamma, norm.beta):
        np.testing.assert_array_equal(vector.numpy() == 0, gone)


def test_subclassed_and_frozen_afterwards():
    model = Twice()
    x = X[:, 0, 0]
    model(x)
    model.one.kernel.assign(np.where(np.indices((2, 8)).sum(0) % 2, model.one.kernel.numpy(), 0))
    zeros = keep_zeros(compiled(model))
    assert {path: mask.sum() for path, mask in zeros.masks.items()} == {"one": 8}
    fit(model, x)
    model.one.trainable = False
    compiled(model)
    fit(model, x)
    model.one.trainable = True
    compiled(model)
    fit(model, x)
    assert np.count_nonzero(model.one.kernel.numpy()) == 8
    zeros.release()


def test_weights_put_in_are_masked_by_apply():
    model, _ = prune(make_model(), 0.5)
    dense = [w + 1 for w in model.get_weights()]
    zeros = keep_zeros(model)
    assert not zeros.apply()
    model.set_weights(dense)
    assert zeros.apply()
    assert_zero_where(kernels(model), zeros.masks.values())
    zeros.release()
    zeros.release()


def test_saving_writes_a_plain_model(tmp_path):
    model, _ = prune(make_model(), 0.5)
    with keep_zeros(model):
        model.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    assert all(variable.constraint is None for variable in loaded.trainable_variables)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))


def test_bad_masks():
    model = make_model()
    good = np.ones((3, 3, 2, 4), bool)
    with pytest.raises(ValueError, match="nothing to hold: no kernel has a zero. Prune first"):
        keep_zeros(model)
    with pytest.raises(ValueError, match="nothing to hold: `masks` is empty"):
        keep_zeros(model, {})
    with pytest.raises(ValueError, match=r"nothing called 'conf' .*Kernels here: 'conv' \(3, 3, 2, 4\), 'depthwise'"):
        keep_zeros(model, {"conf": good})
    with pytest.raises(ValueError, match=r"shape \(3, 3, 2, 4\) of the weights; got \(4,\). Kernels here: 'conv'"):
        keep_zeros(model, {"conv": good[0, 0, 0]})
    with pytest.raises(ValueError, match="must be of bools; got float32"):
        keep_zeros(model, {"conv": good.astype("float32")})
    with pytest.raises(ValueError, match="Two masks are for 'conv'"):
        keep_zeros(model, {"conv": good, "net/conv": good})
    with pytest.raises(ValueError, match="no weights yet"):
        keep_zeros(keras.Sequential([layers.Dense(3)]))
    assert all(variable.constraint is None for variable in model.trainable_variables)
    model.get_layer("conv").trainable = False
    with pytest.raises(ValueError, match="nothing called 'conv' to hold at zero .*'conv': not trained by this fit"):
        keep_zeros(model, {"conv": good})


def test_a_name_that_fits_several_kernels_is_refused():
    blocks = [keras.Sequential([keras.Input((4,)), layers.Dense(4, name="d")], name=name) for name in "ab"]
    model = keras.Sequential([keras.Input((4,)), *blocks])
    with pytest.raises(ValueError, match="'d' may be for several kernels: 'a/d', 'b/d'"):
        keep_zeros(model, {"d": np.eye(4, dtype=bool)})
    keep_zeros(model, {"a/d": np.eye(4, dtype=bool)}).release()
    assert np.count_nonzero(blocks[0].layers[0].kernel.numpy()) == 4
    assert np.count_nonzero(blocks[1].layers[0].kernel.numpy()) == 16
