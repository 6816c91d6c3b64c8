"""The ready recipe: a student made narrower in rounds, taught by its teacher in each."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from kdopt.core import measure
from kdopt.core.backend import require_tensorflow
from kdopt.core.copying import copy_model
from kdopt.core.seeding import set_seed
from kdopt.core.validation import check_integer
from kdopt.criteria.base import CRITERIA, Criterion
from kdopt.pipeline.training import Distill, Training, evaluate_of
from kdopt.pruning.iterative import iterative
from kdopt.pruning.metrics import Measure, digest, name_of
from kdopt.pruning.rounds import IterationReport
from kdopt.pruning.structural.apply import prune_channels
from kdopt.pruning.structural.plan import plan_channels


def shrink_and_distill(
    student: keras.Model,
    teacher: keras.Model,
    train_data: Any,
    *,
    loss: Any,
    macs: float | None = None,
    parameters: float | None = None,
    size_bytes: float | None = None,
    rounds: int = 3,
    epochs: int = 5,
    optimizer: Any = "adam",
    validation_data: Any = None,
    metric: str | Measure = "accuracy",
    criterion: str | Criterion = "l1",
    criterion_data: Any = None,
    channels: Mapping[str, Any] | None = None,
    distill: Distill | None = None,
    batch_size: int | None = None,
    callbacks: Callable[[int], Sequence[keras.callbacks.Callback]] | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    recalibrate: Any = True,
    **options: Any,
) -> IterationReport:
    """Removes some channels of a student, trains it on labels and teacher, and again.

        cost left after round r = cost * share ** (r / rounds)

    so that each round takes the same share of what is left. The student becomes physically smaller in every round (see
    `kdopt.pruning.structural`); the trained student itself is a good teacher. Every round begins with a new optimizer,
    and a learning-rate schedule in it at step 0 (learning-rate rewinding).

    Args:
        student: Built (trained) `keras.Model`; left as it is.
        teacher: Trained `keras.Model` with the student's inputs and outputs, or the student; left as it is.
        train_data: `(x, y)` or `(x, y, sample_weight)` arrays, or what `fit` takes as one argument, such as a
            `tf.data.Dataset`.
        loss: The student's on the labels, as for `compile`. Mind `from_logits`.
        macs, parameters, size_bytes: One of them: what may be left of the student after the last round, as a fraction
            in (0, 1) or an absolute number; as in `plan_channels`.
        rounds: Integer >= 1. Defaults to `3`.
        epochs: Integer >= 1, of each round. Defaults to `5`.
        optimizer: Name, config or an optimizer, whose config every round's is made from. Defaults to `"adam"`.
        validation_data: As `train_data`; measured after each round. Defaults to `None`.
        metric: As for `compile`, a name; or a function `model -> float`. Higher is better. Defaults to `"accuracy"`.
        criterion: As in `plan_channels`; not `"mask"`.
        criterion_data: `data` of `plan_channels`, for a criterion that needs gradients or samples.
        channels: Other arguments of `plan_channels` as a dict, e.g. `{"scope": "layer", "round_to": 8}`. Layers in it
            by name, class or regular expression: those of a round are others than the student's.
        distill, batch_size, callbacks, seed, folder: As in `prune_and_distill`.
        recalibrate: Data from which the statistics of BatchNormalization are estimated after each round, as in
            `reestimate_batch_norm`; or `False`. Defaults to `True`: the inputs of `train_data`.
        **options: Others of `iterative`: `target`, `patience`, `min_delta`, `robustness_metric`,
            `custom_objects`, `progress`.

    Returns: `IterationReport`; its `model` is that of the last round, which meets the target, `best_model` the smallest
        of those that hold the metric (see `iterative`), maybe of an earlier round. Both are compiled with `loss` and
        `metric`.
    Raises: `ReachedError` (a ValueError) if the target of the last round cannot be met; ValueError, TypeError for other
        arguments that cannot be used; all before anything is trained.

    Example:
    ```
    report = shrink_and_distill(
        model, model, (x, y), macs=0.5, loss="sparse_categorical_crossentropy", validation_data=(x_val, y_val),
    )
    report.model.save("small.keras")
    ```

    Reference: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.4 (prune and retrain
        iteratively); Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; Renda et al., "Comparing
        Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020.
    """
    require_tensorflow("shrink_and_distill")
    given = {"macs": macs, "parameters": parameters, "size_bytes": size_bytes}
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise ValueError(f"Give one target of {', '.join(given)}, e.g. macs=0.5; got {named or 'none'}.")
    ((name, share),) = named.items()
    ours = {"model", "compress", "train", "rounds", "evaluate", "folder", "settings", "recalibrate"}
    if unknown := set(options) - (set(inspect.signature(iterative).parameters) - ours):
        raise TypeError(
            f"shrink_and_distill has no {', '.join(map(repr, sorted(unknown)))}. Arguments of `plan_channels` go into "
            'a dict: channels={"round_to": 8}.'
        )
    check_integer("rounds", rounds)
    set_seed(seed)
    if criterion == "mask":
        raise ValueError("criterion='mask' takes what is zero already, at once: use `prune_channels` for it.")
    scorer, settings = CRITERIA.get(criterion), dict(channels or {})
    if taken := {"criterion", "data", *given} & set(settings):
        raise TypeError(f"{', '.join(map(repr, sorted(taken)))} in `channels` are arguments of their own here.")
    for key in ("layers", "exclude"):
        chosen = settings.get(key)
        if isinstance(chosen, (list, tuple)) and any(isinstance(one, keras.layers.Layer) for one in chosen):
            raise ValueError(f"`{key}` in `channels` must have names of layers, not layers: each round has new ones.")
    evaluate = evaluate_of(metric, validation_data)
    training = Training(
        teacher, train_data, check_integer("epochs", epochs), optimizer, loss, metric, distill, batch_size, callbacks
    )
    training.check(student)
    recalibrate = training.recalibration(recalibrate, student)
    start = training.compiled(copy_model(student))
    if scorer.needs != "weights" and criterion_data is None:
        raise ValueError(f"The criterion {name_of(scorer)} needs samples: pass `criterion_data=`, e.g. (x, y).")
    settings.update(criterion=criterion, data=criterion_data)
    goal: dict[str, Any] = dict(named)
    plan = plan_channels(start, **goal, **settings)  # says what cannot be
    whole = float(measure.size_bytes(student) if name == "size_bytes" else getattr(plan, name)[0])
    left = share if share < 1 else share / whole

    def compress(model: keras.Model, number: int) -> keras.Model:
        target = max(1.0, whole * left ** (number / rounds))
        return prune_channels(training.compiled(model), **{name: target}, **settings)[0]

    def train(model: keras.Model, number: int) -> keras.Model:
        set_seed(seed + number)
        return training.run(model, number)

    kept = {
        "teacher": digest(teacher.get_weights()),
        "target": [name, share, rounds],
        "epochs": epochs,
        "criterion": [type(scorer).__name__, scorer.get_config()],
        "channels": {key: repr(value) for key, value in (channels or {}).items()},
        "data": [digest(train_data), digest(criterion_data)],
        "optimizer": training.optimizer_config(),
        "loss": name_of(loss),
        "batch_size": batch_size,
        "seed": seed,
    }
    options |= {"settings": kept, "recalibrate": recalibrate}
    return iterative(start, compress, train, rounds, evaluate=evaluate, folder=folder, **options)
