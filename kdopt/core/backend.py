"""The one Keras backend that leads to a `.tflite`."""

import keras


def require_tensorflow(what: str) -> None:
    """Refuses another Keras backend than TensorFlow.

    Args:
        what: String, the caller as the user knows it, e.g. `"GradualPruning"`.

    Raises: RuntimeError with the line that switches.
    """
    backend = keras.config.backend()
    if backend != "tensorflow":
        raise RuntimeError(
            f"{what} needs Keras on the TensorFlow backend; this process runs Keras on {backend!r}. Switch before "
            'the first `import keras`: `import os; os.environ["KERAS_BACKEND"] = "tensorflow"`.'
        )
