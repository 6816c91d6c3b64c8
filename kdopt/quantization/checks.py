"""What no engine can quantize, refused with the layer's name and the way out."""

import keras

from kdopt.graph.inline import Call


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
