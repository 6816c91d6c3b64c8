"""The step of a Prunable: counted in updates, written into files, read from them."""

import keras
import numpy as np
from keras import layers

from kdopt.pruning.updating import UpdateMasks
from kdopt.pruning.wrapper import Prunable
from kdopt.schedules import Epochs, Linear, OneShot

X = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 64)


def make_model(schedule, optimizer):
    wrapped = Prunable(layers.Dense(9, name="d"), schedule)
    model = keras.Sequential([keras.Input((2,)), wrapped, layers.Dense(3, "softmax")])
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model, wrapped


def test_epochs_are_of_updates_not_of_batches():
    optimizer = keras.optimizers.Adam(0.02, gradient_accumulation_steps=2)
    model, wrapped = make_model(OneShot(0.5, begin_step=Epochs(1)), optimizer)
    model.fit(X, Y, batch_size=8, epochs=1, verbose=0, callbacks=[UpdateMasks()])  # 4 updates
    assert wrapped.complete
    assert wrapped.current_step == 4


def test_a_file_written_while_it_trains_knows_the_step(tmp_path):
    model, wrapped = make_model(Linear(0.75, end_step=16, frequency=4), "adam")

    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 6:
                model.save(tmp_path / "m.keras")

    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[UpdateMasks(), Save()])
    again = keras.models.load_model(tmp_path / "m.keras").layers[0]
    assert (wrapped.current_step, again.current_step) == (8, 6)
    wrapped.update_masks(11)
    model.load_weights(tmp_path / "m.keras")
    assert wrapped.current_step == 6
