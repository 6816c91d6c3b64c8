"""Weights and temperatures that change while training."""

import keras
import numpy as np
import pytest
from distillation_oracles import cross_entropy, data, hard_loss, hinton, mlp

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.decoupled import DecoupledKD
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.distillation.scheduled import at_step, check_scheduled, now

Ramp = keras.optimizers.schedules.PolynomialDecay


def frozen(**options):
    """A Distiller whose student does not move: a rate of 0, no batch statistics."""
    student, teacher = mlp(1), mlp(2)
    student.layers[2].trainable = False
    distiller = Distiller(student=student, teacher=teacher, **options)
    distiller.compile(keras.optimizers.SGD(0.0), loss=hard_loss())
    x, y = data()
    z, t = np.asarray(student(x)), np.asarray(teacher(x))
    return distiller, x, y, z, t


def test_weights_and_temperature_follow_the_updates():
    weight, temperature, hard = Ramp(2.0, 4, 0.0), Ramp(8.0, 4, 2.0), Ramp(0.0, 4, 1.0)
    distiller, x, y, z, t = frozen(
        distillation_losses=SoftTargets(temperature), distillation_loss_weights=[weight], student_loss_weight=hard
    )
    history = distiller.fit(x, y, batch_size=16, epochs=6, verbose=0).history
    for step in range(6):
        w, temp, a = (float(schedule(step)) for schedule in (weight, temperature, hard))
        soft = hinton(t, z, temp).mean()
        np.testing.assert_allclose(history["soft_targets_loss"][step], soft, rtol=1e-4)
        logged = [history[name][step] for name in ("soft_targets_weight", "soft_targets_temperature")]
        np.testing.assert_allclose([*logged, history["student_loss_weight"][step]], [w, temp, a], rtol=1e-5, atol=1e-6)
        expected = a * cross_entropy(y, z).mean() + (1 - a) * w * soft
        np.testing.assert_allclose(history["loss"][step], expected, rtol=1e-4)


def test_a_ramp_as_one_writes_it():
    distiller, x, y, _, _ = frozen(distillation_loss_weights=lambda step: keras.ops.maximum(0.1, 1 - step / 2))
    history = distiller.fit(x, y, batch_size=16, epochs=3, verbose=0).history
    np.testing.assert_allclose(history["soft_targets_weight"], [1.0, 0.5, 0.1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"at step 1` .*got 0.0. Schedules are tried at steps up to 100,000.*maximum"):
        check_scheduled("w", lambda step: 1.0 - step)


def test_numbers_show_no_line_in_the_logs():
    distiller, x, y, _, _ = frozen()
    assert set(distiller.fit(x, y, verbose=0).history) == {"loss", "student_loss", "soft_targets_loss"}


@pytest.mark.parametrize("how", [{"steps_per_execution": 4}, {"jit_compile": True}])
def test_a_function_as_schedule_inside_compiled_steps(how):
    def every_other(step):
        return keras.ops.cast(step % 2, "float32")

    student, teacher = mlp(1), mlp(2)
    student.layers[2].trainable = False
    distiller = Distiller(student=student, teacher=teacher, distillation_loss_weights=[every_other])
    distiller.compile(keras.optimizers.SGD(0.0), loss=hard_loss(), **how)
    x, y = data(64)
    history = distiller.fit(x, y, batch_size=16, shuffle=False, verbose=0).history
    assert history["soft_targets_weight"] == pytest.approx([0.5])


def test_schedules_are_saved(tmp_path):
    distiller, x, y, _, _ = frozen(
        distillation_losses=DecoupledKD(beta=Ramp(0.0, 10, 8.0)), distillation_loss_weights=[Ramp(1.0, 10, 0.0)]
    )
    distiller.fit(x, y, batch_size=16, epochs=3, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    logs = [model.evaluate(x, y, verbose=0, return_dict=True) for model in (distiller, loaded)]
    assert logs[0]["decoupled_kd_beta"] == pytest.approx(2.4)
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)


def test_values_outside_of_training():
    schedule = Ramp(2.0, 10, 1.0)
    assert float(now(schedule)) == 2.0
    with at_step(5):
        assert float(now(schedule)) == 1.5
        assert now(3.0) == 3.0
    assert float(now(schedule)) == 2.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, "`w` must be a number > 0; got -1.0"),
        (lambda step: -1.0, "`w at step 0` must be a number > 0; got -1.0"),
        (lambda step: np.ones(2), r"returns a scalar for each step; .* returns shape \(2,\)"),
        (Ramp(4.0, 4, 0.0), "`w at step 10` must be a number > 0; got 0.0"),
        ("fast", "`w` must be a number > 0; got 'fast'"),
    ],
)
def test_bad_schedules(value, message):
    with pytest.raises(ValueError, match=message):
        check_scheduled("w", value)
