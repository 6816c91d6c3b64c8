import keras
import numpy as np
import pytest

from kdopt.regularizers import L0, RegularizationLogger, strip_regularizers
from kdopt.regularizers.gates import mean_gate, open_probability, sample_gate
from kdopt.schedules import Constant

L = keras.layers
RNG = np.random.default_rng(0)


def test_the_penalty_is_the_share_of_samples_that_are_open():
    """Equation 12 against 200,000 draws of equations 10 and 11."""
    for log_alpha in (-3.0, -0.5, 0.0, 2.0):
        for temperature in (2 / 3, 0.3):
            u = RNG.uniform(1e-6, 1 - 1e-6, 200_000).astype("float32")
            z = np.asarray(sample_gate(np.float32(log_alpha), u, temperature))
            s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + log_alpha) / temperature))
            np.testing.assert_allclose(z, np.clip(1.2 * s - 0.1, 0, 1), atol=1e-5)
            assert float(open_probability(np.float32(log_alpha), temperature)) == pytest.approx(
                np.mean(z > 0), abs=5e-3
            )
    assert float(mean_gate(np.float32(-2.5))) == 0
    assert float(mean_gate(np.float32(2.5))) == 1
    assert float(mean_gate(np.float32(0.0))) == pytest.approx(0.5)


LAYERS = {
    "dense": (lambda: L.Dense(3, activation="relu"), (6,), "in_channels", (6, 1)),
    "dense_weights": (lambda: L.Dense(3), (6,), "weights", (6, 3)),
    "conv": (lambda: L.Conv2D(4, 3), (8, 8, 2), "out_channels", (1, 1, 1, 4)),
    "depthwise": (lambda: L.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 3), "out_channels", (1, 1, 3, 2)),
    "transposed": (lambda: L.Conv2DTranspose(4, 3), (8, 8, 2), "out_channels", (1, 1, 4, 1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gates_multiply_the_kernel_and_the_plain_layer_is_the_same_at_inference(name):
    make, shape, gates, spread = LAYERS[name]
    x = RNG.normal(size=(5, *shape)).astype("float32")
    wrapper = L0(make(), 0.1, gates=gates, seed=1)
    wrapper(x)
    (log_alpha,) = [w for w in wrapper.weights if "log_alpha" in w.name]
    count = np.prod(spread)
    assert log_alpha.shape == (count,)
    values = np.linspace(-4, 4, count).astype("float32")
    log_alpha.assign(values)
    plain = make()
    plain.build((None, *shape))
    gate = np.clip(1.2 / (1 + np.exp(-values)) - 0.1, 0, 1).reshape(spread)
    kernel = wrapper.layer.kernel.numpy()
    plain.set_weights([kernel * gate, *wrapper.layer.get_weights()[1:]])
    np.testing.assert_allclose(wrapper(x), plain(x), atol=1e-5)
    np.testing.assert_allclose(wrapper.to_plain()(x), plain(x), atol=1e-5)
    assert wrapper.sparsity() == np.mean(np.broadcast_to(gate == 0, kernel.shape))
    assert wrapper.layer.kernel.numpy() is not None  # the Variable is back in its place
    np.testing.assert_array_equal(wrapper.layer.kernel.numpy(), kernel)
    share = 1 / (1 + np.exp(-(values - 2 / 3 * np.log(0.1 / 1.1))))
    assert float(wrapper.losses[0]) == pytest.approx(0.1 * share.sum() * kernel.size / count, rel=1e-5)


def test_stochastic_in_training_and_deterministic_at_inference():
    x = RNG.normal(size=(4, 6)).astype("float32")
    wrapper = L0(L.Dense(3), gates="weights", seed=1)
    outputs = [np.asarray(wrapper(x, training=training)) for training in (True, True, False, False)]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    np.testing.assert_array_equal(outputs[2], outputs[3])


@pytest.mark.parametrize("dtype", ["float32", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_it_drops_useless_inputs_saves_loads_and_comes_off(dtype, tmp_path):
    x = RNG.normal(size=(256, 8)).astype("float32")
    y = (x[:, :2] @ [[1.0, -2.0], [2.0, 1.0]]).astype("float32")
    wrapper = L0(L.Dense(2, dtype=dtype), 0.02, gates="in_channels", drop_rate=0.3, seed=1, dtype=dtype)
    model = keras.Sequential([keras.Input((8,)), wrapper, L.Activation("linear", dtype="float32")])
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=dtype == "float32")
    logs = model.fit(x, y, batch_size=32, epochs=30, verbose=0, callbacks=[RegularizationLogger()]).history
    assert logs["penalty/l0"][-1] < 0.5 * logs["penalty/l0"][0]
    plain = strip_regularizers(model)
    kept = np.abs(plain.layers[0].kernel.numpy()).sum(1) > 0
    np.testing.assert_array_equal(kept, [True, True] + [False] * 6)
    assert wrapper.sparsity() == 0.75
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5 if dtype == "float32" else 2e-2
    )
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    configs = [{k: v for k, v in w.get_config().items() if k != "layer"} for w in (again.layers[0], wrapper)]
    assert configs[0] == configs[1]


def test_a_nested_model_and_a_schedule_round_trip():
    inner = keras.Sequential([keras.Input((6,)), L0(L.Dense(4, name="d"), Constant(0.3)), L.ReLU()])
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(2)(inner(inputs)))
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    x = RNG.normal(size=(4, 6)).astype("float32")
    np.testing.assert_allclose(again(x), model(x), atol=1e-6)
    assert float(again.losses[0]) == pytest.approx(float(model.losses[0]))
    plain = strip_regularizers(model)
    assert not [layer for layer in plain._flatten_layers() if isinstance(layer, L0)]
    np.testing.assert_allclose(plain(x), model(x), atol=1e-6)
    assert isinstance(model.layers[1].layers[0], L0)


def test_bad_arguments_are_refused():
    for arguments, message in [
        ({"gates": "blocks"}, "`gates` must be one of"),
        ({"drop_rate": 0.0}, "`drop_rate` must be a number > 0"),
        ({"drop_rate": 1.0}, "`drop_rate` must be a fraction"),
        ({"temperature": 0}, "`temperature` must be a number > 0"),
        ({"strength": -1}, "`strength` must be a number >= 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            L0(L.Dense(3), **arguments)
    with pytest.raises(ValueError, match="L0 needs a layer with a kernel"):
        L0(L.BatchNormalization())(np.zeros((2, 3), "float32"))

    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.d = L0(L.Dense(2))

        def call(self, x):
            return self.d(x)

    model = Mine()
    model(np.zeros((2, 3), "float32"))
    with pytest.raises(TypeError, match="Replace its layers by what their to_plain\\(\\) returns"):
        strip_regularizers(model)
