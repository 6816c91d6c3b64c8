import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from pruning_net import Watch, X, Y, fit, kernels, make_model, zeros

from kdopt.pruning import GradualPruning
from kdopt.schedules import Constant, Polynomial

SIZES = [72, 36, 32, 24]


SETTINGS = {
    "plain": ({}, {}),
    "eager": ({}, {"run_eagerly": True}),
    "jit_compile": ({}, {"jit_compile": True}),
    "ema": ({"use_ema": True, "ema_momentum": 0.5}, {}),
}


CASES = [("plain", True), ("ema", True)]
LONG = [("eager", True), ("plain", False), ("jit_compile", False), ("jit_compile", True)]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in LONG]


@pytest.mark.parametrize(("setting", "trained"), CASES)
def test_zeros_follow_the_schedule_and_nothing_stays(setting, trained):
    optimizer_args, compile_args = SETTINGS[setting]
    model = make_model(keras.optimizers.Adam(0.01, **optimizer_args), **compile_args)
    if trained:
        fit(model)
    watch = Watch()
    schedule = Polynomial(0.75, initial_sparsity=0.25, begin_step=2, end_step=10, frequency=4)
    logs = fit(model, watch, GradualPruning(schedule))

    def expected(step):
        return [round(schedule(step) * size) for size in SIZES]

    # Batch n (from 0) runs with the masks of the last update at or before n updates: at 2, 6 and 10.
    by_hand = [[0] * 4] * 2 + [expected(2)] * 4 + [expected(6)] * 4 + [expected(10)] * 6
    assert watch.zeros == by_hand
    assert zeros(model) == expected(10) == [54, 27, 24, 18]
    assert logs.history["sparsity"] == pytest.approx([sum(expected(6)) / 164, 0.75])
    assert logs.history["sparsity/hidden"] == pytest.approx([expected(6)[2] / 32, 0.75])
    assert sorted(k for k in logs.history if "/" in k) == [
        f"sparsity/{n}" for n in ("conv", "depthwise", "hidden", "logits")
    ]
    assert [v for v in model.trainable_variables if v.constraint is not None] == []
    fit(model, epochs=1)
    assert zeros(model) == [0] * 4


def test_masks_are_the_smallest_magnitudes():
    model = make_model(keras.optimizers.SGD(0.0))
    before = [kernel.numpy() for kernel in kernels(model)]
    fit(model, GradualPruning(Constant(0.5)), epochs=1)
    for kernel, old in zip(kernels(model), before, strict=True):
        kept = np.sort(np.argsort(np.abs(old), axis=None)[old.size // 2 :])
        np.testing.assert_array_equal(np.flatnonzero(kernel.numpy()), kept)
        np.testing.assert_array_equal(kernel.numpy().flat[kept], old.flat[kept])
        assert not np.any(np.signbit(kernel.numpy()[kernel.numpy() == 0]))  # -0.0 does not compress like 0.0


def test_biases_and_normalization_are_left_alone():
    model = make_model(keras.optimizers.SGD(0.0))
    others = [v for v in model.trainable_variables if not any(v is kernel for kernel in kernels(model))]
    assert len(others) == 6
    for variable in others:
        variable.assign(np.linspace(0.01, 0.02, variable.shape[0]))
    fit(model, GradualPruning(Constant(0.9)), epochs=1)
    for variable in others:
        np.testing.assert_allclose(variable.numpy(), np.linspace(0.01, 0.02, variable.shape[0]))


def test_global_scope_and_chosen_layers():
    model = make_model(keras.optimizers.SGD(0.0))
    conv, _, hidden, _ = kernels(model)
    conv.assign(np.linspace(1, 2, 72).reshape(conv.shape))
    hidden.assign(np.linspace(0.1, 0.9, 32).reshape(hidden.shape))
    fit(model, GradualPruning(Constant(0.25), scope="global", layers=["conv", "hidden"]), epochs=1)
    assert zeros(model) == [0, 0, 26, 0]


def test_a_users_constraint_still_applies():
    model = make_model()
    kernel = kernels(model)[2]
    kernel.constraint = keras.constraints.MaxNorm(0.5, axis=0)
    fit(model, GradualPruning(Constant(0.5)))
    assert np.count_nonzero(kernel.numpy()) == 16
    assert np.all(np.linalg.norm(kernel.numpy(), axis=0) <= 0.5 + 1e-5)
    assert isinstance(kernel.constraint, keras.constraints.MaxNorm)


@pytest.mark.parametrize("per_execution", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_steps_per_execution_updates_at_the_first_boundary_at_or_after(per_execution):
    model = make_model(steps_per_execution=per_execution)
    watch = Watch()
    schedule = Polynomial(0.75, initial_sparsity=0.25, begin_step=2, end_step=6, frequency=4)
    fit(model, watch, GradualPruning(schedule), epochs=1)
    first = [round(schedule(per_execution) * size) for size in SIZES]
    assert watch.zeros[0] == [0] * 4
    assert watch.zeros[1] == first
    assert zeros(model) == [54, 27, 24, 18]


def test_steps_are_updates_not_batches():
    model = make_model(keras.optimizers.Adam(0.01, gradient_accumulation_steps=4))
    watch = Watch()
    fit(model, watch, GradualPruning(Polynomial(0.5, begin_step=1, end_step=2)))  # 16 batches, 4 updates
    half = [36, 18, 16, 12]
    assert watch.zeros == [[0] * 4] * 8 + [half] * 8


def test_mixed_precision_skips_are_not_steps():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = make_model()
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    x = X.copy()
    x[:32] = np.inf  # four batches without an update
    watch = Watch()
    callback = GradualPruning(Polynomial(0.5, begin_step=2, end_step=3))
    model.fit(x, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[callback, watch])
    assert [z[0] for z in watch.zeros] == [0] * 6 + [0, 36]


def test_subclassed_model_and_unknown_layer():
    class Own(layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(shape[-1], 3), name="table")

        def call(self, x):
            return x @ self.table

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.stem = layers.Conv2D(4, 3)
            self.pool = layers.GlobalAveragePooling2D()
            self.own = Own(name="own")

        def call(self, x):
            return self.own(self.pool(self.stem(x)))

    model = Net()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(UserWarning, match="leaves out layers of a kind it does not know. 'own': Own has no rule"):
        fit(model, GradualPruning(Constant(0.5)))
    assert np.count_nonzero(model.stem.kernel.numpy()) == 36


def test_what_is_saved_names_no_class_of_ours(tmp_path):
    model = make_model(run_eagerly=True)
    saving = keras.callbacks.ModelCheckpoint(str(tmp_path / "during.keras"))
    model.fit(X, Y, batch_size=32, verbose=0, callbacks=[GradualPruning(Constant(0.5)), saving])
    model.save(tmp_path / "after.keras")
    for name in ("during.keras", "after.keras"):
        with zipfile.ZipFile(tmp_path / name) as file:
            assert b"kdopt" not in file.read("config.json")
        kernel = keras.models.load_model(tmp_path / name).get_layer("conv").kernel
        assert kernel.constraint is None
        assert np.count_nonzero(kernel.numpy()) == 36


@pytest.mark.slow
def test_the_saved_model_loads_without_kdopt(tmp_path):
    model = make_model()
    path = tmp_path / "m.keras"
    fit(model, GradualPruning(Constant(0.5)), keras.callbacks.ModelCheckpoint(str(tmp_path / "during.keras")))
    model.save(path)
    code = f"""
    import sys
    sys.modules["kdopt"] = None
    import keras, numpy as np
    for name in ("m.keras", "during.keras"):
        model = keras.models.load_model({str(tmp_path)!r} + "/" + name)
        kernel = model.get_layer("conv").kernel
        assert kernel.constraint is None and np.count_nonzero(kernel.numpy()) == 36
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_schedule_that_cannot_finish_warns():
    model = make_model()
    with pytest.warns(
        UserWarning, match="ended after 8 updates, before the schedule did: sparsity is 0.[0-9]+ instead of 0.8"
    ) as caught:
        fit(model, GradualPruning(Polynomial(0.8, end_step=1000, frequency=4)), epochs=1)
    ours = [warning for warning in caught if "GradualPruning" in str(warning.message)]
    # The line that calls `fit`, not ours and not Keras's.
    assert [Path(warning.filename).name for warning in ours] == ["pruning_net.py"]
    assert all(kernel.constraint is None for kernel in kernels(model))


def test_no_batch_warns():
    model = make_model()
    with pytest.warns(UserWarning, match="fit ran no batch, so nothing was pruned"):
        fit(model, GradualPruning(Constant(0.5)), epochs=1, initial_epoch=1)


def test_a_dead_kernel_warns():
    model = make_model(keras.optimizers.SGD(0.0))
    kernels(model)[3].assign(np.full((8, 3), 1e-6))
    with pytest.warns(UserWarning, match="every weight of logits is zero"):
        fit(model, GradualPruning(Constant(0.5), scope="global"), epochs=1)


def test_an_interrupted_fit_leaves_nothing_for_the_next():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = make_model()
    first = GradualPruning(Constant(0.75))
    with pytest.raises(KeyboardInterrupt):
        fit(model, Stop(), first)
    fit(model, GradualPruning(Constant(0.25)))
    assert zeros(model)[:2] == [18, 9]  # 54 and 27 if the first masks still acted
    first.release()
    assert all(kernel.constraint is None for kernel in kernels(model))


def test_two_callbacks_for_different_layers():
    model = make_model()
    logs = fit(
        model,
        GradualPruning(Constant(0.5), layers=["conv"]),
        GradualPruning(Constant(0.25), layers=["head"]),
    )
    assert zeros(model) == [36, 0, 8, 6]
    assert logs.history["sparsity/conv"][-1] == 0.5
    assert logs.history["sparsity/hidden"][-1] == 0.25
    assert all(kernel.constraint is None for kernel in kernels(model))


def test_bad_arguments():
    with pytest.raises(TypeError, match="`schedule` must be a kdopt.schedules.Schedule"):
        GradualPruning(0.8)
    with pytest.raises(ValueError, match="Unknown criterion 'l3'. (Did you mean 'l[12]'. )?Known: .*l1, l2"):
        GradualPruning(Constant(0.5), criterion="l3")
    with pytest.raises(ValueError, match="`scope` must be one of 'layer', 'global'"):
        GradualPruning(Constant(0.5), scope="model")
    model = make_model()
    with pytest.raises(ValueError, match="no layer 'norm' with a prunable kernel. Prunable here: conv"):
        fit(model, GradualPruning(Constant(0.5), layers=["norm"]))
    with pytest.raises(ValueError, match="no layer 'hiden' with a prunable kernel. Did you mean 'hidden'"):
        fit(model, GradualPruning(Constant(0.5), layers=["hiden"]))
    kernels(model)[0].assign(np.full((3, 3, 2, 4), np.nan))
    with pytest.raises(ValueError, match="pruning scores of 'conv' are NaN or infinite: training has diverged"):
        fit(model, GradualPruning(Constant(0.5)))
    assert all(kernel.constraint is None for kernel in kernels(model))


def test_terminate_on_nan_ends_the_fit_as_without_pruning():
    model = make_model(keras.optimizers.SGD(1e30))
    with pytest.warns(UserWarning, match="before the schedule did"):
        logs = fit(model, keras.callbacks.TerminateOnNaN(), GradualPruning(Polynomial(0.5, end_step=8, frequency=2)))
    assert len(logs.history["loss"]) == 1
    assert all(kernel.constraint is None for kernel in kernels(model))
