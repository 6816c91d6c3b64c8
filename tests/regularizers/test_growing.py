import keras
import numpy as np
import pytest

from kdopt.regularizers import Grouping, GrowingRegularization
from kdopt.regularizers.growing import grown, weakest

L = keras.layers
RNG = np.random.default_rng(0)
X = np.zeros((64, 6), "float32")
Y = np.zeros((64, 4), "float32")


def make_model(optimizer=None, **compile_args):
    model = keras.Sequential([keras.Input((6,)), L.Dense(4, use_bias=False, name="d")])
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse", **compile_args)
    return model, model.layers[0].kernel


def test_lambda_grows_in_steps_to_the_ceiling():
    assert [grown(t, 0.1, 3, 0.25) for t in (0, 2, 3, 5, 6, 9, 90)] == [0.0, 0.0, 0.1, 0.1, 0.2, 0.25, 0.25]


def test_the_weakest_groups():
    w = np.array([[1.0, -9.0, 0.5], [2.0, 0.0, 0.5]])
    np.testing.assert_array_equal(weakest(w, 1 / 3, Grouping("out_channels")), [[False, False, True]] * 2)
    np.testing.assert_array_equal(weakest(w, 0.5, Grouping("in_channels")), [[False] * 3, [True] * 3])
    np.testing.assert_array_equal(weakest(w, 0.5, None), [[False, False, True], [False, True, True]])
    ragged = weakest(np.array([[1.0, 1.0, 5.0, 0.9]] * 2), 0.5, Grouping("blocks", (2, 3)))
    np.testing.assert_array_equal(ragged, [[False, False, False, True]] * 2)  # mean, not sum: the edge is smaller


@pytest.mark.parametrize("accumulate", [None, 2])
def test_the_chosen_shrink_as_the_formula_says_and_the_others_stay(accumulate):
    """Inputs of zero have no gradient: w <- w * (1 - rate * lambda) is all there is."""
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=accumulate)
    model, kernel = make_model(optimizer, jit_compile=True)
    model.fit(X, Y, batch_size=8, verbose=0)
    w = kernel.numpy()
    goes = weakest(w, 0.5, Grouping("out_channels"))
    growing = GrowingRegularization(0.5, increment=0.5, frequency=1, ceiling=100.0)
    with pytest.warns(UserWarning, match="nothing was removed. Train longer"):
        logs = model.fit(X, Y, batch_size=8, verbose=0, callbacks=[growing]).history
    updates = 8 // (accumulate or 1)
    factor = np.prod([1 - 0.1 * 0.5 * t for t in range(updates)])
    np.testing.assert_allclose(kernel.numpy(), np.where(goes, w * factor, w), rtol=1e-5)
    assert logs["strength/growing"] == [0.5 * updates]
    assert logs["penalty/growing"][0] == pytest.approx(0.25 * updates * ((w * factor)[goes] ** 2).sum(), rel=1e-5)
    assert kernel.regularizer is None
    assert kernel.constraint is None


@pytest.mark.parametrize("method", ["greg-1", "greg-2"])
def test_at_the_ceiling_they_are_zero_and_stay_so_while_the_rest_trains(method):
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(6, 3, name="first")(inputs)
    x = L.BatchNormalization()(x)
    x = L.Concatenate()([x, L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)])
    x = L.GlobalAveragePooling2D()(L.Conv2DTranspose(4, 3, name="transposed")(x))
    model = keras.Model(inputs, L.Dense(2, name="out")(x))
    x, y = RNG.normal(size=(64, 8, 8, 3)).astype("float32"), RNG.integers(0, 2, 64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    layers = ["first", "depthwise", "transposed"]
    growing = GrowingRegularization(0.5, increment=0.2, frequency=1, method=method, pick_at=0.3, layers=layers)
    weights = []
    probe = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(model.get_layer("first").kernel.numpy())
    )
    model.fit(x, y, batch_size=16, epochs=4, verbose=0, callbacks=[growing, probe])
    for name, axes in (("first", (0, 1, 2)), ("depthwise", (0, 1, 3)), ("transposed", (0, 1, 3))):
        norms = np.abs(model.get_layer(name).kernel.numpy()).sum(axes)
        assert np.mean(norms == 0) == 0.5, name
    last, before = weights[-1], weights[-2]
    np.testing.assert_array_equal(last == 0, before == 0)
    assert np.abs(last - before).max() > 0
    assert model.get_layer("out").kernel.numpy().all()


def test_greg_2_presses_on_all_before_it_chooses():
    model, kernel = make_model()
    w = kernel.numpy()
    growing = GrowingRegularization(0.5, 0.5, 1, ceiling=100.0, method="greg-2", pick_at=2.0, groups="weights")
    with pytest.warns(UserWarning, match="nothing was removed"):
        model.fit(X, Y, batch_size=8, verbose=0, callbacks=[growing])
    first, second = np.prod([1 - 0.05 * t for t in range(4)]), np.prod([1 - 0.05 * t for t in range(4, 8)])
    goes = weakest(w, 0.5, None)
    np.testing.assert_allclose(kernel.numpy(), np.where(goes, w * first * second, w * first), rtol=1e-5)


def test_bad_arguments_are_refused():
    for arguments, message in [
        ({"sparsity": 1.0}, "`sparsity` must be a fraction"),
        ({"increment": 0}, "`increment` must be a number > 0"),
        ({"method": "greg"}, "`method` must be one of"),
        ({"method": "greg-2", "pick_at": 2.0}, "`pick_at` must be less than ceiling=1.0"),
        ({"groups": "filters"}, "`groups` must be one of"),
        ({"groups": "weights", "block_shape": (1, 4)}, "`block_shape` belongs to groups='blocks'"),
        ({"groups": "blocks"}, "`block_shape` belongs to groups='blocks'"),
    ]:
        with pytest.raises(ValueError, match=message):
            GrowingRegularization(**{"sparsity": 0.5, **arguments})


def test_a_mean_of_weights_is_not_their_sum():
    w = np.array([[1.0, 1.0, 1.0, 1.2]] * 2)
    np.testing.assert_array_equal(weakest(w, 0.5, Grouping("blocks", (2, 3))), [[True, True, True, False]] * 2)


def test_averages_are_zeroed_with_the_weights():
    model, kernel = make_model(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.99))
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[GrowingRegularization(0.5, 1.0, 1, 2.0)])
    assert np.count_nonzero(kernel.numpy() == 0) == 12
    assert np.count_nonzero(model.optimizer._model_variables_moving_average[0].numpy() == 0) == 12
