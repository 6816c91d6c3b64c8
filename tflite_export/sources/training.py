"""Functions that go on training the last layer of a model on the device, of builtin operations alone."""

from collections.abc import Callable
from typing import Any


def trainable_head(
    model: Any, *, batch: int = 8, learning_rate: float = 0.01, momentum: float = 0.0
) -> dict[str, Callable[..., Any]]:
    """A classifier as four signatures for `convert`: what it says, a step of training, its head out and in again.

        infer(inputs) -> logits
        train(inputs, label) -> loss        v = momentum * v + gradient;  head = head - learning_rate * v
        save() -> parameters                kernel, row by row, then bias: shape (1, n)
        restore(parameters) -> parameters

    The layers before the last one stay as they are; their features are computed anew in every step. The loss is the
    mean cross-entropy over the batch. The head's numbers live in the runtime: an app keeps what `save` returns and
    gives it to `restore` after the next start, or sends it to a server (federated learning).

    Args:
        model: Keras 3 Functional or Sequential model whose last layer is a Dense with softmax or without activation.
        batch: Integer >= 1, samples of a step of training. Defaults to 8.
        learning_rate: Float > 0. Defaults to 0.01.
        momentum: Float in [0, 1). Defaults to 0.

    Returns: dict for `convert(..., "float32")`.
    Raises: TypeError, ValueError.

    Example:
    ```
    file = tflite_export.convert(tflite_export.trainable_head(model, learning_rate=0.1), "float32")
    session = file.session()
    session.run("train", {"image": images, "label": labels})      # a multiple of 8 samples
    kept = session.run("save")["parameters"]
    session.run("restore", {"parameters": kept})
    ```

    Reference: Bottou, Curtis, Nocedal, "Optimization methods for large-scale machine learning", SIAM Review 2018,
    section 7.1 (momentum).
    """
    import keras
    import tensorflow as tf

    last = _checked(model, batch, learning_rate, momentum)
    backbone = keras.Model(model.inputs, last.input)
    kernel, bias = (tf.Variable(value, name=f"head_{name}") for name, value in _weights_of(last).items())
    speed = [tf.Variable(tf.zeros_like(variable)) for variable in (kernel, bias)]
    shape, classes = tuple(kernel.shape), int(kernel.shape[1])
    specs = [tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, tensor.name) for tensor in model.inputs]
    fixed = [tf.TensorSpec((batch, *spec.shape[1:]), spec.dtype, spec.name) for spec in specs]
    count = shape[0] * shape[1] + classes

    def features(inputs: tuple[Any, ...]) -> Any:
        return tf.stop_gradient(backbone(list(inputs) if len(inputs) > 1 else inputs[0], training=False))

    def packed() -> dict[str, Any]:
        return {"parameters": tf.concat([tf.reshape(kernel, (1, -1)), tf.reshape(bias, (1, -1))], axis=1)}

    @tf.function(input_signature=specs, autograph=False)
    def infer(*inputs: Any) -> dict[str, Any]:
        return {"logits": features(inputs) @ kernel + bias}

    @tf.function(input_signature=[*fixed, tf.TensorSpec((batch,), tf.int32, "label")], autograph=False)
    def train(*given: Any) -> dict[str, Any]:
        x, label = features(given[:-1]), given[-1]
        log_p = tf.nn.log_softmax(x @ kernel + bias)
        target = tf.one_hot(label, classes)
        error = (tf.exp(log_p) - target) / batch  # of the mean cross-entropy, by the logits
        gradients = (tf.matmul(x, error, transpose_a=True), tf.reduce_sum(error, axis=0))
        for variable, v, gradient in zip((kernel, bias), speed, gradients, strict=True):
            v.assign(momentum * v + gradient)
            variable.assign_sub(learning_rate * v)
        return {"loss": tf.reshape(-tf.reduce_mean(tf.reduce_sum(target * log_p, axis=-1)), (1,))}

    @tf.function(input_signature=[tf.TensorSpec((1, 1), tf.float32, "unused")], autograph=False)
    def save(unused: Any) -> dict[str, Any]:
        return {"parameters": packed()["parameters"] + 0.0 * unused}

    @tf.function(input_signature=[tf.TensorSpec((1, count), tf.float32, "parameters")], autograph=False)
    def restore(parameters: Any) -> dict[str, Any]:
        kernel.assign(tf.reshape(parameters[:, : shape[0] * shape[1]], shape))
        bias.assign(tf.reshape(parameters[:, shape[0] * shape[1] :], (classes,)))
        return packed()

    return {"infer": infer, "train": train, "save": save, "restore": restore}


def _checked(model: Any, batch: int, learning_rate: float, momentum: float) -> Any:
    """The last layer."""
    import keras

    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None) or len(model.outputs) != 1:
        raise TypeError(f"`model` must be a built Functional or Sequential model with one output; got {model!r}.")
    last = model.outputs[0]._keras_history.operation
    place = f"The last layer of {model.name!r}"
    if isinstance(last, keras.Model):
        raise ValueError(f"{place} is the nested model {last.name!r}: give that to this function.")
    activation = getattr(getattr(last, "activation", None), "__name__", None)
    plain = isinstance(last, keras.layers.Dense) and activation in ("linear", "softmax")
    if not plain or len(last.output.shape) != 2:
        raise ValueError(
            f"{place} must be a Dense with softmax or without activation, for one label a sample; it is "
            f"{type(last).__name__} {last.name!r}{f' with {activation}' if activation else ''}."
        )
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ValueError(f"`batch` must be an integer >= 1; got {batch!r}.")
    if not learning_rate > 0 or not 0 <= momentum < 1:
        raise ValueError(
            f"`learning_rate` must be a number > 0 and `momentum` one in [0, 1); got {learning_rate!r}, {momentum!r}."
        )
    return last


def _weights_of(layer: Any) -> dict[str, Any]:
    import numpy as np

    kernel = np.asarray(layer.kernel, "float32")
    return {
        "kernel": kernel,
        "bias": np.asarray(layer.bias) if layer.use_bias else np.zeros(kernel.shape[1], "float32"),
    }
