import inspect
import json
import math

import keras
import numpy as np
import pytest

import kdopt.schedules
from kdopt.schedules import (
    Constant,
    Cosine,
    Cyclic,
    Epochs,
    Exponential,
    Linear,
    MultiStep,
    OneShot,
    Polynomial,
    Schedule,
    plot,
)
from kdopt.schedules.figure import mask_sparsity

LAST = 10_000
EVERY_KIND = [
    Constant(0.3),
    OneShot(0.8, begin_step=0),
    OneShot(0.8, begin_step=17),
    MultiStep({0: 0.25, 3: 0.5, 4: 0.1, 100: 0.9}),
    MultiStep([(7, 0.6)]),
    Linear(0.9, 0.1, 3, end_step=77, frequency=7),
    Linear(0.2, 0.9, end_step=50, frequency=50),
    Polynomial(0.9, 0.1, 3, end_step=77, frequency=7, power=2),
    Polynomial(0.8, begin_step=5, end_step=6),
    Exponential(0.99, 0.3, 1, end_step=1000, frequency=13),
    Exponential(0.0, 0.5, end_step=10, frequency=1),
    Cosine(0.7, begin_step=10, end_step=110),
    Cyclic(0.9, 0.2, 5, period=40, cycles=3, frequency=6),
    Cyclic(0.5, period=2, cycles=4, ramp=0.9, frequency=1),
    Cyclic(0.5, 0.1, period=30, cycles=1, ramp=0.01, power=1),
]
IN_EPOCHS = [
    OneShot(0.8, begin_step=Epochs(2)),
    MultiStep({Epochs(0.5): 0.5, Epochs(2): 0.9}),
    Linear(0.9, begin_step=3, end_step=Epochs(4)),
    Polynomial(0.9, 0.2, begin_step=Epochs(1), end_step=Epochs(3.5), frequency=Epochs(0.5)),
    Cyclic(0.9, begin_step=Epochs(0), period=Epochs(2), cycles=2, frequency=Epochs(0.25)),
]


def updates(schedule):
    found, step = [], -1
    while (after := schedule.next_update(step)) is not None:
        assert after > step
        found.append(step := after)
    return found


def kinds(cls=Schedule):
    for sub in cls.__subclasses__():
        yield from kinds(sub)
        if not inspect.isabstract(sub) and sub.__module__.startswith("kdopt."):
            yield sub


def test_every_kind_is_in_the_contract_and_in_the_contents():
    assert {type(schedule) for schedule in EVERY_KIND} == set(kinds())
    names = {kind.__name__ for kind in kinds()}
    assert set(kdopt.schedules.__all__) == names | {"Schedule", "Epochs", "plot"}
    assert {keras.saving.get_registered_name(kind) for kind in kinds()} == {f"kdopt>{name}" for name in names}


@pytest.mark.parametrize("schedule", EVERY_KIND, ids=repr)
class TestContract:
    def test_updates_strictly_increase_and_do_not_depend_on_the_step_between(self, schedule):
        at = updates(schedule)
        assert at == sorted(set(at))
        assert at[0] >= 0
        for before, after in zip([-1, *at], [*at, None], strict=True):
            between = range(before, min(LAST, before + 200) if after is None else after)
            assert {schedule.next_update(step) for step in between} == {after}

    def test_values_are_fractions_and_the_final_one_stays(self, schedule):
        last = updates(schedule)[-1]
        values = [schedule(step) for step in range(last + 50)]
        assert all(isinstance(value, float) and 0 <= value < 1 for value in values)
        assert all(value == schedule.final_sparsity for value in [*values[last:], schedule(LAST)])
        assert all(value == 0 for value in values[: updates(schedule)[0]])

    def test_round_trip(self, schedule):
        stored = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
        again = keras.saving.deserialize_keras_object(stored)
        assert (type(again), again.get_config()) == (type(schedule), schedule.get_config())
        assert [again(step) for step in range(200)] == [schedule(step) for step in range(200)]
        assert updates(again) == updates(schedule)

    def test_in_steps_already(self, schedule):
        assert schedule.in_steps(7) is schedule
        assert schedule.in_steps(None) is schedule


def test_polynomial_by_hand():
    schedule = Polynomial(0.8, initial_sparsity=0.2, begin_step=100, end_step=300, frequency=50)
    # s = 0.8 - 0.6 * (1 - (t - 100) / 200) ** 3
    expected = {0: 0.0, 99: 0.0, 100: 0.2, 150: 0.8 - 0.6 * 0.421875, 200: 0.725, 250: 0.790625, 300: 0.8, 999: 0.8}
    for step, sparsity in expected.items():
        assert schedule(step) == pytest.approx(sparsity, abs=1e-12), step
    assert Polynomial(0.8, end_step=1000, power=1)(250) == pytest.approx(0.2)


def test_linear_and_cosine_by_hand():
    line = Linear(0.9, 0.1, 100, end_step=500)
    assert [line(step) for step in (99, 100, 200, 300, 500)] == pytest.approx([0, 0.1, 0.3, 0.5, 0.9], abs=1e-12)
    curve = Cosine(0.9, 0.1, 100, end_step=500)
    quarter = 0.1 + 0.8 * (1 - math.sqrt(0.5)) / 2  # cos(pi / 4)
    assert [curve(step) for step in (99, 100, 200, 300)] == pytest.approx([0, 0.1, quarter, 0.5], abs=1e-12)
    assert curve(100 + 400 // 3 + 1) < line(100 + 400 // 3 + 1)


def test_exponential_prunes_the_same_fraction_of_the_survivors_every_time():
    schedule = Exponential(1 - 0.8**5, end_step=50, frequency=10)  # five rounds of 20 %
    assert [1 - schedule(step) for step in updates(schedule)] == pytest.approx([0.8**k for k in range(6)], abs=1e-12)
    assert Exponential(0.96, 0.36, 100, end_step=200)(150) == pytest.approx(0.84, abs=1e-12)  # 0.64 * (1/16) ** (1/2)


def test_update_steps():
    assert updates(Polynomial(0.8, begin_step=5, end_step=30, frequency=10)) == [5, 15, 25, 30]
    assert updates(Polynomial(0.8, end_step=20, frequency=10)) == [0, 10, 20]
    assert updates(Constant(0.5)) == [0]
    schedule = Polynomial(0.8, begin_step=5, end_step=30, frequency=10)
    assert [schedule.next_update(step) for step in (0, 4, 6, 14, 29, 31)] == [5, 5, 15, 15, 30, None]


def test_jumps_by_hand():
    assert [Constant(0.7)(step) for step in (0, 5, 10**9)] == [0.7] * 3
    assert [OneShot(0.7, 5)(step) for step in (0, 4, 5, 6)] == [0, 0, 0.7, 0.7]
    stairs = MultiStep({2: 0.5, 5: 0.2, 9: 0.8})
    assert [stairs(step) for step in range(11)] == [0, 0, 0.5, 0.5, 0.5, 0.2, 0.2, 0.2, 0.2, 0.8, 0.8]
    assert updates(stairs) == [2, 5, 9]
    assert stairs.final_sparsity == 0.8


def test_cyclic_by_hand():
    schedule = Cyclic(0.8, 0.2, 10, period=20, cycles=2, frequency=4, power=2)
    # A cycle: 0.8 - 0.6 * (1 - u / 10) ** 2 for u = 0 ... 10, then 0.8 up to u = 19.
    assert updates(schedule) == [10, 14, 18, 20, 30, 34, 38, 40]
    cycle = [0.2, 0.8 - 0.6 * 0.36, 0.8 - 0.6 * 0.04, 0.8]
    assert [schedule(step) for step in updates(schedule)] == pytest.approx(cycle * 2, abs=1e-12)
    assert [schedule(step) for step in (9, 29, 30, 49, 50, 1000)] == pytest.approx([0, 0.8, 0.2, 0.8, 0.8, 0.8])
    assert updates(Cyclic(0.5, period=10, cycles=3)) == [0, 5, 10, 15, 20, 25]


@pytest.mark.parametrize("schedule", IN_EPOCHS, ids=repr)
def test_epochs_survive_a_round_trip_and_refuse_to_be_steps(schedule):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert again.get_config() == schedule.get_config()
    assert repr(again) == repr(schedule)
    assert "Epochs(" in repr(schedule)
    for use in (schedule, schedule.next_update):
        with pytest.raises(RuntimeError, match=r"use schedule.in_steps\(updates_per_epoch\)"):
            use(10)
    with pytest.raises(ValueError, match="number of batches in an epoch is not known"):
        schedule.in_steps(None)
    assert again.in_steps(50).in_steps(None).final_sparsity == schedule.final_sparsity


def test_epochs_become_steps():
    one, stairs, line, polynomial, cyclic = (schedule.in_steps(50) for schedule in IN_EPOCHS)
    assert one.get_config() == OneShot(0.8, 100).get_config()
    assert stairs.get_config() == MultiStep({25: 0.5, 100: 0.9}).get_config()
    assert line.get_config() == Linear(0.9, begin_step=3, end_step=200).get_config()
    assert polynomial.get_config() == Polynomial(0.9, 0.2, 50, end_step=175, frequency=25).get_config()
    assert cyclic.get_config() == Cyclic(0.9, period=100, cycles=2, frequency=13).get_config()
    assert OneShot(0.5, Epochs(0.001)).in_steps(10).begin_step == 1
    with pytest.raises(ValueError, match="With 3 updates per epoch, Linear.*`end_step` must be greater than begin_s"):
        Linear(0.5, begin_step=Epochs(1), end_step=Epochs(1.1)).in_steps(3)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be an integer >= 1; got 0"):
        OneShot(0.5, Epochs(1)).in_steps(0)


RAMP = {"final_sparsity": 0.8, "end_step": 10}
CYCLE = {"final_sparsity": 0.8, "period": 10, "cycles": 2}


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        *[
            (kind, {**RAMP, **wrong}, message)
            for kind in (Linear, Polynomial, Exponential, Cosine)
            for wrong, message in [
                ({"final_sparsity": 1.0}, "`final_sparsity` must be a fraction"),
                ({"final_sparsity": 80}, "`final_sparsity` must be a fraction"),
                ({"initial_sparsity": -0.1}, "`initial_sparsity` must be a fraction"),
                ({"begin_step": 1.5}, r"`begin_step` must be an integer >= 0; got 1.5. Epochs are written Epochs\(2.5"),
                ({"begin_step": 10}, "`end_step` must be greater than begin_step=10; got 10"),
                (
                    {"begin_step": Epochs(2), "end_step": Epochs(2)},
                    r"`end_step` must be greater than begin_step=Epochs\(2\); got Epochs\(2\)",
                ),
                ({"frequency": 0}, "`frequency` must be an integer >= 1"),
                ({"frequency": Epochs(0)}, "`frequency` must be more than 0 epochs"),
            ]
        ],
        (Polynomial, {**RAMP, "power": 0}, "`power` must be a number > 0"),
        (Constant, {"sparsity": 1}, "`sparsity` must be a fraction"),
        (OneShot, {"sparsity": -1, "begin_step": 3}, "`sparsity` must be a fraction"),
        (OneShot, {"sparsity": 0.5, "begin_step": -3}, "`begin_step` must be an integer >= 0"),
        (MultiStep, {"sparsities": {}}, "`sparsities` must map times to fractions"),
        (MultiStep, {"sparsities": 0.5}, "`sparsities` must map times to fractions"),
        (MultiStep, {"sparsities": [3, 0.5]}, "`sparsities` must map times to fractions"),
        (MultiStep, {"sparsities": {3: 1.5}}, "`value of sparsities` must be a fraction"),
        (
            MultiStep,
            {"sparsities": [(5, 0.1), (5, 0.2)]},
            "`key of sparsities` must be greater than the one before=5; got 5",
        ),
        (Cyclic, {**CYCLE, "period": 1}, "`period` must be at least 2 updates"),
        (Cyclic, {**CYCLE, "cycles": 0}, "`cycles` must be an integer >= 1"),
        (Cyclic, {**CYCLE, "ramp": 1.0}, "`ramp` must be a fraction in"),
        (Cyclic, {**CYCLE, "ramp": 0}, "`ramp` must be a number > 0"),
        (Cyclic, {**CYCLE, "power": -1}, "`power` must be a number > 0"),
        (Epochs, {"number": -1}, "`number of epochs` must be a number >= 0"),
        (Epochs, {"number": math.nan}, "`number of epochs` must be a number >= 0"),
    ],
)
def test_bad_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_mask_sparsity_is_the_staircase_between_updates():
    assert mask_sparsity(OneShot(0.8, begin_step=100)) == ([0, 100], [0.0, 0.8])
    assert mask_sparsity(Constant(0.3)) == ([0], [0.3])
    at, sparsities = mask_sparsity(Linear(0.8, end_step=40, frequency=10), steps=25)
    assert at == [0, 10, 20]
    np.testing.assert_allclose(sparsities, [0, 0.2, 0.4])


def test_plot_draws_what_the_masks_do():
    pytest.importorskip("matplotlib")
    schedules = [Polynomial(0.8, end_step=100, frequency=20), MultiStep({Epochs(1): 0.5, Epochs(4): 0.9})]
    figure = plot(*schedules, labels=["a", "b"], steps_per_epoch=50)
    axes = figure.axes[0]
    for line, schedule in zip(axes.lines, schedules, strict=True):
        at, sparsities = mask_sparsity(schedule.in_steps(50))
        np.testing.assert_allclose(line.get_xdata()[:-1], np.array(at) / 50)
        np.testing.assert_allclose(line.get_ydata(), 100 * np.array([*sparsities, sparsities[-1]]))
        assert line.get_drawstyle() == "steps-post"
    assert (axes.get_xlabel(), axes.get_xlim()) == ("epochs", (0, 4.4))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert plot(Constant(0.5)).axes[0].get_title(loc="left") == "Constant, 50 %"


def test_plot_refuses():
    class Endless(Constant):
        def next_update(self, step):
            return step + 1

    with pytest.raises(TypeError, match="plot takes schedules.*got 0.5"):
        plot(0.5)
    with pytest.raises(TypeError, match="plot takes schedules.*got none"):
        plot()
    with pytest.raises(ValueError, match="`labels` must be a list of 1 strings"):
        plot(Constant(0.5), labels="ab")
    with pytest.raises(ValueError, match="has more than 100000 updates: pass `steps`"):
        plot(Endless(0.5))
    with pytest.raises(ValueError, match="give the times in updates"):
        plot(OneShot(0.5, Epochs(2)))
