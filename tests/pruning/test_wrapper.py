"""Prunable layers: masks that act in the compiled step, live in the file, and leave no trace."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.pruning.channel_patterns import Channel
from kdopt.pruning.strip import strip
from kdopt.pruning.updating import UpdateMasks
from kdopt.pruning.wrapper import Prunable
from kdopt.schedules import Epochs, Linear, MultiStep, OneShot, Polynomial

X = np.random.default_rng(0).normal(size=(64, 6, 6, 2)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 64)
CE = "sparse_categorical_crossentropy"


def make_model():
    """Residual, concatenation, depthwise, a block and a nested head, some of it prunable."""
    x = keras.Input((6, 6, 2))
    h = Prunable(layers.Conv2D(4, 3, padding="same", name="conv"), 0.5)(x)
    h = layers.ReLU()(layers.BatchNormalization(name="norm")(h))
    h = layers.Add()([h, Prunable(layers.DepthwiseConv2D(3, padding="same", name="dw"), 0.25)(h)])
    block = keras.Sequential(
        [layers.Conv2D(4, 1, name="inner"), layers.BatchNormalization(name="inner_norm")], name="b"
    )
    h = layers.Concatenate()([h, Prunable(block, 0.5, "l2", Channel())(h)])
    head = keras.Sequential(
        [keras.Input((8,)), Prunable(layers.Dense(8, name="hidden"), Linear(0.75, end_step=8, frequency=4)),
         layers.Dropout(0.5), layers.Dense(3, "softmax", name="out")],
        name="head",
    )  # fmt: skip
    return keras.Model(x, head(layers.GlobalAveragePooling2D()(h)))


def wrappers(model):
    return {layer.layer.name: layer for layer in model._flatten_layers() if isinstance(layer, Prunable)}


def compiled(model, optimizer=None, **options):
    model.compile(optimizer or keras.optimizers.Adam(0.02), CE, **options)
    return model


def fit(model, *callbacks, epochs=1, **options):
    """8 updates an epoch."""
    return model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[UpdateMasks(), *callbacks], **options)


def dense_model(sparsity=0.5, **options):
    wrapped = Prunable(layers.Dense(9, name="d"), sparsity, **options)
    model = keras.Sequential([keras.Input((2,)), wrapped, layers.Dense(3, "softmax")])
    return model, wrapped


class Watch(keras.callbacks.Callback):
    """Zeros of a layer's kernel after every batch."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.zeros = layer, []

    def on_train_batch_end(self, batch, logs=None):
        self.zeros.append(int(np.count_nonzero(self.layer.kernel.numpy() == 0)))


SETTINGS = {
    "plain": (None, {}, None),
    "jit_compile": (None, {"jit_compile": True}, None),
    "eager": (None, {"run_eagerly": True}, None),
    "mixed_float16": (None, {}, "mixed_float16"),
    "averages": (lambda: keras.optimizers.Adam(0.02, use_ema=True), {}, None),
}


_SLOW = ("jit_compile", "averages")


@pytest.mark.parametrize("setting", [pytest.param(one, marks=[pytest.mark.slow] * (one in _SLOW)) for one in SETTINGS])
def test_zeros_follow_the_schedule_in_the_compiled_step(setting):
    make_optimizer, options, dtype = SETTINGS[setting]
    layer = layers.Dense(8, name="d", dtype=dtype)
    wrapped = Prunable(layer, MultiStep({2: 0.25, 5: 0.75}))
    model = keras.Sequential([keras.Input((2,)), wrapped, layers.Dense(3, "softmax", dtype="float32")])
    compiled(model, make_optimizer() if make_optimizer else None, **options)
    watch = Watch(layer)
    logs = model.fit(X[:, 0, 0], Y, batch_size=8, epochs=1, verbose=0, callbacks=[watch, UpdateMasks()]).history
    assert watch.zeros == [0] * 2 + [4] * 3 + [12] * 3
    assert logs["sparsity"] == [0.75]
    assert int(wrapped.step.numpy()) == 8
    assert wrapped.complete
    np.testing.assert_array_equal(layer.kernel.numpy() != 0, wrapped.masks["d"])
    x = X[:, 0, 0]
    np.testing.assert_array_equal(strip(model).predict(x, verbose=0), model.predict(x, verbose=0))


def test_the_lowest_weights_go():
    model, wrapped = dense_model(OneShot(0.5, begin_step=0))
    compiled(model, keras.optimizers.SGD(0.0))
    before = np.abs(wrapped.layer.kernel.numpy()).reshape(-1)
    model.fit(X[:, 0, 0], Y, verbose=0, callbacks=[UpdateMasks()])
    expected = np.ones(18, bool)
    expected[np.argsort(before)[:9]] = False
    np.testing.assert_array_equal((wrapped.layer.kernel.numpy() != 0).reshape(-1), expected)


def test_steps_per_execution_and_two_fits():
    model, wrapped = dense_model(MultiStep({2: 1 / 3, 13: 2 / 3}))
    compiled(model, steps_per_execution=4)
    x = X[:, 0, 0]
    with pytest.warns(UserWarning, match="schedules of 1 layers did; the next fit goes on with them"):
        model.fit(x, Y, batch_size=8, verbose=0, callbacks=[UpdateMasks()])
    assert np.count_nonzero(wrapped.layer.kernel.numpy()) == 12
    watch = Watch(wrapped.layer)
    model.fit(x, Y, batch_size=8, verbose=0, epochs=2, callbacks=[UpdateMasks(), watch])
    assert watch.zeros == [6, 6, 12, 12]  # boundaries at 12, 16, 20, 24; 13 lies between the first two


def test_a_whole_net_saves_loads_and_goes_on(tmp_path):
    model = compiled(make_model())
    with pytest.warns(UserWarning, match="training ended"):
        model.fit(X, Y, batch_size=16, verbose=0, callbacks=[UpdateMasks()])  # 4 of 8 steps
    model.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    for name, wrapped in wrappers(model).items():
        other = wrappers(loaded)[name]
        assert other.masks.keys() == wrapped.masks.keys()
        assert {**other.get_config(), "layer": 0} == {**wrapped.get_config(), "layer": 0}
        for path, mask in wrapped.masks.items():
            np.testing.assert_array_equal(other.masks[path], mask)
    hidden = wrappers(loaded)["hidden"]
    assert int(hidden.step.numpy()) == 4
    loaded.fit(X, Y, batch_size=16, verbose=0, callbacks=[UpdateMasks()])
    zeros = {name: [float(np.mean(view.numpy() == 0)) for view in w.kernels] for name, w in wrappers(loaded).items()}
    assert zeros == {"conv": [0.5], "dw": [0.25], "b": [0.5], "hidden": [0.75]}
    inner = wrappers(loaded)["b"].layer
    gone = (inner.layers[0].kernel.numpy() == 0).all(axis=(0, 1, 2))
    for vector in (inner.layers[0].bias, inner.layers[1].gamma, inner.layers[1].beta):
        np.testing.assert_array_equal(vector.numpy() == 0, gone)


def test_strip_gives_plain_keras_with_the_same_outputs(tmp_path):
    model = compiled(make_model())
    fit(model)
    plain = strip(model)
    assert not wrappers(plain)
    assert [layer.name for layer in plain.get_layer("head").layers] == ["hidden", "dropout", "out"]
    np.testing.assert_array_equal(plain.predict(X, verbose=0), model.predict(X, verbose=0))
    for name, wrapped in wrappers(model).items():
        kernel = (plain.get_layer("head") if name == "hidden" else plain).get_layer(name)
        kernel = (kernel.layers[0] if name == "b" else kernel).kernel
        np.testing.assert_array_equal(kernel.numpy() != 0, next(iter(wrapped.masks.values())))
        assert kernel.constraint is None
    assert len(plain.weights) == len(model.weights) - 4 * 2 - 3 - 4  # step and updated_at; three masks; four of "b"
    plain.save(tmp_path / "plain.keras")
    np.testing.assert_array_equal(
        keras.models.load_model(tmp_path / "plain.keras").predict(X, verbose=0), plain.predict(X, verbose=0)
    )
    compiled(plain).fit(X, Y, verbose=0)
    assert np.count_nonzero(plain.get_layer("conv").kernel.numpy() == 0) < 5


def test_strip_of_weights_that_were_put_in_and_of_a_shared_layer():
    shared = Prunable(layers.Dense(4, name="d"), 0.5)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, shared(shared(inputs)))
    model.compile("sgd", "mse")
    x = X[:, 0, :2].reshape(64, 4)
    model.fit(x, x, verbose=0, batch_size=32, callbacks=[UpdateMasks()])
    assert int(shared.step.numpy()) == 2
    plain = strip(model)
    np.testing.assert_array_equal(plain.predict(x, verbose=0), model.predict(x, verbose=0))
    assert len(plain.layers) == 2
    shared.layer.kernel.assign(np.ones((4, 4)))
    np.testing.assert_array_equal(strip(model).layers[1].kernel.numpy(), shared.masks["d"])


def test_recurrent_layers_masks_of_time_steps_and_sequences():
    model = keras.Sequential(
        [keras.Input((5,), dtype="int32"), layers.Embedding(6, 4, mask_zero=True, name="e"),
         Prunable(layers.LSTM(3, name="lstm"), 0.5), layers.Dense(3, "softmax")]
    )  # fmt: skip
    x = np.random.default_rng(0).integers(0, 6, (64, 5))
    compiled(model).fit(x, Y, verbose=0, callbacks=[UpdateMasks()])
    wrapped = model.layers[1]
    assert [float(np.mean(view.numpy() == 0)) for view in wrapped.kernels] == [0.5, 0.5]
    np.testing.assert_allclose(strip(model).predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    padded = np.concatenate([x, np.zeros((64, 3), int)], axis=1)
    longer = keras.Sequential([layers.Embedding(6, 4, mask_zero=True), wrapped])
    longer.build((None, None))
    longer.layers[0].set_weights(model.layers[0].get_weights())
    np.testing.assert_allclose(longer(padded), longer(x), atol=1e-6)  # padding is not read


def test_weights_come_back_without_momentum_and_a_frozen_layer_is_left_alone():
    model, wrapped = dense_model(MultiStep({0: 0.5, 4: 0.0}))
    compiled(model, keras.optimizers.SGD(0.1, momentum=0.9))
    state = {}

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 4:
                state["kernel"], state["momentum"] = wrapped.layer.kernel.numpy(), model.optimizer.momentums[0].numpy()

    model.fit(X[:, 0, 0], Y, batch_size=8, verbose=0, callbacks=[UpdateMasks(), Look()])
    gone = state["kernel"] == 0
    assert gone.sum() == 9
    assert np.all(state["momentum"][gone] == 0)
    assert np.all(state["momentum"][~gone] != 0)
    assert np.all(wrapped.layer.kernel.numpy() != 0)
    model, wrapped = dense_model(0.5)
    wrapped.trainable = False
    compiled(model).fit(X[:, 0, 0], Y, verbose=0, callbacks=[UpdateMasks()])
    assert np.all(wrapped.layer.kernel.numpy() != 0)


def test_a_frozen_model_loads(tmp_path):
    model, wrapped = dense_model(0.5)
    compiled(model).fit(X[:, 0, 0], Y, verbose=0, callbacks=[UpdateMasks()])
    model.trainable = False
    model.save(tmp_path / "frozen.keras")
    loaded = keras.models.load_model(tmp_path / "frozen.keras")
    assert not loaded.trainable_variables
    np.testing.assert_array_equal(loaded.layers[0].masks["d"], wrapped.masks["d"])
    assert not loaded.layers[0].layer.trainable


def test_a_schedule_in_epochs():
    model, wrapped = dense_model(MultiStep({Epochs(0.5): 0.5}))
    watch = Watch(wrapped.layer)
    compiled(model).fit(X[:, 0, 0], Y, batch_size=8, verbose=0, callbacks=[UpdateMasks(), watch])
    assert watch.zeros == [0] * 4 + [9] * 4


def test_a_fit_without_the_callback_says_so_and_a_finished_one_does_not(recwarn):
    model, _ = dense_model(0.5)
    compiled(model)
    with pytest.warns(UserWarning, match="masks of 'prunable_d' do not change in this training: give fit the callback"):
        model.fit(X[:, 0, 0], Y, verbose=0)
    model, wrapped = dense_model(0.5)
    compiled(model).fit(X[:, 0, 0], Y, verbose=0, callbacks=[UpdateMasks()])
    recwarn.clear()
    compiled(model).fit(X[:, 0, 0], Y, verbose=0)
    assert np.count_nonzero(wrapped.layer.kernel.numpy()) == 9
    assert [str(w.message) for w in recwarn if "masks" in str(w.message)] == []


def test_bad_input():
    dense = layers.Dense(3)
    with pytest.raises(ValueError, match="`sparsity` must be a fraction"):
        Prunable(dense, 1.5)
    with pytest.raises(ValueError, match="criterion Taylor needs gradients, which a layer does not see"):
        Prunable(dense, 0.5, "taylor")
    with pytest.raises(ValueError, match="Unknown pattern 'blocks'. Did you mean 'block'"):
        Prunable(dense, 0.5, pattern="blocks")
    with pytest.raises(ValueError, match="is or holds a Prunable already"):
        Prunable(Prunable(dense, 0.5), 0.5)
    with pytest.raises(ValueError, match="Prunable needs a layer with a kernel"):
        Prunable(layers.ReLU(name="relu"), 0.5)(keras.Input((3,)))
    with pytest.raises(ValueError, match="NM reaches a sparsity of 0.5 at most; got 0.8"):
        Prunable(dense, 0.8, pattern="n_m")(keras.Input((4,)))
    model = compiled(keras.Sequential([keras.Input((6, 6, 2)), layers.Flatten(), layers.Dense(3, "softmax")]))
    with pytest.raises(ValueError, match="has no Prunable layer; GradualPruning"):
        fit(model)


class Own(keras.Model):
    """Subclassed."""

    def __init__(self):
        super().__init__()
        self.one = Prunable(layers.Dense(9, name="one"), Polynomial(0.5, end_step=6, frequency=2))
        self.two = layers.Dense(3, "softmax", name="two")

    def call(self, x):
        return self.two(self.one(x))


def test_subclassed_models_train_and_strip_names_the_way_out():
    model = compiled(Own())
    model.fit(X[:, 0, 0], Y, batch_size=8, epochs=2, verbose=0, callbacks=[UpdateMasks()])
    assert np.count_nonzero(model.one.layer.kernel.numpy()) == 9
    with pytest.raises(TypeError, match="is a Own .*what `wrapper.to_plain"):
        strip(model)
    plain = model.one.to_plain()
    np.testing.assert_array_equal(plain.kernel.numpy(), model.one.layer.kernel.numpy())
    hidden = keras.Sequential([keras.Input((5, 2)), layers.TimeDistributed(Prunable(layers.Dense(4, name="d"), 0.5))])
    with pytest.raises(
        TypeError, match="cannot reach 'prunable_d' inside .*Write the model as Prunable.TimeDistributed"
    ):
        strip(hidden)
    with pytest.raises(ValueError, match="no weights yet"):
        strip(keras.Sequential([Prunable(layers.Dense(3), 0.5)]))


def test_a_killed_fit_resumes_with_its_masks(tmp_path):
    """The backup stands after UpdateMasks or before it; weights, masks and step are those of an unbroken run."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == 12:
                raise KeyboardInterrupt

    def train(folder, *callbacks):
        keras.utils.set_random_seed(5)
        model, wrapped = dense_model(MultiStep({3: 1 / 3, 14: 2 / 3}))
        compiled(model, keras.optimizers.SGD(0.1, momentum=0.9))
        backup = keras.callbacks.BackupAndRestore(folder, double_checkpoint=True)
        callbacks = [backup, UpdateMasks(), *callbacks]
        with contextlib.suppress(KeyboardInterrupt):
            model.fit(X[:, 0, 0], Y, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
        return wrapped

    whole = train(tmp_path / "a")
    train(tmp_path / "b", Stop())
    resumed = train(tmp_path / "b")
    assert int(resumed.step.numpy()) == 24
    np.testing.assert_array_equal(resumed.masks["d"], whole.masks["d"])
    np.testing.assert_allclose(resumed.layer.kernel.numpy(), whole.layer.kernel.numpy(), atol=1e-6)
    assert np.count_nonzero(resumed.layer.kernel.numpy()) == 6


def test_the_best_epoch_comes_back_with_its_own_masks():
    model, wrapped = dense_model(MultiStep({0: 1 / 3, 12: 2 / 3}))
    compiled(model, keras.optimizers.SGD(0.1))

    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["value"] = float(epoch)

    stopping = keras.callbacks.EarlyStopping("value", patience=2, restore_best_weights=True, mode="min")
    with pytest.warns(UserWarning, match="a sparsity of 0.333 after 8 updates"):
        model.fit(X[:, 0, 0], Y, batch_size=8, epochs=3, verbose=0, callbacks=[Worse(), UpdateMasks(), stopping])
    assert np.count_nonzero(wrapped.layer.kernel.numpy()) == 12
    np.testing.assert_array_equal(wrapped.layer.kernel.numpy() != 0, wrapped.masks["d"])


def test_config_round_trip():
    wrapped = Prunable(layers.Dense(4, name="d"), Polynomial(0.8, end_step=10), "lamp", Channel(), name="p")
    again = Prunable.from_config(wrapped.get_config())
    assert again.get_config() == wrapped.get_config()
    assert repr(again.schedule) == repr(wrapped.schedule)
    assert (again.name, type(again.criterion), type(again.pattern)) == ("p", type(wrapped.criterion), Channel)
