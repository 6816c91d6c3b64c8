"""Students that become teachers: chains of assistants, and generations of one net."""

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdopt.core.copying import copy_assets, remade, settle
from kdopt.core.files import write_atomic
from kdopt.core.seeding import set_seed
from kdopt.core.validation import check_integer
from kdopt.distillation.cache.keys import fingerprint
from kdopt.distillation.distiller import Distiller
from kdopt.distillation.teachers import ModelTeacher
from kdopt.distillation.validation import check_models

Fit = Callable[[Distiller], Any]
Distill = Callable[[keras.Model, Any], Distiller]


def distill_chain(
    models: Sequence[keras.Model],
    fit: Fit,
    *,
    distill: Distill | None = None,
    folder: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> list[keras.Model]:
    """Distills a teacher into an assistant, the assistant into a smaller one, down to the student.

    A student that is much smaller than its teacher learns more of one between them in size.

    Args:
        models: Two or more, from the trained teacher down to the student; all but the first are trained in place.
        fit: Function that compiles a `Distiller` and fits it.
        distill: Function (student, teacher) -> `Distiller`. Defaults to `None`: `Distiller(student=..., teacher=...)`.
        folder: Where the weights of each trained link are kept; a chain that was stopped goes on after the last of
            them. What another teacher has taught there is refused. Defaults to `None`: nothing is kept.
        verbose: Whether a line is printed for each link. Defaults to `True`.

    Returns: the models, all trained.
    Raises: ValueError for fewer than two models, for a `fit` that trains nothing, and for a folder that holds what
        other models were taught.

    Example:
    ```
    def fit(distiller):
        distiller.compile("adam", "sparse_categorical_crossentropy")
        distiller.fit(x, y, epochs=20)

    big, middle, small = distill_chain([big, middle, small], fit)
    ```

    Reference: Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020.
    """
    given = [models] if isinstance(models, keras.Model) else list(models)
    if len(given) < 2:
        raise ValueError(f"A chain goes from a teacher to a student: two models or more; got {len(given)}.")
    if not callable(fit):
        raise TypeError(
            f"`fit` must be a function that compiles and fits the Distiller it gets; got {type(fit).__name__}."
        )
    for teacher, student in itertools.pairwise(given):  # what does not fit is told before the first link is trained
        check_models(student, ModelTeacher(teacher))
        if distill is None and student.built:
            Distiller(student=student, teacher=teacher)
    for link, (teacher, student) in enumerate(itertools.pairwise(given), start=1):
        path = None if folder is None else Path(folder) / f"link_{link}.weights.h5"
        kept = path if path is not None and path.exists() else None
        if verbose:
            how = "" if kept is None else f" (taken from {kept}; delete it to train again)"
            print(f"Link {link} of {len(given) - 1}: {teacher.name} -> {student.name}{how}", flush=True)
        if kept is not None:
            _take(student, teacher, kept)
        else:
            _link(student, teacher, fit, distill, path)
    return given


def born_again(
    model: keras.Model,
    fit: Fit,
    *,
    generations: int = 3,
    distill: Distill | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> list[keras.Model]:
    """Distills a trained net into a new one of its own kind, that into the next, and so on.

    Later generations are often better than the first; all of them together, as `Distiller(teacher=[...])`, are a
    stronger teacher still.

    Args:
        model: Trained; left as it is. Layers with `trainable=False` keep their weights in all generations. A subclassed
            model needs `get_config`.
        fit, distill, folder, verbose: As in `distill_chain`.
        generations: Integer >= 1, how many new nets are trained. Defaults to `3`.
        seed: Integer >= 0; generation g starts from the weights that seed + g draws. Keras is seeded with it. Defaults
            to `0`.

    Returns: `model` and its generations, all trained.
    Raises: ValueError.

    Reference: Furlanello et al., "Born Again Neural Networks", ICML 2018, section 3.
    """
    count = check_integer("generations", generations)
    first = check_integer("seed", seed, minimum=0) + 1
    found = [model, *(_newborn(model, first + generation) for generation in range(count))]
    return distill_chain(found, fit, distill=distill, folder=folder, verbose=verbose)


def _newborn(model: keras.Model, seed: int) -> keras.Model:
    """A model like it with new weights; what is frozen, and what layers were adapted to, stays."""
    set_seed(seed)
    made = remade(model)
    for own, new in zip(model._flatten_layers(), made._flatten_layers(), strict=True):
        if getattr(own, "lora_enabled", False):
            raise ValueError(
                f"{own.name!r} has a LoRA adapter on a frozen kernel, which a new net does not have. Merge it first: "
                "save and load the model, or copy its weights into one without."
            )
        if isinstance(own, keras.Model):
            continue
        if hasattr(own, "adapt") or not own.trainable:
            new.set_weights(own.get_weights())
            copy_assets(own, new)
        new.trainable = own.trainable
    settle(made)
    return made


def _link(student: keras.Model, teacher: keras.Model, fit: Fit, distill: Distill | None, path: Path | None) -> None:
    made = Distiller(student=student, teacher=teacher) if distill is None else distill(student, teacher)
    if not isinstance(made, Distiller) or made.student is not student:
        raise TypeError(f"`distill` must return a Distiller of the student it is given; got {made!r}.")
    before = [variable.numpy() for variable in student.trainable_variables]
    fit(made)
    after = [variable.numpy() for variable in student.trainable_variables]
    if before and all(np.array_equal(a, b) for a, b in zip(before, after, strict=False)):
        raise ValueError(
            f"`fit` left the weights of {student.name!r} as they were. It gets a Distiller, to compile and fit."
        )
    if path is not None:
        _keep(student, teacher, path)


def _keep(student: keras.Model, teacher: keras.Model, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part_{path.name}")
    student.save_weights(part)
    write_atomic(path.with_suffix(".teacher"), fingerprint(teacher).encode())
    write_atomic(path, part.read_bytes())
    part.unlink()


def _take(student: keras.Model, teacher: keras.Model, path: Path) -> None:
    taught = path.with_suffix(".teacher")
    if not taught.exists() or taught.read_text() != fingerprint(teacher):
        raise ValueError(
            f"{path} holds what another teacher than {teacher.name!r} as it is now has taught. Give another `folder`, "
            "or delete that file to train again."
        )
    try:
        student.load_weights(path)
    except ValueError as error:
        raise ValueError(
            f"{path} holds the weights of another net than {student.name!r}. Give another `folder`."
        ) from error
