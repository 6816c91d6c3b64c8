"""How far the int8 file is from the model that was trained, beside how far the file is from itself on other kernels.

    python benchmarks/qat_fidelity.py --data-dir FOLDER
    python benchmarks/qat_fidelity.py --data-dir FOLDER --net resnet8 lenet-5 --engine native tfmot

Each net is trained in float (or loaded: ResNet8), then for one epoch with rounding, exported, and run over the whole
test set, its inputs rounded to the file's integers: the model in Keras, the file on XNNPACK, the file on TFLite's
reference kernels. Differences of the logits (a softmax at the end is taken off) in steps of the output. Goal: mean and
99.9th percentile between model and file not above those between the two sets of kernels plus one step, and the same
class for 99.5 % of the samples.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from keras import layers as L
from qat_quality import cifar, ds_cnn

import tflite_export
from kdopt.quantization import quantize_aware

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fashion(count=20_000, test=5_000):
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    x, x_test = (images[..., None].astype("float32") / 255 for images in (x, x_test))
    return (x[:count], y[:count]), (x_test[:test], y_test[:test])


def without_softmax(model):
    """The same net up to its logits."""
    last = model.layers[-1]
    config = {**last.get_config(), "activation": "linear"}
    head = type(last).from_config(config)
    made = keras.Model(model.inputs, head(last.input))
    made.layers[-1].set_weights(last.get_weights())
    return made


def trained(model, data, epochs):
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.momentum = 0.9  # so that few steps of training reach the moving statistics
    model.compile(keras.optimizers.Adam(2e-3), LOGITS)
    model.fit(*data, batch_size=64, epochs=epochs, verbose=0)
    return model


def lenet_5(folder):
    parts = [keras.Input((28, 28, 1))]
    for filters in (6, 16):
        parts += [L.Conv2D(filters, 5, activation="relu"), L.MaxPooling2D()]
    parts += [L.Flatten(), L.Dense(120, activation="relu"), L.Dense(84, activation="relu"), L.Dense(10)]
    data, test = fashion()
    return trained(keras.Sequential(parts), data, 3), data, test


def resnet8(folder):
    net = keras.models.load_model(folder / "mlperf-tiny" / "resnet8_cifar10.keras", compile=False)
    data, test = cifar(folder)
    return without_softmax(net), data, test


def mobilenet(folder):
    net = keras.applications.MobileNet((32, 32, 3), alpha=0.25, weights=None, classes=10, classifier_activation=None)
    data, test = cifar(folder)
    x = [images / 127.5 - 1 for images in (data[0], test[0])]
    data, test = (x[0], data[1]), (x[1], test[1])
    return trained(net, data, 8), data, test


def mobilenetv3(folder):
    net = keras.applications.MobileNetV3Small(
        (32, 32, 3), alpha=0.5, weights=None, classes=10, classifier_activation=None
    )
    data, test = cifar(folder)
    return trained(net, data, 8), data, test


def scaled(folder, count=None):
    """Images in [-1, 1]."""
    (x, y), (x_test, y_test) = cifar(folder)
    return (x[:count] / 127.5 - 1, y[:count]), (x_test / 127.5 - 1, y_test)


def mobilenetv2(folder):
    net = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None)
    data, test = scaled(folder)
    return trained(net, data, 4), data, test


def efficientnet(folder):
    net = keras.applications.EfficientNetB0(
        input_shape=(32, 32, 3), weights=None, classes=10, classifier_activation=None
    )
    data, test = cifar(folder)
    return trained(net, (data[0][:4000], data[1][:4000]), 2), (data[0][:4000], data[1][:4000]), test


def spoken(folder):
    net, data, test = ds_cnn(folder)
    return trained(net, data, 12), data, test


def unet(folder):
    """Which pixels of a noisy garment are bright: two classes a pixel."""

    def pair(x, filters):
        for _ in range(2):
            x = L.ReLU()(L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", use_bias=False)(x)))
        return x

    inputs = keras.Input((28, 28, 1))
    first = pair(inputs, 8)
    second = pair(L.MaxPooling2D()(first), 16)
    x = pair(L.MaxPooling2D()(second), 32)
    x = pair(L.Concatenate()([L.Conv2DTranspose(16, 2, 2)(x), second]), 16)
    x = pair(L.Concatenate()([L.UpSampling2D(interpolation="bilinear")(x), first]), 8)
    net = keras.Model(inputs, L.Conv2D(2, 1)(x))
    random = np.random.default_rng(0)

    def task(images):
        noisy = images + random.normal(0, 0.3, images.shape).astype("float32")
        return noisy, (images[..., 0] > 0.5).astype("int32")

    (x, _), (x_test, _) = fashion(4_000, 500)
    data, test = task(x), task(x_test)
    return trained(net, data, 2), data, test


def transformer(folder):
    inputs = keras.Input((28, 28, 1))
    x = L.Reshape((49, 32))(L.Conv2D(32, 4, strides=4)(inputs))
    for _ in range(2):
        normed = L.LayerNormalization()(x)
        x = L.Add()([x, L.MultiHeadAttention(4, 8)(normed, normed)])
        x = L.Add()([x, L.Dense(32)(L.Dense(64, activation="gelu")(L.LayerNormalization()(x)))])
    data, test = fashion(10_000, 2_000)
    return trained(keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling1D()(x))), data, 3), data, test


def recurrent(folder):
    inputs = keras.Input((28, 28))
    net = keras.Model(inputs, L.Dense(10)(L.LSTM(32)(inputs)))
    (x, y), (x_test, y_test) = fashion(10_000, 2_000)
    data, test = (x[..., 0], y), (x_test[..., 0], y_test)
    return trained(net, data, 3), data, test


NETS = {
    "lenet-5": lenet_5,
    "resnet8": resnet8,
    "mobilenet": mobilenet,
    "ds-cnn": spoken,
    "mobilenetv2": mobilenetv2,
    "mobilenetv3": mobilenetv3,
    "efficientnetb0": efficientnet,
    "u-net": unet,
    "transformer": transformer,
    "lstm": recurrent,
}


def interpreter(content, xnnpack=True):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_REF
    found = Interpreter(model_content=content, experimental_op_resolver_type=kind)
    found.allocate_tensors()
    return found


def on_grid(content, x):
    """(integers of the file's input, what they stand for)."""
    (given,) = interpreter(content).get_input_details()
    scale, zero = given["quantization"]
    integers = np.clip(np.round(x / scale) + zero, -128, 127).astype("int8")
    return integers, (integers.astype("float32") - zero) * np.float32(scale)


def run(content, integers, xnnpack):
    """(logits, step) of the file."""
    found = interpreter(content, xnnpack)
    (given,), (taken,) = found.get_input_details(), found.get_output_details()
    rows = []
    for row in integers:
        found.set_tensor(given["index"], row[None])
        found.invoke()
        rows.append(found.get_tensor(taken["index"])[0].astype("float32"))
    scale, zero = taken["quantization"]
    return (np.array(rows) - zero) * scale, scale


def beside(one, other, step):
    gap = np.abs(one - other) / step
    same = np.mean(one.argmax(-1) == other.argmax(-1))
    return f"{gap.mean():.3f} | {np.quantile(gap, 0.999):.2f} | {gap.max():.0f} | {100 * same:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--engine", nargs="+", default=["native", "tfmot"], choices=("native", "tfmot"))
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    print("| net | engine | float, % | model, % | file, % | model - file: mean | 99.9 % | max | same class, % "
          "| XNNPACK - reference: mean | 99.9 % | max | same class, % |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name in options.net:
        keras.utils.set_random_seed(0)
        net, data, (x, y) = NETS[name](options.data_dir)
        for engine in options.engine:
            model = quantize_aware(net, engine=engine, calibration=data[0][:256])
            model.compile(keras.optimizers.Adam(1e-4), LOGITS)
            model.fit(*data, batch_size=64, verbose=0)
            try:
                content = tflite_export.convert(model, "int8").content
            except tflite_export.ConversionError as error:
                print(f"| {name} | {engine} | refused: {str(error).splitlines()[0]} |", flush=True)
                continue
            integers, seen = on_grid(content, x)
            logits = model.predict(seen, verbose=0)
            (file, step), (reference, _) = run(content, integers, True), run(content, integers, False)
            right = " | ".join(
                f"{100 * np.mean(z.argmax(-1) == y):.2f}" for z in (net.predict(x, verbose=0), logits, file)
            )
            print(
                f"| {name} | {engine} | {right} | {beside(logits, file, step)} | {beside(file, reference, step)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
