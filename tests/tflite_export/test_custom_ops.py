"""Operations that are not builtin: refused, or allowed by name and then told."""

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export.errors import ConversionError


class Determinant(keras.layers.Layer):
    def call(self, inputs):
        import tensorflow as tf

        return tf.linalg.det(inputs)


@pytest.fixture(scope="module")
def model():
    matrix = keras.Input((3, 3), name="matrix")
    value = keras.layers.Reshape((1,))(Determinant(name="special")(matrix))
    return keras.Model(matrix, keras.layers.Dense(4, name="head")(value))


@pytest.mark.parametrize(
    ("name", "precision"), [("FlexMatrixDeterminant", "dynamic"), ("MatrixDeterminant", "float32")]
)
def test_allowed_by_name(model, name, precision, tmp_path):
    with pytest.raises(ConversionError, match=r"layer 'special'(.|\n)*custom_ops=\['FlexMatrixDeterminant'\]"):
        tflite_export.convert(model, precision)
    file = tflite_export.convert(model, precision, custom_ops=[name])
    assert tflite_export.inspect(file).custom_ops == (name,)
    assert [(info.name, info.shape, info.dtype) for info in (*file.inputs, *file.outputs)] == [
        ("matrix", (1, 3, 3), "float32"),
        ("head", (1, 4), "float32"),
    ]
    assert f"neither loaded nor compared with its source here, since it holds {name}" in str(file)
    assert ("select-tf-ops" in str(file)) == name.startswith("Flex")
    assert file.save(tmp_path / "m.tflite").read_bytes() == file.content
    with pytest.raises(ValueError, match=f"ai_edge_litert cannot load the file: it does not have {name}"):
        file.predict(np.zeros((1, 3, 3), "float32"))


def test_another_name_does_not_allow_it(model):
    with pytest.raises(ConversionError, match="FlexMatrixDeterminant is no builtin operation") as caught:
        tflite_export.convert(model, "float32", custom_ops=["FlexErf"])
    assert [(one.rule, one.op, one.layer) for one in caught.value.violations] == [
        ("builtin operations", "FlexMatrixDeterminant", "special")
    ]


def test_a_file_without_them_is_compared_as_ever(dense):
    assert tflite_export.convert(dense, "float32", custom_ops=["FlexErf"]).notes == ()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "float32", "custom_ops": "FlexErf"}, TypeError, r"must be a list of names.*got 'FlexErf'"),
        ({"precision": "int8", "custom_ops": ["A"]}, ValueError, "does not go with 'int8'.*would have to run here"),
        ({"target": "xnnpack", "custom_ops": ["A"]}, ValueError, "runs builtin operations only"),
    ],
)
def test_bad_arguments(dense, options, error, message):
    with pytest.raises(error, match=message):
        tflite_export.convert(dense, representative_data=np.zeros((40, 12), "float32"), **options)
