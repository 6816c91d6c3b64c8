"""A `.tflite` file as bytes: read, changed, described; no runtime, no TensorFlow."""
