"""What `make_student` refuses, and what it says then."""

import re

import keras
import numpy as np
import pytest
from distillation_oracles import mlp
from keras import layers as L

from kdopt.distillation import Distiller, make_student


def resnet():
    def conv(h, width, name, strides=1):
        h = L.Conv2D(width, 3, strides, padding="same", use_bias=False, name=name)(h)
        return L.BatchNormalization()(h)

    x = keras.Input((8, 8, 3))
    h = L.ReLU()(conv(x, 16, "stem"))
    h = L.ReLU()(L.Add()([h, conv(L.ReLU()(conv(h, 16, "inner")), 16, "outer")]))
    h = L.ReLU()(conv(h, 32, "last", 2))
    return keras.Model(x, L.Dense(5, name="classes")(L.GlobalAveragePooling2D()(h)), name="resnet")


class Wrapped(L.Dense):
    def to_plain(self):
        return L.Dense(self.units)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "`width` must be a fraction in (0, 1]"),
        ({"width": 1.5}, "`width` must be a fraction"),
        ({"width": "half"}, "`width` must be a fraction"),
        ({"width": {}}, "`width` must be a fraction"),
        ({"width": {"stem": 2}}, "`width` must be a fraction"),
        ({"width": {"stam": 0.5}}, "'stam' in `width` fits no layer of the model. Did you mean 'stem'?"),
        ({"width": {"classes": 0.5}}, "`width` names 'classes', but no channel of it may go: output 'classes'"),
        ({"width": lambda path: 0}, "The function `width` returned 0 for 'stem'"),
        ({"depth": 0}, "`depth` must be a fraction in (0, 1]; got 0"),
        ({"depth": 1.5}, "`depth` must be a fraction"),
        ({"round_to": 0}, "`round_to` must be an integer >= 1"),
        ({"round_to": 32}, "round_to=32 keeps the 32 channels of the widest group that may be cut"),
        ({"initialize": "zeros"}, "`initialize` must be one of 'random', 'teacher'"),
        ({"seed": -1}, "`seed` must be an integer >= 0"),
        ({"exclude": ["inne"]}, "'inne' in `exclude` fits no layer of the model. Did you mean 'inner'?"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_student(resnet(), **arguments)


def test_models_that_are_refused():
    with pytest.raises(TypeError, match="must be a built keras.Model; got str"):
        make_student("teacher.keras")
    with pytest.raises(ValueError, match="not built"):
        make_student(keras.Sequential([L.Dense(16), L.Dense(2)]))
    with pytest.raises(TypeError, match=r"is a Distiller: give its `teacher`"):
        make_student(Distiller(student=mlp(0), teacher=mlp(1)))
    with pytest.raises(TypeError, match="wrapped for pruning"):
        make_student(keras.Sequential([keras.Input((4,)), Wrapped(16), L.Dense(2)]))
    with pytest.raises(TypeError, match="`exclude` must be a list"):
        make_student(resnet(), exclude="inner")
    teacher = mlp(0, width=16)
    teacher.layers[1].kernel.assign(np.full((6, 16), np.nan))
    with pytest.raises(ValueError, match="NaN"):
        make_student(teacher)
