"""Which activation a model ends with, for the ways people write it."""

import keras
import pytest
from keras import layers

from kdopt.distillation.activations import output_activations


def end(make):
    inputs = keras.Input((6,))
    return keras.Model(inputs, make(layers.Dense(4)(inputs)))


class OwnDense(layers.Dense):
    pass


class Opaque(layers.Layer):
    def call(self, x):
        return x


class Subclassed(keras.Model):
    def call(self, x):
        return x


ENDS = {
    "dense": (lambda x: layers.Dense(3)(x), "linear"),
    "dense_softmax": (lambda x: layers.Dense(3, activation="softmax")(x), "softmax"),
    "dense_sigmoid": (lambda x: layers.Dense(3, activation="sigmoid")(x), "sigmoid"),
    "own_subclass": (lambda x: OwnDense(3, activation="softmax")(x), "softmax"),
    "activation_layer_inside": (lambda x: layers.Dense(3, activation=layers.Softmax())(x), "softmax"),
    "activation_layer": (lambda x: layers.Activation("sigmoid")(x), "sigmoid"),
    "softmax_layer": (lambda x: layers.Softmax()(x), "softmax"),
    "softmax_function": (lambda x: keras.activations.softmax(x), "softmax"),
    "softmax_op": (lambda x: keras.ops.softmax(x), "softmax"),
    "sigmoid_op": (lambda x: keras.ops.sigmoid(x), "sigmoid"),
    "log_softmax": (lambda x: keras.ops.log_softmax(x), "linear"),
    "float32_after_softmax": (lambda x: layers.Activation("linear", dtype="float32")(layers.Softmax()(x)), "softmax"),
    "dropout_after_softmax": (lambda x: layers.Dropout(0.1)(layers.Softmax()(x)), "softmax"),
    "cast_after_softmax": (lambda x: keras.ops.cast(layers.Softmax()(x), "float32"), "softmax"),
    "reshape_keeps_classes": (lambda x: layers.Reshape((1, 4))(layers.Softmax()(x)), "softmax"),
    "reshape_moves_classes": (lambda x: layers.Reshape((2, 2))(layers.Softmax()(x)), None),
    "average_of_softmax": (lambda x: layers.Average()([layers.Softmax()(x), keras.ops.softmax(-x)]), "softmax"),
    "average_of_both": (lambda x: layers.Average()([layers.Softmax()(x), x]), None),
    "sum_of_logits": (lambda x: (x + layers.Dense(4)(x)) / 2.0, "linear"),
    "sum_of_softmax": (lambda x: (layers.Softmax()(x) + keras.ops.softmax(-x)) / 2.0, None),
    "pooled_logits": (lambda x: layers.GlobalAveragePooling1D()(layers.Reshape((2, 2))(x)), "linear"),
    "normalization": (lambda x: layers.BatchNormalization()(x), "linear"),
    "time_distributed": (
        lambda x: layers.TimeDistributed(layers.Dense(2, activation="softmax"))(layers.Reshape((2, 2))(x)),
        "softmax",
    ),
    "nested": (
        lambda x: keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])(x),
        "softmax",
    ),
    "other_axis": (lambda x: layers.Softmax(axis=1)(layers.Reshape((2, 2))(x)), None),
    "lambda": (lambda x: layers.Lambda(lambda z: z)(x), None),
    "own_layer": (lambda x: Opaque()(x), None),
    "own_function": (lambda x: layers.Dense(3, activation=lambda z: z)(x), None),
    "hard_sigmoid": (lambda x: layers.Dense(3, activation="hard_sigmoid")(x), None),
    "hard_sigmoid_layer": (lambda x: layers.Activation("hard_sigmoid")(x), None),
}


@pytest.mark.parametrize("case", ENDS)
def test_last_activation(case):
    make, expected = ENDS[case]
    assert output_activations(end(make)) == [expected]


def test_several_outputs_in_the_order_of_flatten():
    inputs = keras.Input((6,))
    outputs = {"b": layers.Dense(2)(inputs), "a": layers.Dense(2, activation="softmax")(inputs)}
    model = keras.Model(inputs, outputs)
    assert output_activations(model) == ["softmax", "linear"]
    nested = model(inputs)
    assert output_activations(keras.Model(inputs, [nested["b"], nested["a"]])) == ["linear", "softmax"]


def test_sequential_before_it_is_built():
    assert output_activations(keras.Sequential([layers.Dense(3), layers.Softmax(), layers.Dropout(0.1)])) == ["softmax"]
    assert output_activations(keras.Sequential([layers.Softmax(), layers.Dense(3)])) == ["linear"]


def test_a_subclassed_model_is_unknown_unless_it_says():
    model = Subclassed()
    assert output_activations(model) is None
    model.output_activation = "sigmoid"
    assert output_activations(model) == ["sigmoid"]
    model.output_activation = "relu"
    with pytest.raises(ValueError, match="output_activation"):
        output_activations(model)


def test_a_subclassed_model_may_stand_for_a_graph():
    class Facade(Subclassed):
        def output_activation(self):
            return end(lambda x: layers.Dense(3, activation="softmax")(x))

    assert output_activations(Facade()) == ["softmax"]
