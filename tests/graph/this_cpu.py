"""What TensorFlow can compute on the CPU that runs the tests."""

import functools

import keras
import numpy as np
import tensorflow as tf


@functools.cache
def convolves_channels_first():
    """It does on CPUs for which it turns its oneDNN kernels on."""
    try:
        keras.layers.Conv2D(1, 1, data_format="channels_first")(np.zeros((1, 1, 2, 2), "float32"))
    except tf.errors.UnimplementedError:
        return False
    return True
