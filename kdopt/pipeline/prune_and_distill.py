"""The ready recipe: a student made sparse in rounds, taught by its teacher in each."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kdopt.core.backend import require_tensorflow
from kdopt.core.copying import copy_model
from kdopt.core.kernels import KernelView
from kdopt.core.seeding import set_seed
from kdopt.core.validation import check_fraction, check_integer
from kdopt.criteria.base import CRITERIA, Criterion, Needs
from kdopt.pipeline.training import Distill, Training, evaluate_of
from kdopt.pruning.allocation import PerLayer, Threshold
from kdopt.pruning.iterative import iterative
from kdopt.pruning.masking import Layers
from kdopt.pruning.metrics import Measure, digest, name_of
from kdopt.pruning.patterns import Pattern
from kdopt.pruning.prune import prune
from kdopt.pruning.rounds import IterationReport
from kdopt.pruning.selection import Selection


def prune_and_distill(
    student: keras.Model,
    teacher: keras.Model,
    train_data: Any,
    *,
    sparsity: float,
    loss: Any,
    rounds: int = 4,
    epochs: int = 5,
    optimizer: Any = "adam",
    validation_data: Any = None,
    metric: str | Measure = "accuracy",
    criterion: str | Criterion = "l1",
    pattern: str | Pattern = "unstructured",
    allocation: Any = "uniform",
    layers: Layers = None,
    criterion_data: Any = None,
    distill: Distill | None = None,
    batch_size: int | None = None,
    callbacks: Callable[[int], Sequence[keras.callbacks.Callback]] | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    recalibrate: Any = True,
    **options: Any,
) -> IterationReport:
    """Prunes a student a little, trains it on labels and teacher with its zeros held, and again.

        sparsity after round r = 1 - (1 - sparsity) ** (r / rounds)

    so that each round takes the same share of the weights that are left. Every round begins with a new optimizer, and
    a learning-rate schedule in it at step 0 (learning-rate rewinding). Weights that are zero stay the first to go,
    whatever the criterion says of them.

    Args:
        student: Built (trained) `keras.Model`; left as it is.
        teacher: Trained `keras.Model` with the student's inputs and outputs; left as it is.
        train_data: `(x, y)` or `(x, y, sample_weight)` arrays, or what `fit` takes as one argument, such as a
            `tf.data.Dataset`.
        sparsity: Float in (0, 1), fraction of zeros in the kernels after the last round.
        loss: The student's on the labels, as for `compile`. Mind `from_logits`.
        rounds: Integer >= 1. Defaults to `4`.
        epochs: Integer >= 1, of each round. Defaults to `5`.
        optimizer: Name, config or an optimizer, whose config every round's is made from. Defaults to `"adam"`.
        validation_data: As `train_data`; measured after each round. Needed where `metric` is a name that is to be
            measured: without it there is no metric, and no early stop. Defaults to `None`.
        metric: As for `compile`, a name; or a function `model -> float`. Higher is better. Defaults to `"accuracy"`.
        criterion, pattern, allocation, layers: As in `prune`.
        criterion_data: `data` of `prune`, for a criterion that needs gradients or samples.
        distill: Function (student, teacher) -> `Distiller`, made anew for each round. Defaults to `None`:
            `Distiller(student=student, teacher=teacher)`.
        batch_size: Integer >= 1, for arrays. Defaults to `None`: Keras' 32.
        callbacks: Function round -> callbacks of its `fit`. Defaults to `None`: none.
        seed: Integer >= 0; Python, NumPy and Keras are seeded with `seed + r` at the beginning of round r, so that a
            continued run is like an undisturbed one. Defaults to `0`.
        folder: As in `iterative`: the same call continues there.
        recalibrate: Data from which the statistics of BatchNormalization are estimated after each round, as in
            `reestimate_batch_norm`; or `False`. Defaults to `True`: the inputs of `train_data`.
        **options: Others of `iterative`: `target`, `patience`, `min_delta`, `rewind`, `rewind_to`,
            `robustness_metric`, `custom_objects`, `progress`.

    Returns: `IterationReport`; its models are compiled with `loss` and `metric`.
    Raises: ValueError, TypeError for arguments that cannot be used, before anything is trained.

    Example:
    ```
    report = prune_and_distill(
        student, teacher, (x, y), sparsity=0.9, loss="sparse_categorical_crossentropy",
        validation_data=(x_val, y_val), target=0.97, patience=1,
    )
    report.best_model.save("student.keras")
    ```

    Reference: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015;
        Zhu & Gupta, 2017; Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; Renda et al.,
        "Comparing Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020.
    """
    require_tensorflow("prune_and_distill")
    steps = round_sparsities(sparsity, rounds)
    set_seed(seed)
    scorer = Surviving(CRITERIA.get(criterion))
    evaluate = evaluate_of(metric, validation_data)
    training = Training(
        teacher, train_data, check_integer("epochs", epochs), optimizer, loss, metric, distill, batch_size, callbacks
    )
    own = Selection(student, layers, pattern, allocation)
    if isinstance(own.allocation, (PerLayer, Threshold)):
        raise ValueError(
            "prune_and_distill asks for `sparsity` in every round, so `allocation` must be one that shares it out, "
            f"such as 'uniform', 'global', 'erdos_renyi' or 'lamp'; got {own.allocation.__class__.__name__}."
        )
    own.check_sparsity(sparsity)
    training.check(student)
    recalibrate = training.recalibration(recalibrate, student)
    if scorer.needs != "weights" and criterion_data is None:
        raise ValueError(f"The criterion {name_of(scorer.inner)} needs samples: pass `criterion_data=`, e.g. (x, y).")

    places = {view.index for view in own.kernels}  # the layers of `layers` are the student's, not those of a copy

    def compress(model: keras.Model, number: int) -> keras.Model:
        return prune(
            training.compiled(model),  # for criteria that need the loss
            steps[number - 1],
            scorer,
            pattern,
            allocation=allocation,
            layers=lambda view: view.index in places,
            data=criterion_data,
        )[0]

    def train(model: keras.Model, number: int) -> keras.Model:
        set_seed(seed + number)
        return training.run(model, number)

    settings = {
        "teacher": digest(teacher.get_weights()),
        "sparsities": steps,
        "epochs": epochs,
        "criterion": [type(scorer.inner).__name__, scorer.inner.get_config()],
        "pattern": [type(own.pattern).__name__, own.pattern.get_config()],
        "allocation": [type(own.allocation).__name__, own.allocation.get_config()],
        "kernels": sorted(places),
        "data": [digest(train_data), digest(criterion_data)],
        "optimizer": training.optimizer_config(),
        "loss": name_of(loss),
        "batch_size": batch_size,
        "seed": seed,
    }
    start = training.compiled(copy_model(student))
    options |= {"settings": settings, "recalibrate": recalibrate}
    return iterative(start, compress, train, rounds, evaluate=evaluate, folder=folder, **options)


def round_sparsities(sparsity: float, rounds: int) -> list[float]:
    """1 - (1 - sparsity) ** (r / rounds) for r = 1 ... rounds; the last one is exact.

    Example:
    ```
    round_sparsities(0.75, 2)      # [0.5, 0.75]
    ```
    """
    if check_fraction("sparsity", sparsity) == 0:
        raise ValueError("`sparsity` must be a fraction in (0, 1); got 0, which prunes nothing.")
    check_integer("rounds", rounds)
    return [1 - (1 - sparsity) ** (r / rounds) for r in range(1, rounds)] + [float(sparsity)]


class Surviving(Criterion):
    """Another criterion among the weights that survived: zeros score 0, and so go first again.

    Args:
        inner: The criterion.
    """

    def __init__(self, inner: Criterion) -> None:
        self.inner = inner

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """As the other criterion's."""
        return self.inner.needs

    def score(self, weights: np.ndarray, view: KernelView | None = None) -> np.ndarray:
        return np.where(weights == 0, 0, self.inner.score(weights, view))

    def scores(self, model: keras.Model, views: Sequence[KernelView], data: Any = None) -> list[np.ndarray]:
        found = self.inner.scores(model, views, data)
        return [np.where(view.numpy() == 0, 0, score) for view, score in zip(views, found, strict=True)]
