import glob

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kdopt.core.kernels import find_kernels
from kdopt.distillation.distiller import Distiller
from kdopt.pruning.callbacks import GradualPruning
from kdopt.pruning.logger import SparsityLogger, kernel_sparsities
from kdopt.schedules import Constant, Polynomial

X = np.random.default_rng(0).normal(size=(32, 6, 6, 2)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 32)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def functional():
    """Concatenation, depthwise, a nested head; 72 + 72 + 24 weights in kernels."""
    x = keras.Input((6, 6, 2))
    h = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    h = layers.Concatenate()([h, layers.DepthwiseConv2D(3, padding="same", name="depthwise")(layers.ReLU()(h))])
    h = layers.Concatenate()([h, x])
    head = keras.Sequential([keras.Input((10,)), layers.Dense(3, name="logits")], name="head")
    return keras.Model(x, head(layers.GlobalAveragePooling2D()(layers.BatchNormalization()(h))))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(5, name="hidden")
        self.frozen = layers.Dense(5, name="frozen", trainable=False)
        self.logits = layers.Dense(3, name="logits")

    def call(self, x):
        return self.logits(self.frozen(self.hidden(layers.Flatten()(x))))


class Spare(keras.callbacks.Callback):
    """Zeroes the first rows of each kernel, one more every epoch; keeps what the other callbacks see."""

    def on_epoch_end(self, epoch, logs=None):
        for view in find_kernels(self.model)[0]:
            value = view.variable.numpy()
            value[: epoch + 1] = 0
            view.variable.assign(value)


class Watch(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append({key: value for key, value in logs.items() if key.startswith("sparsity")})


def fit(model, *callbacks, epochs=2, verbose=0):
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    return model.fit(X, Y, batch_size=16, epochs=epochs, verbose=verbose, callbacks=list(callbacks)).history


def sparsities(history):
    return {key: values for key, values in history.items() if key.startswith("sparsity")}


def scalars(folder):
    from tensorflow.core.util import event_pb2

    found = {}
    for file in sorted(glob.glob(f"{folder}/*")):
        for record in tf.data.TFRecordDataset(file):
            event = event_pb2.Event.FromString(record.numpy())
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                found.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
    return found


def test_functional_net_by_hand(tmp_path):
    logger = SparsityLogger(tmp_path / "tensorboard")
    history = sparsities(fit(functional(), Spare(), logger))
    # Rows of 24 (conv, 3), 12 (depthwise, 3) and 3 (head, 10) weights; one of them zero, then two.
    expected = {
        "sparsity": [39 / 138, 78 / 138],
        "sparsity/conv": [1 / 3, 2 / 3],
        "sparsity/depthwise": [1 / 3, 2 / 3],
        "sparsity/logits": [0.1, 0.2],
    }
    assert history == {key: pytest.approx(values) for key, values in expected.items()}
    written = scalars(tmp_path / "tensorboard")
    assert written == {key: [(i, pytest.approx(v)) for i, v in enumerate(values)] for key, values in expected.items()}


def test_subclassed_model_that_fit_builds():
    history = sparsities(fit(Subclassed(), Spare(), SparsityLogger()))
    assert list(history) == ["sparsity", "sparsity/hidden", "sparsity/logits"]
    assert history["sparsity"] == pytest.approx([8 / 375, 16 / 375])
    assert history["sparsity/logits"] == pytest.approx([0.2, 0.4])


def test_student_of_a_distiller():
    student = functional()
    distiller = Distiller(student=student, teacher=functional())
    history = sparsities(fit(distiller, Spare(), SparsityLogger()))
    assert history["sparsity"] == pytest.approx([39 / 138, 78 / 138])
    assert len(history) == 4


def test_zeros_of_every_kind_count_and_nothing_else():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="a"), layers.Dense(1, use_bias=False, name="b")])
    model.layers[0].kernel.assign([[0.0, -0.0], [1e-30, 1], [np.nan, 2], [3, 4]])
    model.layers[1].kernel.assign([[0.0], [5.0]])
    overall, each = kernel_sparsities(find_kernels(model)[0])
    assert each == {"a": 0.25, "b": 0.5}
    assert overall == pytest.approx(0.3)


def test_others_see_all_of_it_and_the_progress_bar_one_number(capsys):
    before, after = Watch(), Watch()
    fit(functional(), before, SparsityLogger(), after, epochs=1, verbose=2)
    assert before.seen == [{}]
    assert sorted(after.seen[0]) == ["sparsity", "sparsity/conv", "sparsity/depthwise", "sparsity/logits"]
    printed = capsys.readouterr().out
    assert "sparsity: " in printed
    assert "sparsity/" not in printed


@pytest.mark.parametrize("logger_first", [True, False])
def test_beside_gradual_pruning(tmp_path, logger_first, capsys):
    pruning = GradualPruning(Polynomial(0.5, end_step=4, frequency=2), layers=["conv"])
    logger, watch = SparsityLogger(tmp_path), Watch()
    pair = (logger, pruning) if logger_first else (pruning, logger)
    model = functional()
    history = sparsities(fit(model, *pair, watch, verbose=2))
    assert history["sparsity"][-1] == 0.5  # of what is pruned
    assert history["sparsity/conv"] == pytest.approx([round(0.4375 * 72) / 72, 0.5])
    assert history["sparsity/logits"] == [0, 0]
    assert sorted(watch.seen[0]) == sorted(history)
    assert scalars(tmp_path)["sparsity"][-1] == (1, pytest.approx(36 / 138))
    assert "sparsity/" not in capsys.readouterr().out


def test_a_second_fit_and_a_custom_loop(tmp_path):
    model, logger = functional(), SparsityLogger(tmp_path)
    fit(model, logger, epochs=1)
    assert len(sparsities(fit(model, Spare(), logger, epochs=1))) == 4
    assert scalars(tmp_path)["sparsity"] == [(0, 0), (0, pytest.approx(39 / 138))]
    alone = SparsityLogger()
    alone.set_model(model)
    alone.on_train_begin()
    logs = {}
    alone.on_epoch_end(0, logs)
    assert logs["sparsity/logits"] == pytest.approx(0.1)
    assert logs["sparsity"] == pytest.approx(39 / 138)


def test_without_kernels_and_bad_folder(tmp_path):
    model = keras.Sequential([keras.Input((6, 6, 2)), layers.Flatten(), layers.Dense(3, trainable=False)])
    with pytest.warns(UserWarning, match="no kernel that training updates") as caught:
        assert sparsities(fit(model, SparsityLogger())) == {}
    assert sum("no kernel" in str(warning.message) for warning in caught) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="`log_dir` must be a folder"):
        SparsityLogger(tmp_path / "file")


def test_zeros_kept_by_constant_are_logged_the_same_by_both():
    model = functional()
    model.get_layer("conv").kernel.assign(np.where(np.arange(72).reshape(3, 3, 2, 4) % 2, 1.0, 0.0))
    history = sparsities(fit(model, SparsityLogger(), GradualPruning(Constant(0.5)), epochs=1))
    assert history["sparsity"] == pytest.approx([kernel_sparsities(find_kernels(model)[0])[0]])
