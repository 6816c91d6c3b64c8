"""The int8 file is the quantized model: same integers, same scales, outputs within a few steps."""

import keras
import numpy as np
import pytest
from keras import layers

import tflite_export
from kdopt.quantization import quantize_aware

RANDOM = np.random.default_rng(8)
X = RANDOM.normal(0.2, 1.0, (96, 8, 8, 2)).astype("float32")


def plain(x):
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv")(x)
    return layers.Dense(4, name="dense")(layers.Flatten()(x))


def folded(x):
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(layers.Conv2D(6, 3, use_bias=False, name="conv")(x)))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x))
    return layers.Dense(4, name="dense")(layers.GlobalAveragePooling2D()(x))


def mixed(x):
    a = layers.Conv2D(4, 3, padding="same", activation="swish")(x)
    b = layers.MaxPooling2D(3, 1, "same")(layers.Conv2D(4, 1)(x))
    c = layers.Concatenate()([a, b])
    gate = layers.Dense(8, activation="hard_sigmoid")(layers.GlobalAveragePooling2D()(c))
    c = layers.Multiply()([c, layers.Reshape((1, 1, 8))(gate)])
    c = layers.LayerNormalization()(layers.BatchNormalization()(c))
    return layers.Dense(4, activation="elu")(layers.Flatten()(layers.AveragePooling2D(2)(c)))


def trained(build):
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 8, 2), name="image")
    model = quantize_aware(keras.Model(inputs, build(inputs)), calibration=X)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(X, X.mean(axis=(1, 2)) @ np.random.default_rng(2).normal(size=(2, 4)), batch_size=16, epochs=3, verbose=0)
    return model


def interpreter(content):
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(model_content=content, experimental_preserve_all_tensors=True)
    found.allocate_tensors()
    return found


def constants(found, op_name):
    """(integers, scales) of the kernels of the ops called `op_name`, in order."""
    details = {d["index"]: d for d in found.get_tensor_details()}
    numbers = [op["inputs"][1] for op in found._get_ops_details() if op["op_name"] == op_name]
    return [(found.get_tensor(i), details[i]["quantization_parameters"]["scales"]) for i in numbers]


def run(found, x):
    given, taken = found.get_input_details()[0], found.get_output_details()[0]
    scale, zero = given["quantization"]
    rows = []
    for row in np.clip(np.round(x / scale) + zero, -128, 127).astype("int8"):
        found.set_tensor(given["index"], row[None])
        found.invoke()
        rows.append(found.get_tensor(taken["index"])[0].astype("float32"))
    return (np.array(rows) - taken["quantization"][1]) * taken["quantization"][0], taken["quantization"][0]


def grid(model, layer):
    """Integers and scales of a kernel as trained: NumPy from the variables of the quantized model."""
    own = {name: variable.numpy() for name, variable in model.get_layer(layer).by_name.items()}
    scale = own["kernel_max"] / 127
    return np.clip(np.round(own["kernel"] / scale), -127, 127), scale


# In `mixed` the inner tensors of rewritten and gated layers get their scales at export.
@pytest.mark.parametrize(
    ("build", "most", "mean"),
    [pytest.param(plain, 2.5, 0.7, marks=pytest.mark.slow), (folded, 3.5, 1.0), (mixed, 6.5, 2.0)],
)
def test_the_file_computes_what_was_trained(build, most, mean):
    model = trained(build)
    found = interpreter(tflite_export.convert(model, "int8").content)
    floats = [d["name"] for d in found.get_tensor_details() if d["dtype"] not in (np.int8, np.int32)]
    assert floats == []
    received, step = run(found, X[:32])
    gap = np.abs(received - model.predict(X[:32], verbose=0)) / step
    assert gap.max() < most
    assert gap.mean() < mean
    assert np.ptp(received) > 60 * step


OPS = {
    "conv": lambda x: layers.Conv2D(6, 3)(x),
    "conv_relu": lambda x: layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(x),
    "conv_norm_relu6": lambda x: layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(6, 3, use_bias=False)(x))),
    "depthwise": lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x),
    "transposed": lambda x: layers.Conv2DTranspose(4, 2, strides=2)(x),
    "dense": lambda x: layers.Dense(5)(layers.Flatten()(x)),
    "average_pooling": lambda x: layers.AveragePooling2D(2)(x),
    "global_average": lambda x: layers.GlobalAveragePooling2D()(x),
    "max_pooling": lambda x: layers.MaxPooling2D(2)(x),
    "add": lambda x: layers.Add()([x, layers.ReLU()(x)]),
    "concatenate": lambda x: layers.Concatenate()([x, layers.ReLU()(x)]),
    "softmax": lambda x: layers.Softmax()(x),
    "upsampling": lambda x: layers.UpSampling2D(2)(x),
}


@pytest.mark.parametrize("name", OPS)
def test_one_op_is_within_one_step_of_its_training(name):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 2), name="image")
    model = quantize_aware(keras.Model(inputs, OPS[name](inputs)), calibration=X)
    found = interpreter(tflite_export.convert(model, "int8").content)
    received, step = run(found, X[:32])
    gap = np.abs(received - model.predict(X[:32], verbose=0)) / step
    assert gap.max() < 1.01
    assert np.ptp(received) > 60 * step


def test_weights_and_scales_are_the_trained_ones():
    model = trained(plain)
    found = interpreter(tflite_export.convert(model, "int8").content)
    ((conv, conv_scales),), ((dense, dense_scales),) = constants(found, "CONV_2D"), constants(found, "FULLY_CONNECTED")
    integers, scales = grid(model, "conv")
    np.testing.assert_allclose(conv_scales, scales, rtol=1e-6)
    np.testing.assert_array_equal(conv, integers.transpose(3, 0, 1, 2))
    integers, scale = grid(model, "dense")
    np.testing.assert_allclose(dense_scales, np.full(4, scale), rtol=1e-6)  # tfmot trains Dense per tensor
    np.testing.assert_array_equal(dense, integers.T)
    own = {n: v.numpy() for n, v in model.get_layer("dense").by_name.items()}
    wanted = (own["output_max"] - own["output_min"]) / 255
    np.testing.assert_allclose(found.get_output_details()[0]["quantization"][0], wanted, rtol=1e-5)


def test_folded_weights_are_the_trained_ones_times_the_norm():
    model = trained(folded)
    found = interpreter(tflite_export.convert(model, "int8").content)
    conv, conv_scales = constants(found, "CONV_2D")[0]
    integers, scales = grid(model, "conv")
    norm = {n: v.numpy() for n, v in model.get_layer("norm").by_name.items()}
    factor = norm["gamma"] / np.sqrt(norm["moving_variance"] + 1e-3)
    np.testing.assert_allclose(conv_scales, scales * np.abs(factor), rtol=1e-5)
    np.testing.assert_array_equal(conv, (integers * np.sign(factor)).transpose(3, 0, 1, 2))


def test_float_precisions_point_to_strip():
    model = trained(plain)
    with pytest.raises(Exception, match="strip"):
        tflite_export.convert(model, "float32")
    stripped = tflite_export.convert(model.strip(), "float32")
    assert stripped.precision == "float32"
