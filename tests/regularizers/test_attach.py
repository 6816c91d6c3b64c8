import keras
import numpy as np
import pytest

from kdopt.distillation import Distiller
from kdopt.regularizers import (
    L0,
    L1,
    BatchNormScale,
    GroupLasso,
    GrowingRegularization,
    HoyerSquare,
    Proximal,
    RegularizationLogger,
    SparseRegularized,
    attach,
    detach,
    strip_regularizers,
)

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 8, 8, 3)).astype("float32")
Y = RNG.integers(0, 3, 32)
CE = "sparse_categorical_crossentropy"


def residual_net():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = L.ReLU()(L.BatchNormalization(name="norm")(x))
    x = L.Add()([x, L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)])
    inner = keras.Sequential([keras.Input((8, 8, 4)), L.Conv2D(2, 1, name="in"), L.BatchNormalization(scale=False)])
    inner.name = "inner"
    x = L.Concatenate()([x, inner(x)])
    x = L.Conv2DTranspose(5, 2, name="transposed")(x)
    return keras.Model(inputs, L.Dense(3, activation="softmax", name="out")(L.GlobalAveragePooling2D()(x)))


def group_lasso(kernel, axes):
    size = np.prod([kernel.shape[a] for a in axes])
    return np.sqrt(size) * np.sqrt((kernel**2).sum(axis=axes)).sum()


def wanted(model):
    kernels = [(model.get_layer(n), axes) for n, axes in (("first", (0, 1, 2)), ("depthwise", (0, 1)), ("out", (0,)))]
    kernels += [(model.get_layer("transposed"), (0, 1, 3)), (model.get_layer("inner").get_layer("in"), (0, 1, 2))]
    return sum(group_lasso(layer.kernel.numpy(), axes) for layer, axes in kernels)


def test_on_a_trained_model_the_loss_has_the_penalty_until_detached():
    model = residual_net()
    model.compile(keras.optimizers.SGD(0.0), CE)
    plain = model.fit(X, Y, verbose=0).history["loss"][0]
    handle = attach(model, GroupLasso(0.1))
    assert [view.name for view in handle.kernels] == ["first", "depthwise", "in", "transposed", "out"]
    assert handle.value() == pytest.approx(0.1 * wanted(model), rel=1e-5)
    logs = model.fit(X, Y, verbose=0, callbacks=[handle]).history
    assert logs["penalty/group_lasso"][0] == pytest.approx(0.1 * wanted(model), rel=1e-5)
    assert logs["loss"][0] - plain == pytest.approx(0.1 * wanted(model), rel=1e-4)
    detach(handle)
    detach(handle)
    assert model.fit(X, Y, verbose=0).history["loss"][0] == pytest.approx(plain, rel=1e-5)
    with pytest.raises(ValueError, match="was detached"):
        model.fit(X, Y, verbose=0, callbacks=[handle])


def test_training_follows_its_gradient_like_the_layers_own_regularizer():
    kernels = []
    for attached in (True, False):
        keras.utils.set_random_seed(1)
        own = None if attached else GroupLasso(0.1, "rows")
        model = keras.Sequential([keras.Input((3,)), L.Dense(4, kernel_regularizer=own), L.Dense(3)])
        if attached:
            attach(model, GroupLasso(0.1, "rows"), layers=[model.layers[0]])
        model.compile(keras.optimizers.Adam(0.01), "mse")
        model.fit(X[:, 0, 0], X[:, 0, 1], epochs=3, verbose=0, shuffle=False)
        kernels.append(model.layers[0].kernel.numpy())
        keras.backend.clear_session()
    np.testing.assert_allclose(kernels[0], kernels[1], atol=1e-6)


def test_the_users_regularizer_stays_and_all_add_up():
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, kernel_regularizer=keras.regularizers.L2(0.5), name="d")])
    kernel = model.layers[0].kernel
    own = 0.5 * (kernel.numpy() ** 2).sum()
    one, two = attach(model, L1(0.1)), attach(model, HoyerSquare(0.2), layers=["d"])
    assert float(sum(model.losses)) == pytest.approx(own + one.value() + two.value(), rel=1e-5)
    detach(one)
    assert float(sum(model.losses)) == pytest.approx(own + two.value(), rel=1e-5)
    detach(two)
    assert float(sum(model.losses)) == pytest.approx(own, rel=1e-5)
    assert type(kernel.regularizer) is keras.regularizers.L2


def test_batch_norm_scale_goes_on_every_gamma():
    model = residual_net()
    handle = attach(model, "batch_norm_scale")
    assert [view.name for view in handle.kernels] == ["norm"]
    assert [skip.reason for skip in handle.skipped] == ["has no gamma (scale=False)"]
    assert handle.value() == pytest.approx(1e-4 * 4)
    model.compile(keras.optimizers.SGD(0.1), CE)
    detach(handle)
    strong = attach(model, BatchNormScale(1.0))
    model.fit(X, Y, epochs=4, verbose=0)
    assert np.abs(model.get_layer("norm").gamma.numpy()).max() < 0.8  # four steps of 0.1 down from 1
    assert model.fit(X, Y, verbose=0, callbacks=[strong]).history["penalty/batch_norm_scale"][0] == strong.value()
    layer = L.BatchNormalization(gamma_regularizer=BatchNormScale(0.5))
    layer.build((None, 6))
    assert float(layer.losses[0]) == pytest.approx(3.0)


class Growing:
    """A schedule that is a plain callable."""

    def __call__(self, step):
        return 0.01 * step


@pytest.mark.parametrize("how", ["attach", "kernel_regularizer", "wrapper"])
def test_a_schedule_is_followed_inside_the_compiled_step(how):
    penalty = L1(Growing())
    layer = L.Dense(3, name="d", kernel_regularizer=penalty if how == "kernel_regularizer" else None)
    top = SparseRegularized(layer, penalty) if how == "wrapper" else layer
    model = keras.Sequential([keras.Input((4,)), top])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    callback = attach(model, penalty) if how == "attach" else RegularizationLogger()
    x, y = np.zeros((8, 4), "float32"), np.zeros((8, 3), "float32")
    for _ in range(2):  # the second fit starts the schedule anew
        layer.kernel.assign(np.full((4, 3), 1.0))
        logs = model.fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=[callback]).history
        moved = 0.1 * 0.01 * sum(range(8))
        np.testing.assert_allclose(layer.kernel.numpy(), 1 - moved, atol=1e-6)
        np.testing.assert_allclose(logs["strength/l1"], [0.04, 0.08], rtol=1e-5)
        np.testing.assert_allclose(logs["penalty/l1"][1], 0.08 * 12 * (1 - moved), rtol=1e-5)


@pytest.mark.parametrize("eager", [False, True])
def test_a_schedule_that_nothing_follows_is_told(eager, recwarn):
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, kernel_regularizer=L1(lambda step: 0.5))])
    model.compile("sgd", "mse", run_eagerly=eager)
    x, y = np.zeros((8, 4), "float32"), np.zeros((8, 3), "float32")
    model.evaluate(x, y, verbose=0)
    model.fit(x, y, verbose=0, callbacks=[RegularizationLogger()])
    assert not [w for w in recwarn if "schedule" in str(w.message)]
    other = keras.Sequential([keras.Input((4,)), L.Dense(3, kernel_regularizer=L1(lambda step: 0.5))])
    other.compile("sgd", "mse", run_eagerly=eager)
    with pytest.warns(UserWarning, match="a schedule that nothing follows: it stays 0.5") as caught:
        other.fit(x, y, epochs=2, verbose=0)
    told = [w for w in caught if "schedule" in str(w.message)]
    assert len(told) == 1
    assert told[0].filename == __file__


def test_a_resumed_fit_goes_on_with_the_schedule(tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(callbacks, epochs=4):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), L.Dense(3, name="d")])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(X[:, 0, :4, 0], X[:, 0, :3, 1], verbose=0)  # trained before: its count of updates is not zero
        handle = attach(model, L1(Growing()))
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        options = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": epochs}
        return model.fit(X[:, 0, :4, 0], X[:, 0, :3, 1], callbacks=[backup, handle, *callbacks], **options).history

    with pytest.raises(KeyboardInterrupt):
        run([Kill()])
    np.testing.assert_allclose(run([])["strength/l1"], [0.12, 0.16], rtol=1e-5)


def test_the_student_of_a_distiller():
    student = keras.Sequential([keras.Input((8, 8, 3)), L.Flatten(), L.Dense(3, name="d")])
    teacher = keras.Sequential([keras.Input((8, 8, 3)), L.Flatten(), L.Dense(3)])
    distiller = Distiller(student=student, teacher=teacher, from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    plain = distiller.fit(X, Y, verbose=0).history["loss"][0]
    on_student, on_distiller = attach(student, L1(0.1)), attach(distiller, GroupLasso(0.1))
    assert [view.name for view in on_distiller.kernels] == ["d"]
    logs = distiller.fit(X, Y, verbose=0, callbacks=[on_student, on_distiller]).history
    assert logs["loss"][0] - plain == pytest.approx(on_student.value() + on_distiller.value(), rel=1e-3)
    other = residual_net()
    other.compile("sgd", CE)
    with pytest.raises(ValueError, match="which does not have d"):
        other.fit(X, Y, verbose=0, callbacks=[on_student])


def test_the_wrapper_saves_loads_logs_and_comes_off(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            SparseRegularized(L.DepthwiseConv2D(3, depth_multiplier=2, name="dw"), GroupLasso(0.1)),
            keras.Sequential([SparseRegularized(L.SeparableConv2D(4, 3, name="sep"), "hoyer_square")]),
            L.Flatten(),
            SparseRegularized(L.Dense(3, activation="softmax", name="out"), L1(RegisteredGrowing())),
        ]
    )
    model.compile("adam", CE)
    depthwise = model.layers[0].layer.kernel.numpy()
    assert float(model.losses[0]) == pytest.approx(0.1 * group_lasso(depthwise, (0, 1)), rel=1e-5)
    logs = model.fit(X, Y, verbose=0, callbacks=[RegularizationLogger()]).history
    assert {"penalty/group_lasso", "penalty/hoyer_square", "penalty/l1", "strength/l1"} <= set(logs)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    again.layers[-1].penalty.follow(1)
    model.layers[-1].penalty.follow(1)
    np.testing.assert_allclose([float(x) for x in again.losses], [float(x) for x in model.losses], rtol=1e-6)
    assert len(again.losses) == 4
    plain = strip_regularizers(model)
    assert [type(layer) for layer in plain.layers] == [L.DepthwiseConv2D, keras.Sequential, L.Flatten, L.Dense]
    assert [type(layer) for layer in plain.layers[1].layers] == [L.SeparableConv2D]
    assert plain.losses == []
    np.testing.assert_array_equal(plain.predict(X, verbose=0), model.predict(X, verbose=0))


@keras.saving.register_keras_serializable("tests")
class RegisteredGrowing(Growing):
    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()


def test_what_cannot_work_is_refused():
    model = residual_net()
    with pytest.raises(ValueError, match="There is no layer 'frist' .* Did you mean 'first'"):
        attach(model, L1(), layers=["frist"])
    with pytest.raises(ValueError, match="`layers` selects none of the kernels first"):
        attach(model, L1(), layers=lambda view: False)
    with pytest.raises(ValueError, match="Did you mean 'group_lasso'"):
        attach(model, "group_laso")
    with pytest.raises(ValueError, match="is not built"):
        attach(keras.Sequential([L.Dense(3)]), L1())
    with pytest.raises(ValueError, match="has no weight that BatchNormScale can be on"):
        attach(keras.Sequential([keras.Input((2,)), L.Dense(3)]), BatchNormScale())
    with pytest.raises(TypeError, match="must be what attach returned"):
        detach(model)
    with pytest.raises(ValueError, match="needs a layer with a kernel"):
        keras.Sequential([keras.Input((2,)), SparseRegularized(L.ReLU(), L1())])
    model.compile("sgd", CE)
    with pytest.warns(UserWarning, match="finds no kdopt penalty"):
        model.fit(X, Y, verbose=0, callbacks=[RegularizationLogger()])


def test_a_layer_of_an_unknown_kind_is_told():
    class Mine(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], 2))

        def call(self, x):
            return keras.ops.matmul(x, self.w)

    model = keras.Sequential([keras.Input((4,)), L.Dense(3), Mine(name="mine")])
    with pytest.warns(UserWarning, match="'mine': Mine has no rule"):
        attach(model, L1())


def test_a_compiled_evaluation_sees_it_too():
    model, x, y = keras.Sequential([keras.Input((4,)), L.Dense(3, name="d")]), np.ones((8, 4)), np.zeros((8, 3))
    model.compile("sgd", "mse")
    before = model.evaluate(x, y, verbose=0)
    handle = attach(model, L1(1.0))
    assert model.evaluate(x, y, verbose=0) == pytest.approx(
        before + np.abs(model.layers[0].kernel.numpy()).sum(), rel=1e-5
    )
    detach(handle)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(before, rel=1e-5)


def test_a_layout_that_was_asked_for_stays():
    """A Dense kernel read as (outputs, inputs)."""
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, name="d")])
    handle = attach(model, GroupLasso(1.0, scale_by_size=False, layout="transposed"))
    expected = np.linalg.norm(model.layers[0].kernel.numpy(), axis=1).sum()
    assert handle.value() == pytest.approx(expected, rel=1e-5)


class WithUnused(keras.Model):
    """Has a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = L.Dense(4, name="used"), L.Dense(4, name="unused")

    def call(self, x):
        return self.used(x)


@pytest.mark.parametrize("batches", [1, 4])
def test_a_layer_that_is_never_called_stops_nothing(batches):
    x = np.random.default_rng(0).normal(size=(8 * batches, 6)).astype("float32")
    model = WithUnused()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    proximal, growing = Proximal(L1(1.0)), GrowingRegularization(0.5, increment=1.0, frequency=1, ceiling=2.0)
    for _ in range(2):
        logs = model.fit(x, x[:, :4], batch_size=8, epochs=4, verbose=0, callbacks=[proximal, growing]).history
    assert [view.name for view in proximal.kernels] == [view.name for view in growing.kernels] == ["used"]
    assert logs["sparsity"][-1] == np.mean(model.used.kernel.numpy() == 0) > 0.4
    assert logs["strength/growing"][-1] == 2.0


@pytest.mark.parametrize("wrapped", [lambda: SparseRegularized(L.Dense(3), L1(0.1)), lambda: L0(L.Dense(3), 0.1)])
def test_a_frozen_wrapper_can_be_loaded(wrapped, tmp_path):
    x = keras.Input((6,))
    wrapper = wrapped()
    model = keras.Model(x, L.Dense(1)(wrapper(x)))
    wrapper.trainable = False
    model.save(tmp_path / "f.keras")
    again = keras.models.load_model(tmp_path / "f.keras")
    assert not again.layers[1].trainable
    np.testing.assert_array_equal(again(np.ones((2, 6))), model(np.ones((2, 6))))


def test_wrappers_in_wrappers_come_off_or_are_named():
    x = keras.Input((6,))
    plain = strip_regularizers(keras.Model(x, SparseRegularized(L0(L.Dense(3), 0.1), L1(0.1))(x)))
    assert [type(layer) for layer in plain.layers[1:]] == [L.Dense]
    x = keras.Input((4, 6))
    hidden = keras.Model(x, L.TimeDistributed(L0(L.Dense(3), 0.1, name="hidden"))(x))
    with pytest.raises(TypeError, match="cannot reach 'hidden' inside another layer"):
        strip_regularizers(hidden)
