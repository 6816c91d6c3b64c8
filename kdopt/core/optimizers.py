"""What can be asked of a Keras optimizer: its real updates, and what it keeps of each Variable."""

from typing import Any

import keras
from keras import ops

# Lists of an optimizer, one entry a Variable, that are no state of the update rule.
_NO_SLOTS = ("_trainable_variables", "_model_variables_moving_average", "_accumulated_gradients")


def updates(optimizer: keras.optimizers.Optimizer) -> int:
    """Real weight updates an optimizer has made in its life.

    Batches that only accumulate gradients, and batches that the loss scaling skips because a gradient
    is not finite, do not count. Reads a value from the device.
    """
    return int(ops.convert_to_numpy(optimizer.iterations))


def innermost(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer inside any loss scaling."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def update_order(model: keras.Model) -> list[keras.Variable]:
    """The trainable Variables of a model in the order in which its optimizer updates them."""
    found = list(model.trainable_variables)
    if not model.compiled or model.optimizer is None:
        return found
    optimizer = innermost(model.optimizer)
    if not hasattr(optimizer, "optimizers"):
        return found
    if not optimizer.built:  # before that a MultiOptimizer holds none
        with model.distribute_strategy.scope():
            optimizer.build(found)
    by_key = {variable_key(variable): variable for variable in found}
    keys = [variable_key(variable) for part in optimizer.optimizers for variable in part._trainable_variables]
    ordered = [by_key[key] for key in keys if key in by_key]
    return ordered + [variable for variable in found if variable_key(variable) not in set(keys)]


def averages(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> list[keras.Variable]:
    """The moving average an optimizer with `use_ema=True` keeps of `variable`; empty without one."""
    optimizer = innermost(optimizer)
    found = []
    for part in getattr(optimizer, "optimizers", [optimizer]):
        if getattr(part, "use_ema", False) and part.built:
            index = part._trainable_variables_indices.get(variable_key(variable))
            found.append(None if index is None else part._model_variables_moving_average[index])
    return [average for average in found if average is not None]


def slots(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> list[keras.Variable]:
    """What the update rule keeps of each weight of `variable`: momentum, second moment, ...

    Returns: Variables of the same shape; empty for plain SGD and before the first update.
    """
    optimizer = innermost(optimizer)
    found = []
    for part in getattr(optimizer, "optimizers", [optimizer]):
        index = part._trainable_variables_indices.get(variable_key(variable)) if part.built else None
        if index is None:
            continue
        for name, kept in vars(part).items():
            if name not in _NO_SLOTS and isinstance(kept, list) and len(kept) == len(part._trainable_variables):
                found.append(kept[index])
    return [slot for slot in found if isinstance(slot, keras.Variable) and slot.shape == variable.shape]


def second_moment(optimizer: keras.optimizers.Optimizer, variable: Any) -> Any:
    """Estimate of E[g^2] that divides the step of `variable`, bias-corrected; inside an update step.

        Adam, AdamW, Nadam, Lamb: v / (1 - beta_2^t) (with `amsgrad` its running maximum)
        RMSprop: v + epsilon, whose root divides the step

    Returns: tensor of the variable's shape; `None` for an optimizer without one.
    """
    velocities = getattr(optimizer, "_velocities", None)
    if velocities is None or getattr(optimizer, "centered", False):
        return None
    kept = optimizer._velocity_hats if getattr(optimizer, "amsgrad", False) else velocities
    moment = ops.convert_to_tensor(kept[optimizer._get_variable_index(variable)])
    if not hasattr(optimizer, "beta_2"):
        return moment + optimizer.epsilon
    beta, step = (ops.cast(value, moment.dtype) for value in (optimizer.beta_2, optimizer.iterations + 1))
    return moment / (1 - ops.power(beta, step))


def variable_key(variable: keras.Variable) -> Any:
    """Identity of the storage: the same for two Keras Variables that share one tf.Variable."""
    value = getattr(variable, "value", variable)
    if callable(value):
        value = variable
    container = getattr(value, "_distributed_container", None) or getattr(
        getattr(value, "handle", None), "_distributed_container", None
    )
    return (container() if container is not None else value)._unique_id
