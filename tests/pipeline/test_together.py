"""Pruning, distillation and quantization-aware training in one `fit`, down to the file."""

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.distillation import Distiller, losses
from kdopt.pruning import GradualPruning
from kdopt.quantization import quantize_aware
from kdopt.schedules import Polynomial
from tflite_export import convert
from tflite_export.tflite import records

X = np.random.default_rng(0).normal(size=(64, 8, 8, 2)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 64)


def net(width, name):
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Add()([x, layers.ReLU()(layers.Conv2D(width, 3, padding="same", name="body")(x))])
    head = keras.Sequential([keras.Input((width,)), layers.Dense(3, activation="softmax", name="classes")], name="head")
    return keras.Model(inputs, head(layers.GlobalAveragePooling2D()(x)), name=name)


@pytest.mark.parametrize("engine", ["native", pytest.param("tfmot", marks=pytest.mark.slow)])
def test_one_fit_learns_from_inner_layers_of_a_quantized_student(engine):
    """The tapped tensor is what the QAT model computes there: rounded, between the layers around it."""
    teacher, student = net(8, "teacher"), net(4, "student")
    qat = quantize_aware(student, engine=engine, calibration=X)
    hint = losses.Hint("body", projector=layers.Dense(8, kernel_initializer="ones"))
    distiller = Distiller(student=qat, teacher=teacher, distillation_losses=["soft_targets", hint])
    distiller.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    first = distiller.evaluate(X, Y, verbose=0, return_dict=True)["hint_loss"]
    body = [keras.Model(model.inputs, model.get_layer("body").output)(X) for model in (teacher, student)]
    projected = np.repeat(np.sum(body[1], -1, keepdims=True), 8, -1)
    assert first == pytest.approx(np.mean((body[0] - projected) ** 2), rel=0.05)  # the student is not yet rounded here
    pruning = GradualPruning(Polynomial(0.5, end_step=12, frequency=4))
    logs = distiller.fit(X, Y, batch_size=8, epochs=4, verbose=0, callbacks=[pruning]).history
    assert logs["hint_loss"][-1] < first
    kernel = qat.strip().get_layer("body").kernel.numpy()
    assert np.mean(kernel == 0) == 0.5
    assert not any(layer.name.startswith("hint") for layer in qat._flatten_layers())
    assert convert(qat, "int8").calibrated == ()


@pytest.mark.parametrize("engine", [pytest.param("native", marks=pytest.mark.slow), "tfmot"])
def test_a_quantized_student_with_inner_losses_is_saved_and_needs_no_calibration(engine, tmp_path):
    qat = quantize_aware(net(4, "student"), engine=engine)
    distiller = Distiller(student=qat, teacher=net(8, "teacher"), distillation_losses=losses.Hint("body"))
    distiller.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    distiller.fit(X, Y, batch_size=16, epochs=2, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    expected = distiller.evaluate(X, Y, verbose=0, return_dict=True)
    assert loaded.evaluate(X, Y, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-4)


def test_one_fit_prunes_distills_and_quantizes():
    teacher, student = net(8, "teacher"), net(4, "student")
    before = [weight.copy() for weight in teacher.get_weights()]
    qat = quantize_aware(student, calibration=X)
    distiller = Distiller(student=qat, teacher=teacher)  # softmax on both sides is read from the graphs
    distiller.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    pruning = GradualPruning(Polynomial(0.5, end_step=12, frequency=4))
    logs = distiller.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[pruning]).history

    assert [view.name for view in pruning.kernels] == ["stem", "body", "classes"]
    assert logs["sparsity"][-1] == 0.5
    assert {"loss", "student_loss", "soft_targets_loss", "accuracy"} <= set(logs)
    for now, then in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert all(variable.constraint is None for variable in qat.trainable_variables)

    stripped = qat.strip()
    kernels = [stripped.get_layer("stem").kernel, stripped.get_layer("body").kernel]
    kernels.append(stripped.get_layer("head").get_layer("classes").kernel)
    assert [np.mean(kernel.numpy() == 0) for kernel in kernels] == [0.5] * 3

    with pytest.raises(TypeError, match="convert its student, `distiller.student`"):
        convert(distiller, "float32")
    file = convert(qat, "int8")
    assert file.calibrated == ()
    sizes = {int(np.prod(kernel.shape)): kernel for kernel in kernels}
    stored = [
        t for t in records.tensors(file.content) if t.data is not None and t.dtype == "int8" and t.data.size in sizes
    ]
    assert len(stored) == 3
    for tensor in stored:
        assert np.mean(tensor.data == 0) >= 0.5  # rounding adds zeros, and takes none away
