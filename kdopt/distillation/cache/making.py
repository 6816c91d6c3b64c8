"""Asking a teacher once about a whole data set."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kdopt.core.backend import require_tensorflow
from kdopt.core.validation import check_flag, check_integer, check_one_of
from kdopt.distillation.cache.answers import DTYPES, Answers
from kdopt.distillation.cache.building import Making, other_length
from kdopt.distillation.cache.cache import TeacherCache
from kdopt.distillation.cache.keys import described, fingerprint
from kdopt.distillation.cache.manifest import prepare_folder
from kdopt.distillation.cache.samples import (
    Augment,
    as_arrays,
    batches_of,
    check_replayable,
    dtypes_of,
    takes_seed,
    unpacked,
    views_of,
)
from kdopt.distillation.cache.taps import attention_refusal, tap_to_config
from kdopt.distillation.joined import split
from kdopt.distillation.taps import Tapped, Taps, resolve
from kdopt.distillation.teachers import ModelTeacher

SHARD_BYTES = 2**26


def cache_teacher(
    teacher: keras.Model,
    data: Any,
    path: str | os.PathLike[str],
    *,
    taps: Taps = (),
    dtype: str = "float32",
    augment: Augment | None = None,
    views: int = 1,
    preprocessing: Callable[[Any], Any] | None = None,
    from_logits: bool | None = None,
    batch_size: int = 64,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    verbose: int | str = "auto",
) -> TeacherCache:
    """Asks `teacher` once about all of `data` and keeps what it says on disk, for as many trainings as you like.

    `Distiller(student=..., teacher=cache)` then trains on `cache.join(data)` without running the teacher. A run that
    was killed goes on where it stopped when it is called again with the same arguments; shards that are missing or
    damaged by then are made again, and only these. All data flow by once, also when the cache is complete: they must
    be the same as before, and so must the teacher's answers to the first batch. `TeacherCache.open` opens a complete
    cache without looking at data.

    Args:
        teacher: Built (trained) `keras.Model`.
        data: Arrays `x` or a tuple `(x, y, ...)` of them, or a `tf.data.Dataset` of batches, as `fit` takes them; only
            the inputs are used. A dataset must give the same samples in the same order whenever it runs: neither
            shuffled nor augmented.
        path: Folder of the cache; made if it is not there.
        taps: Inner layers whose tensors are kept too, as `kdopt.distillation.taps.resolve` takes them: names, indices,
            `"stages"`, `"embedding"`; no attention layers. A loss on inner layers finds them by the same words, but
            only what was kept: `AttentionTransfer()` needs `taps="stages"`. Defaults to none.
        dtype: `"float32"`, or `"float16"` for half the size. Outputs of which it is not known that they are logits or
            probabilities of softmax or sigmoid stay float32. Defaults to `"float32"`.
        augment: Function `(x, seed)` that makes a view of one sample's inputs (without batch axis) by the int32 seed
            (number of the sample, number of the view) alone, which is tried on the first batch: use
            `tf.image.stateless_*` and the like. It is replayed for the student, which sees what the teacher saw.
            Defaults to `None`: the data as they are.
        views: Integer >= 1, how many views of each sample. Defaults to 1.
        preprocessing: Function or layer that makes the teacher's input of the data. Defaults to `None`: the same.
        from_logits: Whether the teacher returns logits: True or False. Defaults to `None`: read from its last
            activation.
        batch_size: Samples at a time; of arrays only. Defaults to 64.
        shard_bytes: Integer, size of a file; at most 4096 samples go into one. Defaults to 64 MiB.
        overwrite: Whether another cache at `path` is replaced. Defaults to False.
        verbose: 0 shows nothing, 1 a progress bar, 2 a line at the end. Defaults to `"auto"`: 1.

    Returns: the cache, which knows the teacher.
    Raises: TypeError, ValueError for arguments that do not fit; ValueError if the cache at `path` was made otherwise or
        of other data, with what differs.

    Example:
    ```
    cache = cache_teacher(teacher, (x, y), "teacher_cache")
    distiller = Distiller(student=student, teacher=cache)
    distiller.compile("adam", "sparse_categorical_crossentropy")
    distiller.fit(cache.join((x, y), batch_size=64), epochs=10)
    ```

    Reference: Shen, Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022 (stored answers);
    Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022, section 3 (both models
    must see the same view).
    """
    require_tensorflow("cache_teacher")
    _check_teacher(teacher, from_logits)
    if augment is None and views != 1:
        raise ValueError(f"`views={views}` needs `augment=`: without it every view is the same.")
    check_integer("views", views)
    bar_verbosity = _verbosity(verbose)
    flow, inputs, count = _flow(data, augment, views, check_integer("batch_size", batch_size))
    folder, source = Path(path), ModelTeacher(teacher, preprocessing)
    all_taps, kept = _taps(source, taps, flow.element_spec[0][0])
    made = {
        "teacher": fingerprint(teacher),
        "taps": [tap.name for tap in kept],
        "dtype": check_one_of("dtype", dtype, DTYPES),
        "views": views,
        "augment": described(augment),
        "preprocessing": described(preprocessing),
        "from_logits": from_logits,
        "inputs": inputs,
        "shard_bytes": check_integer("shard_bytes", shard_bytes),
    }
    manifest = prepare_folder(folder, check_flag("overwrite", overwrite))
    if manifest is not None:
        manifest.check_made(made, folder)
        if count is not None and manifest.samples not in (None, count):
            raise ValueError(other_length(folder, manifest.samples, count))
        for number in manifest.damaged(folder):
            del manifest.shards[number]
    answers = Answers(source, kept, from_logits, dtype)
    making = Making(folder, answers, manifest, made, [tap_to_config(tap) for tap in all_taps], teacher)
    bar = keras.utils.Progbar(count, verbose=bar_verbosity, unit_name="sample")
    for seen, prints in flow:
        making.take(seen, prints.numpy())
        bar.update(making.done)
    if count is None:
        bar.update(making.done, finalize=True)
    return TeacherCache(path, making.finished(), teacher, preprocessing)


def _flow(
    data: Any, augment: Augment | None, views: int, batch_size: int
) -> tuple[tf.data.Dataset, list[str], int | None]:
    """(views of the data in their order, dtypes of the inputs, number of samples: None if it is not known)."""
    if augment is not None and not takes_seed(augment):
        raise TypeError(
            "`augment` must be a function (x, seed) of one sample and of an int32 seed of shape (2,), such as "
            f"`tf.image.stateless_random_flip_left_right`; got {augment!r}."
        )
    if not isinstance(data, tf.data.Dataset):
        x, _ = as_arrays(data)
        if augment is not None:
            check_replayable(batches_of(x, 16), augment)
        return views_of(batches_of(x, batch_size), augment, views), dtypes_of(x), len(keras.tree.flatten(x)[0])
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("`data` never ends. Give the dataset without `.repeat()`.")
    if augment is not None:
        check_replayable(data, augment)
    return views_of(data, augment, views), dtypes_of(split(unpacked(data.element_spec)[0])[0]), None


def _taps(source: ModelTeacher, taps: Taps, spec: Any) -> tuple[list[Tapped], list[Tapped]]:
    """(all tensors of the teacher, those that are kept), both empty without taps."""
    if isinstance(taps, list | tuple) and not taps:
        return [], []
    x = tf.nest.map_structure(lambda each: keras.KerasTensor((None, *each.shape[1:]), each.dtype.name), spec)
    tensors = source.tensors(x)
    kept = list({id(tap): tap for tap in resolve(taps, tensors, source.model, "teacher")}.values())
    for tap in kept:
        if tap.attends:
            raise ValueError(attention_refusal(tap))
    return tensors, kept


def _check_teacher(teacher: Any, from_logits: Any) -> None:
    if not isinstance(teacher, keras.Model):
        raise TypeError(
            f"`teacher` must be a keras.Model (Keras 3); got {type(teacher).__module__}.{type(teacher).__name__}."
        )
    if not teacher.built:
        raise ValueError(
            f"The teacher {teacher.name!r} is not built, so it holds no trained weights. Train or load it."
        )
    if from_logits not in (None, True, False):
        raise TypeError(f"`from_logits` must be True, False or None; got {from_logits!r}.")


def _verbosity(verbose: Any) -> int:
    if verbose not in ("auto", 0, 1, 2):
        raise ValueError(f"`verbose` must be 'auto', 0, 1 or 2; got {verbose!r}.")
    return 1 if verbose == "auto" else int(verbose)
