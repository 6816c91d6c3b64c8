"""What cannot be rebuilt, refused with the layer's name and the way out."""

import keras

from kdopt.quantization.tfmot.trace import Call


def check_dtypes(call: Call) -> None:
    """Refuses mixed precision and layers Keras has quantized itself.

    Raises: ValueError that names the layer and the way out.
    """
    policy = getattr(call.operation, "dtype_policy", None)
    if policy is None or (policy.compute_dtype == policy.variable_dtype == "float32" and policy.name == "float32"):
        return
    # An integer or bool layer (token ids, lookups) has nothing to quantize.
    if not policy.name.startswith(("mixed", "float", "bfloat", "int8", "int4")):
        return
    raise ValueError(
        f"Layer {call.name!r} has the dtype policy {policy.name!r}; quantize_aware trains in float32, "
        f"the int8 grid is set by "
        "fake quantization. Way out: `keras.config.set_dtype_policy('float32')`, rebuild the model "
        "and copy the weights with "
        "`new.set_weights(model.get_weights())`."
    )


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
