"""What no engine can quantize, refused with the layer's name and the way out."""

from typing import Any

import keras

from kdopt.graph.inline import Call


def check_model(model: Any) -> None:
    """Refuses what is no model of Keras 3.

    Raises: TypeError.
    """
    if isinstance(model, keras.Model):
        return
    kind = type(model)
    hint = " Load it first: `keras.models.load_model(path)`." if isinstance(model, str) else ""
    if kind.__module__.startswith("tf_keras"):
        hint = " It is one of tf_keras (Keras 2): build it with Keras 3."
    raise TypeError(f"Expected a built keras.Model; got {kind.__name__}.{hint}")


def check_unmasked(call: Call) -> None:
    """Refuses layers that produce Keras masks, which travel beside the tensors and have no place in a `.tflite`.

    Raises: ValueError.
    """
    if getattr(call.operation, "mask_zero", False) or isinstance(call.operation, keras.layers.Masking):
        raise ValueError(
            f"Layer {call.name!r} produces a Keras mask (Masking, or Embedding with mask_zero=True), "
            f"which quantize_aware does "
            "not carry. Way out: pass the mask as a tensor of its own and multiply by it."
        )
