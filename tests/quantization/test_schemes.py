"""tfmot's schemes: what a kernel has before training, zeros or 16 values, it has in the int8 file."""

import keras
import numpy as np
import pytest
from keras import layers

import tflite_export
from kdopt.quantization import quantize_aware
from kdopt.quantization.tfmot import preserve
from kdopt.quantization.tfmot.schemes import SCHEMES

RANDOM = np.random.default_rng(8)
X = RANDOM.normal(0.2, 1.0, (64, 8, 8, 2)).astype("float32")
Y = X.mean(axis=(1, 2)) @ RANDOM.normal(size=(2, 4))
# Layer -> operation in the file, and axes of the kernel there.
KERNELS = {
    "conv": ("CONV_2D", (3, 0, 1, 2)),
    "depthwise": ("DEPTHWISE_CONV_2D", (3, 0, 1, 2)),
    "dense": ("FULLY_CONNECTED", (1, 0)),
}


def net():
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, use_bias=False, name="conv")(inputs)))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x))
    return keras.Model(inputs, layers.Dense(4, name="dense")(layers.Flatten()(layers.ReLU()(x))))


def prepared(model, zeros=0.0, values=None):
    """Kernels quantized to `values` quantiles, then the smallest magnitudes set to zero."""
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            kernel = layer.kernel.numpy()
            if values:
                centroids = np.quantile(kernel, (np.arange(values) + 0.5) / values).astype("float32")
                kernel = centroids[np.abs(kernel[..., None] - centroids).argmin(axis=-1)]
            if zeros:
                kernel[np.abs(kernel) <= np.quantile(np.abs(kernel), zeros)] = 0
            layer.kernel.assign(kernel)
    return model


def stored(content):
    """Layer -> integers of its kernel in the file."""
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(model_content=content)
    numbers = {op["op_name"]: op["inputs"][1] for op in found._get_ops_details()}
    return {name: found.get_tensor(numbers[op]) for name, (op, _) in KERNELS.items()}


def own_kernel(model, name):
    return model.get_layer(name).kernel.numpy().transpose(KERNELS[name][1])


@pytest.mark.parametrize(
    ("scheme", "values"),
    [
        ("prune_preserve", None),
        pytest.param("cluster_preserve", 16, marks=pytest.mark.slow),
        ("prune_cluster_preserve", 16),
    ],
)
def test_zeros_and_values_are_in_the_file(scheme, values, tmp_path):
    zeros = 0.6 if "prune" in scheme else 0.0
    source = prepared(net(), zeros, values)
    qat = quantize_aware(source, calibration=X, scheme=scheme)
    qat.save(tmp_path / "qat.keras")
    loaded = keras.models.load_model(tmp_path / "qat.keras")
    assert (loaded.scheme, loaded.report) == (scheme, qat.report)
    loaded.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)  # faster than to trace it
    loaded.fit(X, Y, batch_size=16, epochs=1, verbose=0)
    stripped, integers = loaded.strip(), stored(tflite_export.convert(loaded, "int8").content)
    for name in KERNELS:
        before, after, inside = own_kernel(source, name), own_kernel(stripped, name), integers[name]
        assert np.abs(after - before).max() > 0.01
        if zeros:
            assert np.mean(before == 0) >= 0.59
            np.testing.assert_array_equal(after == 0, before == 0)
            assert not inside[before == 0].any()
        if values:
            assert len(np.unique(inside)) <= len(np.unique(after)) <= len(np.unique(before)) <= values
            for value in np.unique(after):
                assert len(np.unique(inside[after == value])) == 1
    first = next(entry for entry in qat.report if entry.layer == "conv")
    wanted = [f"{np.sum(own_kernel(source, 'conv') == 0)} of 108 weights stay zero"] if zeros else []
    wanted += [f"at most {len(np.unique(own_kernel(source, 'conv')))} values"] if values else []
    assert first.reason.endswith("; " + ", ".join(wanted))


def test_kept_is_its_formula():
    import tensorflow as tf

    kernel = np.array([[0.0, 1.0, 1.0], [-2.0, 0.0, 1.0]], "float32")
    both = SCHEMES["prune_cluster_preserve"]
    groups = preserve.groups_of(kernel, both)
    np.testing.assert_array_equal(groups == 0, kernel == 0)
    np.testing.assert_array_equal(preserve.groups_of(kernel, SCHEMES["prune_preserve"]), np.where(kernel == 0, 0, -1))
    np.testing.assert_array_equal(preserve.kept(kernel, groups, both), kernel)
    moved = tf.Variable(kernel + np.array([[0.5, 0.1, 0.2], [1.0, -1.0, 0.6]], "float32"))
    weight = np.array([[9.0, 1.0, 2.0], [5.0, 7.0, 6.0]], "float32")
    with tf.GradientTape() as tape:
        result = preserve.kept(moved, groups, both)
        loss = tf.reduce_sum(result * weight)
    np.testing.assert_allclose(result, [[0.0, 1.3, 1.3], [-1.0, 0.0, 1.3]], rtol=1e-6)
    np.testing.assert_array_equal(tape.gradient(loss, moved), weight * (kernel != 0))


def test_each_weight_moves_to_the_nearest_mean():
    kernel = RANDOM.normal(size=(5, 6, 7)).astype("float32")
    start = RANDOM.integers(0, 6, kernel.shape).astype("float32") * 3  # 0: zeros; 1, 2, 4, ... hold no weights
    means = {group: kernel[start == group].mean() for group in np.unique(start)[1:]}
    numbers = np.array(list(means))
    wanted = numbers[np.abs(kernel[..., None] - np.array(list(means.values()))).argmin(axis=-1)]
    np.testing.assert_array_equal(preserve.nearest(kernel, start), np.where(start == 0, 0, wanted))


def test_pruned_kernels_are_rounded_as_tfmot_does():
    import tensorflow as tf

    from kdopt.quantization.tfmot import quantizers

    tf_keras = quantizers.load().tf_keras
    registry = quantizers._internal("collab_opts.prune_preserve.prune_preserve_quantize_registry")
    theirs = registry.Default8bitPrunePreserveQuantizeRegistry()
    x = RANDOM.normal(size=(2, 5, 5, 3)).astype("float32")
    kernel = RANDOM.normal(size=(3, 3, 3, 4)).astype("float32") * RANDOM.integers(0, 2, (3, 3, 3, 4))
    outputs, gradients = [], []
    for own in (True, False):
        layer = tf_keras.layers.Conv2D(4, 3)
        layer.build((None, 5, 5, 3))
        layer.kernel.assign(kernel)
        if own:
            wrapper = quantizers.kernel_layer(layer, "kernel", SCHEMES["prune_preserve"])
            wrapper.build(None)
            wrapper._weight_vars[0][2]["groups"].assign(preserve.groups_of(kernel, SCHEMES["prune_preserve"]))
        else:
            config = quantizers._weights_only()(layer, "kernel", SCHEMES["int8"])
            config.weight_quantizer = theirs.get_quantize_config(layer).weight_quantizer
            wrapper = quantizers._wrapper()(layer, config)
            wrapper.build(None)
        variable = wrapper._weight_vars[0][0]
        variable.assign_add(0.1 * np.ones_like(kernel))
        with tf.GradientTape() as tape:
            result = wrapper(x, training=True)
            loss = tf.reduce_sum(result**2)
        outputs.append(result.numpy())
        gradients.append(tape.gradient(loss, variable).numpy())
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_float_model_has_the_means(jit_compile):
    source = prepared(keras.Sequential([keras.Input((12,)), layers.Dense(8, name="dense")]), values=5)
    x = RANDOM.normal(size=(32, 12)).astype("float32")
    qat = quantize_aware(source, calibration=x, scheme="cluster_preserve")
    qat.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=jit_compile)
    qat.fit(x, np.zeros((32, 8)), batch_size=8, verbose=0)
    own = {name: variable.numpy() for name, variable in qat.get_layer("dense").by_name.items()}
    kernel = qat.strip().layers[0].kernel.numpy()
    assert len(np.unique(own["kernel"])) > len(np.unique(kernel)) == 5
    for group in np.unique(own["kernel_groups"]):
        members = own["kernel_groups"] == group
        np.testing.assert_allclose(kernel[members], own["kernel"][members].mean(), rtol=1e-5)


@pytest.mark.parametrize(("scheme", "top", "most"), [("w4a8", 7, 7), ("w2a8", 1, 7), ("no_weights", 127, 127)])
def test_the_integers_of_other_schemes(scheme, top, most):
    """2 bits are stored as -7, 0, 7 of 4 bits."""
    source = net()
    qat = quantize_aware(source, calibration=X, scheme=scheme)
    assert qat.get_config()["scheme"] == scheme
    inside = stored(tflite_export.convert(qat, "int8").content)
    per_channel = {"conv": (1, 2, 3)}
    if scheme == "no_weights":  # the converter's own steps
        per_channel |= {"depthwise": (0, 1, 2), "dense": 1}
    for name in KERNELS:
        kernel = own_kernel(source, name)
        step = np.abs(kernel).max(axis=per_channel.get(name), keepdims=True) / top
        wanted = np.round(kernel / step) * (most // top)
        assert np.abs(inside[name]).max() == most
        assert np.mean(inside[name] == wanted) > 0.99, name


def test_bad_schemes_are_refused():
    source = keras.Sequential([keras.Input((3,)), layers.Dense(200)])
    with pytest.raises(ValueError, match=r"`scheme` must be one of 'int8', 'prune_preserve'.*Did you mean 'int8'"):
        quantize_aware(source, scheme="int9")
    with pytest.raises(ValueError, match=r"'w4a4' does not survive export: TFLite's kernels compute on int8"):
        quantize_aware(source, scheme="w4a4")
    with pytest.raises(ValueError, match=r"'prune_preserve' keeps zeros, but no kernel has any.*GradualPruning"):
        quantize_aware(source, scheme="prune_preserve")
    with pytest.raises(ValueError, match=r"'cluster_preserve' keeps clusters, but every kernel has more than 256"):
        quantize_aware(source, scheme="cluster_preserve")


def test_the_report_names_what_is_not_kept():
    inputs = keras.Input((4,))
    x = layers.EinsumDense("ab,bc->ac", output_shape=6, name="einsum")(inputs)
    source = prepared(
        keras.Model(inputs, layers.Dense(3, name="dense")(layers.LayerNormalization(name="norm")(x))), 0.5
    )
    report = {entry.layer: entry.reason for entry in quantize_aware(source, scheme="prune_preserve").report}
    assert report["einsum"].endswith("; its zeros and clusters are not kept")
    assert report["dense"] == "kernel and output; 9 of 18 weights stay zero"
    assert "kept" not in report["norm"]
