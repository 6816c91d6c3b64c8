"""Models that were once pruned wrongly, or refused without need."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.core.kernels import find_kernels
from kdopt.pruning import (
    GradualPruning,
    Prunable,
    RegrowPruning,
    Threshold,
    iterative,
    keep_zeros,
    masks_of,
    prune,
    sensitivity,
    strip,
)
from kdopt.pruning.loop import pruning_loop
from kdopt.regularizers import L0, L1, Proximal, SparseRegularized
from kdopt.schedules import Constant, Epochs, Polynomial

RNG = np.random.default_rng(0)


def test_channels_of_a_separable_convolution_are_those_of_its_pointwise_kernel():
    x = keras.Input((8, 8, 4))
    h = layers.BatchNormalization(name="norm")(layers.SeparableConv2D(4, 3, name="sep")(x))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(h)))
    model.get_layer("sep").bias.assign(np.ones(4))
    model.get_layer("norm").beta.assign(np.ones(4))
    sparse, _ = prune(model, 0.5, "l2", "channel")
    alive = np.any(sparse.get_layer("sep").pointwise_kernel.numpy() != 0, axis=(0, 1, 2))
    assert np.count_nonzero(alive) == 2
    for vector in (sparse.get_layer("sep").bias, sparse.get_layer("norm").gamma, sparse.get_layer("norm").beta):
        np.testing.assert_array_equal(vector.numpy() != 0, alive)


def test_nothing_follows_a_depthwise_channel_that_is_gone():
    model = keras.Sequential([keras.Input((8, 8, 4)), layers.SeparableConv2D(4, 3, name="sep"), layers.Flatten()])
    kernel = model.get_layer("sep").depthwise_kernel
    kernel.assign(np.where(np.arange(4)[:, None] == 0, 0, kernel.numpy()))
    assert set(masks_of(model)) == {"sep/depthwise_kernel", "sep/pointwise_kernel"}


def test_an_einsum_kernel_written_output_first():
    x = keras.Input((4, 6))
    model = keras.Model(x, layers.EinsumDense("abc,dc->abd", (None, 5), bias_axes="d", name="a")(x))
    model.get_layer("a").bias.assign(np.ones(5))
    (view,), _ = find_kernels(model)
    assert (view.channel_axis, view.input_axes) == (-2, (-1,))
    sparse, _ = prune(model, 0.4, "l2", "channel", layers=["a"])
    alive = np.any(sparse.get_layer("a").kernel.numpy() != 0, axis=1)
    assert np.count_nonzero(alive) == 3
    np.testing.assert_array_equal(sparse.get_layer("a").bias.numpy(), alive)


def test_a_bias_of_several_axes_goes_with_its_channel():
    x = keras.Input((5, 8))
    model = keras.Model(x, layers.MultiHeadAttention(2, 4, name="att")(x, x))
    query = model.get_layer("att")._query_dense
    query.bias.assign(np.ones((2, 4)))
    sparse, _ = prune(model, 0.5, "l2", "channel", layers=["query"])
    query = sparse.get_layer("att")._query_dense
    alive = np.any(query.kernel.numpy() != 0, axis=(0, 1))
    assert np.count_nonzero(alive) == 2
    np.testing.assert_array_equal(query.bias.numpy(), np.broadcast_to(alive, (2, 4)))


def test_heads_are_those_of_multi_head_attention():
    x = keras.Input((8, 16))
    group = layers.GroupQueryAttention(4, 4, 2)(x, x)
    with pytest.raises(ValueError, match="it is no projection of a MultiHeadAttention"):
        prune(keras.Model(x, group), 0.5, "l2", "head")
    wide = layers.MultiHeadAttention(2, 4, output_shape=(3, 5), name="wide")(x, x)
    _, report = prune(keras.Model(x, [group, wide]), 0.5, "l2", "head")
    skipped = {layer.layer.split("/")[-1]: layer.skipped for layer in report.layers if layer.skipped}
    assert skipped["attention_output"] == "its attention makes several axes of outputs"


class WithUnused(keras.Model):
    """Has a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = layers.Dense(4, name="used"), layers.Dense(4, name="unused")

    def call(self, x):
        return self.used(x)


def test_a_layer_that_is_never_called_stops_nothing():
    model, x = WithUnused(), RNG.normal(size=(32, 6)).astype("float32")
    model.compile("adam", "mse")
    model.fit(x, x[:, :4], verbose=0, callbacks=[GradualPruning(Constant(0.5))])
    masks = masks_of(model)
    assert [int(np.count_nonzero(~mask)) for mask in masks.values()] == [12]
    with keep_zeros(model):
        model.fit(x, x[:, :4], verbose=0)
    assert np.count_nonzero(model.used.kernel.numpy() == 0) == 12
    with pruning_loop(model, GradualPruning(Constant(0.75)), model.optimizer) as loop:
        assert loop.sparsity == 0.75
    unbuilt = WithUnused()
    with pytest.raises(ValueError, match="has no weights yet"):
        masks_of(unbuilt)


def test_a_prunable_without_updates_warns_for_a_schedule_in_epochs_too():
    wrapped = Prunable(layers.Dense(4), Polynomial(0.5, end_step=Epochs(2)))
    model = keras.Sequential([keras.Input((6,)), wrapped])
    model.compile("adam", "mse")
    with pytest.warns(UserWarning, match="do not change in this training"):
        model.fit(np.ones((8, 6)), np.ones((8, 4)), verbose=0)
    assert not wrapped.complete


def test_two_prunings_log_the_sparsity_of_all_their_kernels():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8, name="a"), layers.Dense(2, name="b")])
    model.compile("sgd", "mse")
    callbacks = [GradualPruning(Constant(0.5), layers=["a"]), GradualPruning(Constant(0.75), layers=["b"])]
    logs = model.fit(RNG.normal(size=(16, 8)), RNG.normal(size=(16, 2)), verbose=0, callbacks=callbacks).history
    assert logs["sparsity"][-1] == (32 + 12) / 80


def dense():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8, name="a"), layers.Dense(2, name="b")])
    model.compile("sgd", "mse")
    return model


def test_clear_refusals():
    with pytest.raises(ValueError, match="`layers` is empty. Prunable here: a, b; None chooses all"):
        prune(dense(), 0.5, layers=[])
    with pytest.raises(ValueError, match="Taylor needs samples: pass `criterion_data=`"):
        sensitivity(dense(), (np.ones((4, 8)), np.ones((4, 2))), "loss", criterion="taylor")
    broken = dense()
    broken.get_layer("a").kernel.assign(np.full((8, 8), np.nan))
    with pytest.raises(ValueError, match="'a' are NaN or infinite"):
        broken.fit(np.ones((16, 8)), np.ones((16, 2)), verbose=0, callbacks=[RegrowPruning(0.5, 10, frequency=1)])


def test_fewer_rounds_than_on_file_are_refused(tmp_path):
    arguments = {"compress": lambda m, r: prune(m, r / 4)[0], "train": None, "folder": tmp_path, "progress": False}
    iterative(model := dense(), rounds=3, **arguments)
    with pytest.raises(ValueError, match="holds 3 finished rounds, more than rounds=2"):
        iterative(model, rounds=2, **arguments)


def test_a_threshold_keeps_what_is_above_it_and_heeds_its_ceiling():
    model = dense()
    model.get_layer("b").kernel.assign(np.tile([[0.5, 0.25]], (8, 1)))
    sparse, _ = prune(model, threshold=0.25, layers=["b"])
    np.testing.assert_array_equal(sparse.get_layer("b").kernel.numpy(), np.tile([[0.5, 0]], (8, 1)))
    sparse, _ = prune(model, allocation=Threshold(0.25, maximum=0.25), layers=["b"])
    assert np.count_nonzero(sparse.get_layer("b").kernel.numpy() == 0) == 4


def test_frozen_companions_of_a_channel_stay():
    x = keras.Input((8,))
    norm = layers.BatchNormalization(name="norm")
    model = keras.Model(x, norm(layers.Dense(4, name="a")(x)))
    norm.trainable = False
    sparse, _ = prune(model, 0.5, "l2", "channel", layers=["a"])
    assert np.all(sparse.get_layer("norm").gamma.numpy() == 1)


def test_channels_of_outputs_stay_unless_they_are_named():
    x = keras.Input((6,))
    h = layers.Dense(8, name="hidden")(x)
    outputs = [layers.Dense(4, "softmax", name="classes")(h), layers.Add()([layers.Dense(8, name="sum")(h), h])]
    _, report = prune(keras.Model(x, outputs), 0.5, "l2", "channel", layers=["classes"])
    assert report.reached == 0.5
    with pytest.raises(ValueError, match="its channels are outputs of the model; name it in `layers`"):
        prune(keras.Model(x, outputs), 0.5, "l2", "channel")
    _, report = prune(keras.Model(x, outputs[0]), 0.5, "l2", "channel")
    assert {layer.layer: bool(layer.skipped) for layer in report.layers} == {"hidden": False, "classes": True}


def test_what_data_says_of_a_dead_channel_does_not_bring_it_back():
    """After its BatchNormalization a dead channel is beta, so that it is active more often than any other."""
    x = keras.Input((6, 6, 2))
    h = layers.BatchNormalization(name="norm", center=True)(layers.Conv2D(8, 3, name="conv")(x))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.ReLU()(h))))
    model.get_layer("norm").beta.assign(np.ones(8))
    model.compile(keras.optimizers.SGD(0.01), "mse")
    data = RNG.normal(size=(32, 6, 6, 2)).astype("float32")
    masks = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            masks.append(pruning.masks["conv"])

    pruning = GradualPruning(Polynomial(0.8, end_step=8, frequency=1), "apoz", data=data, layers=["conv"])
    model.fit(data, np.zeros((32, 2)), batch_size=4, epochs=2, verbose=0, callbacks=[pruning, Watch()])
    assert not any(np.any(new & ~old) for old, new in itertools.pairwise(masks))
    assert np.mean(masks[-1]) == pytest.approx(0.2, abs=0.01)


def test_a_schedule_that_changes_masks_once_or_twice_is_told():
    with pytest.warns(UserWarning, match="changes the masks 2 times in all. Use a smaller `frequency`"):
        dense().fit(
            np.ones((80, 8)),
            np.ones((80, 2)),
            batch_size=8,
            epochs=2,
            verbose=0,
            callbacks=[GradualPruning(Polynomial(0.5, end_step=Epochs(1)))],
        )


def test_a_proximal_fit_without_a_zero_is_told():
    with pytest.warns(UserWarning, match="Proximal: no weight is zero. A strength of 1e-09"):
        dense().fit(np.ones((8, 8)), np.ones((8, 2)), verbose=0, callbacks=[Proximal(L1(1e-9))])


def test_a_proximal_fit_that_leaves_nothing_is_told():
    with pytest.warns(UserWarning, match="Proximal: all weights are zero. A strength of 1e"):
        dense().fit(np.ones((8, 8)), np.ones((8, 2)), verbose=0, callbacks=[Proximal(L1(1e6))])


def test_strip_takes_every_wrapper_off():
    model = keras.Sequential([keras.Input((4,)), L0(layers.Dense(3), 0.1), SparseRegularized(layers.Dense(2), L1(0.1))])
    plain = strip(model)
    assert [type(layer) for layer in plain.layers] == [layers.Dense] * 2
    np.testing.assert_allclose(plain(np.ones((2, 4))), model(np.ones((2, 4))), atol=1e-6)
