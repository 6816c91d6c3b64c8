import keras
import pytest

from kdopt.schedules import Constant, Polynomial


def test_polynomial_by_hand():
    schedule = Polynomial(0.8, initial_sparsity=0.2, begin_step=100, end_step=300, frequency=50)
    # s = 0.8 - 0.6 * (1 - (t - 100) / 200) ** 3
    expected = {0: 0.0, 99: 0.0, 100: 0.2, 150: 0.8 - 0.6 * 0.421875, 200: 0.725, 250: 0.790625, 300: 0.8, 999: 0.8}
    for step, sparsity in expected.items():
        assert schedule(step) == pytest.approx(sparsity, abs=1e-12), step
    assert Polynomial(0.8, end_step=1000, power=1)(250) == pytest.approx(0.2)


def test_update_steps():
    def steps(schedule):
        found, step = [], -1
        while (step := schedule.next_update(step)) is not None:
            found.append(step)
        return found

    assert steps(Polynomial(0.8, begin_step=5, end_step=30, frequency=10)) == [5, 15, 25, 30]
    assert steps(Polynomial(0.8, end_step=20, frequency=10)) == [0, 10, 20]
    assert steps(Constant(0.5)) == [0]
    schedule = Polynomial(0.8, begin_step=5, end_step=30, frequency=10)
    assert [schedule.next_update(step) for step in (0, 4, 6, 14, 29, 31)] == [5, 5, 15, 15, 30, None]


def test_constant():
    assert [Constant(0.7)(step) for step in (0, 5, 10**9)] == [0.7] * 3
    assert Constant(0.7).final_sparsity == 0.7


@pytest.mark.parametrize("schedule", [Constant(0.3), Polynomial(0.9, 0.1, 3, end_step=77, frequency=7, power=2)])
def test_round_trip(schedule):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert again.get_config() == schedule.get_config()
    assert [again(step) for step in range(100)] == [schedule(step) for step in range(100)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"final_sparsity": 1.0}, "`final_sparsity` must be a fraction"),
        ({"final_sparsity": 80}, "`final_sparsity` must be a fraction"),
        ({"initial_sparsity": -0.1}, "`initial_sparsity` must be a fraction"),
        ({"begin_step": 1.5}, "`begin_step` must be an integer >= 0"),
        ({"begin_step": 10}, "`end_step` must be greater than begin_step=10; got 10"),
        ({"frequency": 0}, "`frequency` must be an integer >= 1"),
        ({"power": 0}, "`power` must be a number > 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Polynomial(**{"final_sparsity": 0.8, "end_step": 10, **arguments})
