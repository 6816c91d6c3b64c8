"""What a teacher said of a data set, kept on disk, in the place of the teacher."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import keras
import tensorflow as tf
from keras import ops

from kdopt.core.recording import Recording
from kdopt.core.validation import check_flag, check_integer
from kdopt.distillation.cache.answers import restored
from kdopt.distillation.cache.joining import Joiner
from kdopt.distillation.cache.keys import described, fingerprint
from kdopt.distillation.cache.manifest import Manifest, read_manifest
from kdopt.distillation.cache.samples import Augment, as_arrays, dtypes_of, unpacked
from kdopt.distillation.cache.shards import Rows, shard_name
from kdopt.distillation.cache.taps import replayed, taps_of_cache
from kdopt.distillation.config import specs_from
from kdopt.distillation.joined import split
from kdopt.distillation.taps import Tapped
from kdopt.distillation.teachers import ModelTeacher, Observation


@keras.saving.register_keras_serializable("kdopt")
class TeacherCache:
    """A teacher that need not run: what it said of a data set. `cache_teacher` makes one, `open` opens it.

    `Distiller(student=..., teacher=cache)` takes it wherever it takes a model, and trains on `cache.join(data)`. The
    loss and its gradient are those of the live teacher. With the model at hand (`open(path, teacher=model)`),
    `evaluate` runs it for data that were not joined, and it is saved with the Distiller; without it such data are
    refused, and validation data take a cache of their own: `validation_data=other_cache.join((x, y))`, of the same
    teacher. A saved Distiller holds the cache's path, not its contents.

    Attributes:
        path: Of the folder, as given.
        key: Under which the answers travel with the data; that of all caches of one teacher with the same taps.
        model: The teacher, or None.
        preprocessing: What makes its input of the data, or None.
        name: Of the teacher.
        samples: How many samples there are.
        views: How many views of each.
        taps: Names of the teacher's layers whose tensors are kept.
        size_bytes: Of its shards.
    """

    waits = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest,
        model: keras.Model | None = None,
        preprocessing: Callable[[Any], Any] | None = None,
    ) -> None:
        self.path, self.key, self.name = os.fspath(path), manifest.key, manifest.name
        self.model: Any = model
        self.preprocessing = preprocessing
        self._manifest = manifest
        assert manifest.samples is not None
        self.samples, self.views, self.taps = manifest.samples, manifest.views, tuple(manifest.taps)
        self.size_bytes = sum(entry["bytes"] for entry in manifest.shards.values())

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        teacher: keras.Model | None = None,
        preprocessing: Callable[[Any], Any] | None = None,
    ) -> Self:
        """Opens a complete cache; all of its bytes are read once and compared with their checksums.

        Args:
            path: Folder of the cache.
            teacher: The model it was made with, for evaluation on other data and for losses that read its weights
                (`OverhaulFeature`). Defaults to `None`: not needed.
            preprocessing: What it was made with, if the teacher is given. Defaults to `None`.

        Raises: FileNotFoundError without a cache; ValueError for a cache that is incomplete, damaged or of another
            teacher.
        """
        manifest = _complete(Path(path))
        if teacher is None and preprocessing is not None:
            raise ValueError("`preprocessing` is for the teacher; give `teacher=` too.")
        if teacher is not None:
            if fingerprint(teacher) != manifest.made["teacher"]:
                raise ValueError(
                    f"The cache {os.fspath(path)!r} was made with another teacher ({manifest.name!r}) than "
                    f"{teacher.name!r}: weights or config differ. Give that one, or none."
                )
            if described(preprocessing) != manifest.made["preprocessing"]:
                raise ValueError(
                    f"The cache {os.fspath(path)!r} was made with `preprocessing={manifest.made['preprocessing']}`; "
                    f"got {described(preprocessing)}. Give the same."
                )
        return cls(path, manifest, teacher, preprocessing)

    def __repr__(self) -> str:
        views = f", {self.views} views of each" if self.views > 1 else ""
        taps = f", taps {', '.join(self.taps)}" if self.taps else ""
        return f"TeacherCache({self.path!r}: {self.name!r} on {self.samples} samples{views}{taps})"

    def join(
        self,
        data: Any,
        *,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        seed: int | None = None,
        augment: Augment | None = None,
        view: int | str | None = None,
    ) -> tf.data.Dataset:
        """The data with the teacher's answers beside the inputs, for `fit` and `evaluate`.

        Every sample is compared with the one the teacher saw, by a fingerprint of its bytes; other data, another order
        and random changes are refused (arrays at once, datasets while they flow, by `tf.errors.InvalidArgumentError`).
        The result may be shuffled, repeated, and joined by caches of other teachers.

        Args:
            data: What `cache_teacher` was given, or its beginning, now with labels and weights: arrays `x`, a tuple
                `(x, y)` or `(x, y, sample_weight)`, or a `tf.data.Dataset` of batches.
            batch_size: Of arrays. Defaults to `None`: 32, as in `fit`.
            shuffle: Whether arrays come in a new order in each pass. Defaults to `None`: True. Datasets are shuffled
                after joining.
            seed: Integer; of this order and of `view="random"`. Defaults to `None`: another one in each process unless
                `keras.utils.set_random_seed` was called.
            augment: The function that `cache_teacher` was given; needed if it was given one.
            view: Which views the student sees: `"cycle"`, one after the other: a pass over the result is `views` passes
                over the data, so that with `.repeat()` and `fit(steps_per_epoch=batches)` each epoch takes the next;
                `"random"`, for each sample anew in each pass; or the number of one. Defaults to `None`: `"cycle"`.

        Raises: TypeError, ValueError for arguments that do not fit the cache.
        """
        if isinstance(data, tf.data.Dataset):
            return self._join_dataset(data, batch_size, shuffle, seed, augment, view)
        x, rest = as_arrays(data)
        self._check_dtypes(dtypes_of(x))
        size = check_integer("batch_size", 32 if batch_size is None else batch_size)
        shuffled = check_flag("shuffle", True if shuffle is None else shuffle)
        return self._joiner.of_arrays(x, rest, size, shuffled, seed, self._checked(augment), self._passes(view))

    def _join_dataset(
        self, data: tf.data.Dataset, batch_size: Any, shuffle: Any, seed: Any, augment: Any, view: Any
    ) -> tf.data.Dataset:
        if batch_size is not None or shuffle:
            raise ValueError(
                "`batch_size` and `shuffle` are for arrays. Batch a dataset before, and shuffle it after joining: "
                "`cache.join(dataset).shuffle(100)`."
            )
        x, carried = split(unpacked(data.element_spec)[0])
        self._check_dtypes(dtypes_of(x))
        if not carried:
            return self._joiner.of_dataset(data, seed, self._checked(augment), self._passes(view))
        if augment is not None or view is not None or seed is not None:
            raise ValueError("Joined data keep their views: give `augment`, `view` and `seed` to the first `join`.")
        return self._joiner.of_joined(data)

    @property
    def layers(self) -> list[Any]:
        """The teacher's layers, or their names in the place of them."""
        if self.model is not None:
            return self.model.layers
        return [SimpleNamespace(name=name) for name in self._manifest.layers]

    def kinds(self) -> list[str | None]:
        """As of a teacher (`kdopt.distillation.teachers.Teacher`), like the following."""
        return list(self._manifest.kinds)

    def outputs(self) -> Any:
        return specs_from(self._manifest.outputs)

    def tensors(self, inputs: Any) -> list[Tapped]:
        del inputs
        if not self.taps:
            raise ValueError(
                f"The cache {self.path!r} holds what the teacher returns, but the loss looks at its inner layers. Make "
                "another one with them: `cache_teacher(..., taps=[...])`."
            )
        return taps_of_cache(self._manifest.tensors, self.taps, self.model, self.path)

    def observe(self, x: Any, wanted: Sequence[Tapped], student: Observation, batch: Any) -> Observation:
        said = batch.said.get(self.key)
        if said is None:
            self._check_unjoined(batch)
            return ModelTeacher(self.model, self.preprocessing).observe(x, wanted, student, batch)
        flat = keras.tree.flatten(self.outputs())
        rows = zip(flat, self._manifest.kinds, self._manifest.forms, strict=True)
        values = [
            restored(said[f"output_{place}"], kind, form, spec.dtype) for place, (spec, kind, form) in enumerate(rows)
        ]
        outputs = keras.tree.pack_sequence_as(self.outputs(), values)
        taps = {name: _masked(said, place) for place, name in enumerate(self.taps)}
        return Observation(outputs, replayed(wanted, taps) if wanted else Recording(frozenset()))

    def get_config(self) -> dict[str, Any]:
        """The path, the key, and the teacher if it was given."""
        serialize = keras.saving.serialize_keras_object
        given = {"teacher": self.model, "preprocessing": self.preprocessing}
        return {
            "path": self.path,
            "key": self.key,
            **{name: None if value is None else serialize(value) for name, value in given.items()},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Opens the cache again.

        Raises: FileNotFoundError if it is no longer there; ValueError if another one is.
        """
        path, key = config["path"], config["key"]
        if not Path(path).is_dir():
            raise FileNotFoundError(
                f"The Distiller learned from the teacher cache {path!r}, which is not there (seen from "
                f"{os.getcwd()!r}). Put it back, or make it again by `cache_teacher`. The student alone loads without "
                "it, from a file of its own: `distiller.student.save`."
            )
        manifest = _complete(Path(path))
        if manifest.key != key:
            raise ValueError(
                f"The Distiller learned from a cache of the key {key}; the one in {path!r} has {manifest.key}: another "
                "teacher or other taps. Put the first one back."
            )
        # The weights of the teacher come after it is made, so that they cannot be compared here.
        made = {
            name: None if config.get(name) is None else keras.saving.deserialize_keras_object(config[name])
            for name in ("teacher", "preprocessing")
        }
        return cls(path, manifest, made["teacher"], made["preprocessing"])

    @cached_property
    def _joiner(self) -> Joiner:
        manifest = self._manifest
        rows = Rows(Path(self.path), manifest.fields, manifest.per_shard, self.samples * self.views)
        return Joiner(self.key, self.path, rows, self.views)

    def _check_dtypes(self, dtypes: list[str]) -> None:
        made = self._manifest.made["inputs"]
        if dtypes != made:
            raise ValueError(
                f"The cache {self.path!r} was made of inputs of the dtype {', '.join(made)}; the data have "
                f"{', '.join(dtypes)}. Join them as the teacher was given them, cast and scaled alike."
            )

    def _checked(self, augment: Any) -> Any:
        made = self._manifest.made["augment"]
        if (augment is None) != (made is None) or (augment is not None and not callable(augment)):
            raise ValueError(
                f"The cache {self.path!r} was made {f'with `augment={made}`' if made else 'without `augment`'}; got "
                f"{augment!r}. Give `cache_teacher` and `join` the same function."
            )
        return augment

    def _passes(self, view: Any) -> list[int] | None:
        if view == "random":
            return None
        if view is None or view == "cycle":
            return list(range(self.views))
        if isinstance(view, bool) or not isinstance(view, int) or not 0 <= view < self.views:
            raise ValueError(f"`view` must be 'cycle', 'random' or a number below {self.views}; got {view!r}.")
        return [view]

    def _check_unjoined(self, batch: Any) -> None:
        others = f" (they carry those of {', '.join(batch.said)})" if batch.said else ""
        what = f"The data carry no answers of the teacher in the cache {self.path!r}{others}"
        if batch.training:
            raise ValueError(
                f"{what}. Train on `cache.join(data)`, for instance `distiller.fit(cache.join((x, y), batch_size=64))`."
            )
        if self.model is None:
            raise ValueError(
                f"{what}, and its model was not given. Evaluate on `cache.join(data)`, with a cache of these data "
                "(`cache_teacher(teacher, data, other_path)`), or open the cache with the model: "
                "`TeacherCache.open(path, teacher=model)`."
            )


def _masked(said: Mapping[str, Any], place: int) -> Any:
    """A tapped tensor, with the mask that Keras had on it."""
    values = ops.copy(said[f"tap_{place}"])  # the batch itself carries no mask
    if (mask := said.get(f"mask_{place}")) is not None:
        values._keras_mask = mask
    return values


def _complete(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    again = "Call `cache_teacher` again with the same arguments: it makes what is missing, and only that."
    if damaged := manifest.damaged(folder):
        names = ", ".join(shard_name(number) for number in damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        raise ValueError(f"The teacher cache {str(folder)!r} is damaged: {names} is missing or was changed. {again}")
    if manifest.samples is None:
        raise ValueError(f"The teacher cache {str(folder)!r} is not complete. {again}")
    return manifest
