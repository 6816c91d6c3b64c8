"""Models that cannot become a correct file: the error names the layer and the way out."""

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export.conversion import contract, integers
from tflite_export.errors import ConversionError
from tflite_export.tflite import flatbuffer
from tflite_export.tflite.records import layer_of

layers = keras.layers


@keras.saving.register_keras_serializable("tests")
class Cholesky(layers.Layer):
    def call(self, inputs):
        return keras.ops.cholesky(inputs)


def _lstm(**options):
    return keras.Sequential([keras.Input((6, 4)), layers.LSTM(5, name="memory", **options), layers.Dense(3)])


@pytest.fixture(scope="module")
def sequences():
    return np.random.default_rng(0).normal(size=(30, 6, 4)).astype("float32")


def test_flex_operation_names_the_nested_layer():
    matrix = keras.Input((3, 3))
    inner = keras.Model(matrix, Cholesky(name="factor")(matrix), name="inner")
    outer = keras.Input((3, 3))
    model = keras.Model(outer, layers.Dense(2, name="head")(inner(outer)))
    with pytest.raises(ConversionError, match=r"layer 'inner/factor' \(Cholesky\).*\n.*tf.Cholesky.*Flex") as caught:
        tflite_export.convert(model, "float32", np.stack([np.eye(3)] * 3))
    assert "head" not in str(caught.value)


def test_recurrent_layer(sequences):
    model = _lstm()
    file = tflite_export.convert(model, "float32")
    np.testing.assert_allclose(file.predict(sequences), model.predict(sequences, verbose=0), atol=1e-5)
    with pytest.raises(ConversionError, match=r"layer 'memory' \(TensorListReserve\)(.|\n)*static batch"):
        tflite_export.convert(model, "float32", batch=None)
    with pytest.raises(ConversionError, match=r"layer 'memory' is a loop(.|\n)*unroll=True"):
        tflite_export.convert(model, "int8", sequences)


@pytest.mark.slow
def test_unrolled_recurrent_layer_becomes_int8(sequences):
    model = _lstm(unroll=True)
    assert tflite_export.verify(model, tflite_export.convert(model, "int8", sequences), sequences).passed


def test_a_file_with_float_operations_is_made_again(dense, monkeypatch):
    data = np.random.default_rng(0).normal(size=(20, 12)).astype("float32")
    real, half = contract.float_layers, iter([("d (SPLIT)",), ("d (SPLIT)",)])
    monkeypatch.setattr(contract, "float_layers", lambda *arguments: next(half, None) or real(*arguments))
    converted = []
    run = integers._run_quantizer
    monkeypatch.setattr(integers, "_run_quantizer", lambda *a: converted.append(1) or run(*a))
    tflite_export.convert(dense, "int8", data)
    assert len(converted) == 3


def test_weights_of_16_bits_name_the_way_out():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="half", dtype="float16")])
    with pytest.raises(ConversionError, match=r"layer 'half' \(MatMul(.|\n)*float16(.|\n)*set_weights"):
        tflite_export.convert(model, "float32")


def test_a_source_that_gives_nan_is_found():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Dense(4, name="bad")(keras.ops.sqrt(inputs - 1e9)))
    with pytest.raises(ConversionError, match="output 'bad': the source itself gives NaN"):
        tflite_export.convert(model, "float32")


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch, sequences):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ConversionError):
        tflite_export.convert(_lstm(), "float32", batch=None)
    tflite_export.convert(_lstm(), "float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "numbered", "layer"),
    [
        ("functional_1/conv_1/Relu", True, "conv"),
        ("functional_1/block_1/conv_1_1/Relu@__inference_f_12", True, "block/conv_1"),
        ("functional_1/stem_1/add;functional_1/conv_3/convolution", True, "conv"),
        ("model/conv_1/Relu", False, "conv_1"),
        ("StatefulPartitionedCall:0", True, ""),
    ],
)
def test_layer_of_a_scope(path, numbered, layer):
    assert layer_of(path, {"conv", "conv_1", "block"}, scopes_numbered=numbered) == layer


def test_layer_of_a_scope_without_known_layers():
    assert layer_of("hidden/inner/MatMul") == "hidden/inner"


def test_a_lookup_layer_is_refused():
    lookup = keras.layers.IntegerLookup(vocabulary=[1, 2])
    model = keras.Sequential([keras.Input((1,), dtype="int32"), lookup, keras.layers.Embedding(3, 2)])
    with pytest.raises(tflite_export.ConversionError, match="cannot be saved for the converter.*Do look-ups"):
        tflite_export.convert(model, "float32")


def test_weights_that_are_no_numbers():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="broken")])
    kernel = np.zeros((4, 3), "float32")
    kernel[1, 2] = np.nan
    model.layers[0].kernel.assign(kernel)
    for precision in ("float32", "int8"):
        with pytest.raises(tflite_export.ConversionError, match="broken/kernel' holds NaN or infinity. Its training"):
            tflite_export.convert(model, precision, np.zeros((4, 4), "float32") if precision == "int8" else None)


def normalized():
    """What LayerNormalization does to a position is a difference, which the converter writes with NEG."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((6, 8), name="tokens")
    x = layers.LayerNormalization(name="norm")(layers.Dense(8, activation="relu")(tokens))
    return keras.Model(tokens, layers.Dense(3, name="head")(x))


def test_layer_normalization_has_no_float_operation_in_int8():
    data = np.random.default_rng(0).normal(size=(64, 6, 8)).astype("float32")
    model = normalized()
    assert "NEG" in tflite_export.inspect(tflite_export.convert(model, "float32")).ops
    file = tflite_export.convert(model, "int8", data)
    assert tflite_export.verify(model, file, data).passed
    stored = flatbuffer.read(file.content)
    assert "NEG" not in tflite_export.inspect(file).ops
    codes = {stored.OperatorCodes(i).BuiltinCode() for i in range(stored.OperatorCodesLength())}
    assert len(codes) == len({*tflite_export.inspect(file).ops})


def test_16_bits_look_words_up():
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    model = keras.Model(tokens, layers.Dense(3)(layers.Embedding(9, 4)(tokens)))
    data = np.random.default_rng(0).integers(0, 9, (120, 5)).astype("int32")
    file = tflite_export.convert(model, "int16x8", data)
    assert [info.dtype for info in (*file.inputs, *file.outputs)] == ["int32", "int16"]
    expected = model.predict(data, verbose=0)
    np.testing.assert_allclose(file.predict(data), expected, atol=0.01 * np.abs(expected).max())


def test_16_bits_name_the_layer_without_a_kernel_in_the_middle():
    tokens = keras.Input((6, 8), name="tokens")
    wave = layers.Activation(keras.ops.sin, name="wave")(layers.Dense(4, activation="relu")(tokens))
    data = np.random.default_rng(0).normal(size=(64, 6, 8)).astype("float32")
    with pytest.raises(ConversionError, match=r"layer 'wave': SIN stayed float.*or 'int8_float_io', which") as caught:
        tflite_export.convert(keras.Model(tokens, layers.Dense(3)(wave)), "int16x8", data)
    assert "layers=" not in str(caught.value)


def test_layer_normalization_in_16_bits_is_nearer_than_in_8():
    data = np.random.default_rng(0).normal(size=(128, 6, 8)).astype("float32")
    model = normalized()
    files = {precision: tflite_export.convert(model, precision, data) for precision in ("int8", "int16x8")}
    assert "SQUARED_DIFFERENCE" not in tflite_export.inspect(files["int16x8"]).ops  # it has no kernel of 16 bits
    noise = {precision: tflite_export.verify(model, file, data).snr_db for precision, file in files.items()}
    assert noise["int16x8"] > noise["int8"] + 6, noise


def test_16_bits_name_the_layer_without_a_kernel_at_the_input():
    tokens = keras.Input((6, 8), name="tokens")
    model = keras.Model(tokens, layers.Dense(3)(layers.Activation(keras.ops.sin, name="wave")(tokens)))
    data = np.random.default_rng(0).normal(size=(64, 6, 8)).astype("float32")
    with pytest.raises(ConversionError, match=r"layer 'wave' is computed by SIN.*16 bits. Choose 'dynamic' or 'fl"):
        tflite_export.convert(model, "int16x8", data)


class _Constant(layers.Layer):
    def call(self, inputs):
        return keras.ops.zeros_like(inputs) + 2.5


@pytest.mark.parametrize(("precision", "told"), [("int16x8", "touches nothing"), ("int8", "'fixed' stayed float32")])
def test_an_output_that_is_a_constant(precision, told):
    x = keras.Input((8,))
    model = keras.Model(x, [layers.Dense(4, name="head")(x), _Constant(name="fixed")(x)])
    data = np.random.default_rng(0).normal(size=(128, 8)).astype("float32")
    with pytest.raises(ConversionError, match=f"{told}.*Leave constants and inputs that are handed on out") as caught:
        tflite_export.convert(model, precision, data)
    assert "'int8_float_io'" in str(caught.value)


@pytest.mark.parametrize("precision", ["int16x8", "int8"])
def test_the_last_layer_is_named_when_its_operation_makes_the_output(precision):
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(3, name="head", activation="elu")(x))
    with pytest.raises(ConversionError, match="layer 'head'"):
        tflite_export.convert(model, precision, np.random.default_rng(0).normal(size=(128, 8)).astype("float32"))


def test_operations_from_outside_are_advised_where_they_can_be():
    x = keras.Input((8,))
    model = keras.Model(x, [layers.Dense(5)(x), keras.ops.argmax(x, axis=-1)])
    data = np.random.default_rng(0).normal(size=(128, 8)).astype("float32")
    with pytest.raises(ConversionError, match=r"convert to 'float32', 'float16' or 'dynamic' with custom_ops=\['Flex"):
        tflite_export.convert(model, "int8", data)
    with pytest.raises(ConversionError, match=r"pass custom_ops=\['Flex"):
        tflite_export.convert(model, "float16")


def test_a_model_that_keras_quantized():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="packed")])
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"quantized by Keras.*in the layers 'packed'.*'weight_int8'"):
        tflite_export.convert(model, "float32")


def test_a_model_without_operations():
    same = keras.Input((5,), name="same")
    model = keras.Model(same, layers.Activation("linear")(same))
    data = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
    for precision in ("float32", "int8_float_io", "int8_int4"):
        found = tflite_export.convert(model, precision, data).predict(data)
        np.testing.assert_allclose(found, data, atol=0.02)


def test_states_of_layers_are_as_they_were():
    recurrent = layers.LSTM(5, stateful=True, unroll=True)
    model = keras.Sequential([keras.Input((4, 3), batch_size=2), recurrent])
    model(np.ones((2, 4, 3), "float32"))
    before = [np.array(state) for state in recurrent.states]
    assert all(state.any() for state in before)
    tflite_export.convert(model, "float32", batch=2)
    for state, value in zip(recurrent.states, before, strict=True):
        np.testing.assert_array_equal(state, value)


def test_what_is_missing_is_told_in_float16_as_in_float32():
    inputs = keras.Input((12,))
    model = keras.Model(inputs, keras.ops.argmax(layers.Dense(5)(inputs), -1))
    with pytest.raises(ConversionError) as caught:
        tflite_export.convert(model, "float16")
    assert "set_dtype_policy" not in str(caught.value)


def test_one_sample_that_was_not_scaled_is_told():
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).random((200, 8, 8, 3)).astype("float32")
    images[150] *= 255
    stack = [layers.Conv2D(8, 3, activation="relu"), layers.GlobalAveragePooling2D(), layers.Dense(4, name="logits")]
    model = keras.Sequential([keras.Input((8, 8, 3)), *stack])
    with pytest.warns(UserWarning, match="representative_data") as told:
        file = tflite_export.convert(model, "int8", images)
    texts = [str(warning.message) for warning in told]
    assert any("sample 150 reaches" in text and "was it not scaled as the others" in text for text in texts)
    assert np.unique(file.predict(images[:8])).size == 1
    assert any("output 'logits': the file gives" in text for text in texts)
    assert any("Look at the representative data" in note for note in file.notes)
