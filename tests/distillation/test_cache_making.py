"""A cache on disk: what it asks the teacher for, and what it refuses to go on with."""

import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from distillation_oracles import data, mlp
from keras import layers

from kdopt.distillation.cache.cache import TeacherCache
from kdopt.distillation.cache.making import cache_teacher

X, Y = data(64)
# A row of `mlp`: a fingerprint of 8 bytes and 3 logits; so 10 samples go into a shard.
SHARD = 10 * (8 + 3 * 4)


class Asked:
    """Preprocessing that counts what the teacher is asked, and may fail."""

    def __init__(self, fails_at=None):
        self.samples, self.fails_at = [], fails_at

    def __call__(self, x):
        def note(values):
            if len(self.samples) == self.fails_at:
                raise RuntimeError("killed")
            self.samples.append(len(values))
            return values

        y = tf.numpy_function(note, [x], x.dtype)
        y.set_shape(x.shape)
        return y


def make(path, teacher=None, given=X, asked=None, **options):
    options = {"batch_size": 4, "shard_bytes": SHARD, "verbose": 0, **options}
    return cache_teacher(teacher or mlp(2), given, path, preprocessing=asked or Asked(), **options)


def logits_in(path):
    shards = [np.load(shard) for shard in sorted(path.glob("shard-*.npy"))]
    return np.concatenate([shard["output_0"] for shard in shards])


def test_rows_are_the_teachers_logits_in_order(tmp_path):
    teacher, asked = mlp(2, "softmax"), Asked()
    cache = make(tmp_path, teacher, asked=asked)
    assert asked.samples == [4] * 16
    names = ["manifest.json", *(f"shard-{number:05d}.npy" for number in range(7))]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    expected = keras.Model(teacher.inputs[0], teacher.layers[-2].output)(X) @ teacher.layers[-1].kernel
    np.testing.assert_allclose(logits_in(tmp_path), expected + teacher.layers[-1].bias, rtol=1e-5, atol=1e-6)
    assert cache.size_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.npy"))


@pytest.mark.parametrize("form", ["arrays", "dataset"])
def test_a_killed_run_goes_on_at_the_first_missing_shard(tmp_path, form):
    given = X if form == "arrays" else tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    asked = Asked(fails_at=9)  # after 36 samples: three whole shards
    with pytest.raises(tf.errors.OpError, match="killed"):
        make(tmp_path, given=given, asked=asked)
    (tmp_path / ".shard-00003.npy.x.tmp").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"is not complete. Call `cache_teacher` again with the same arguments"):
        TeacherCache.open(tmp_path)
    asked = Asked()
    make(tmp_path, given=given, asked=asked)
    assert sum(asked.samples) == 4 + 64 - 30  # the first batch, to see whether the teacher answers as it did
    whole = tmp_path / "whole"
    make(whole, given=given)
    np.testing.assert_allclose(logits_in(tmp_path), logits_in(whole), rtol=1e-6)
    assert not list(tmp_path.glob(".*"))
    asked = Asked()
    make(tmp_path, given=given, asked=asked)
    assert asked.samples == [4]


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_shard_is_found_and_made_again_alone(tmp_path, damage):
    make(tmp_path)
    before = logits_in(tmp_path)
    shard = tmp_path / "shard-00003.npy"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    if damage == "delete":
        shard.unlink()
    else:
        shard.write_bytes(content if damage == "flip" else content[:-8])
    with pytest.raises(ValueError, match=r"damaged: shard-00003.npy is missing or was changed. Call `cache_teacher`"):
        TeacherCache.open(tmp_path)
    asked = Asked()
    make(tmp_path, asked=asked)
    assert asked.samples == [4, 2, 4, 4]  # the first batch, samples 30 to 39, in the batches from 28 on
    np.testing.assert_allclose(logits_in(tmp_path), before, rtol=1e-6)
    TeacherCache.open(tmp_path)


def test_a_whole_shard_between_damaged_ones_stays(tmp_path):
    make(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.npy")}
    for number in (1, 3):
        (tmp_path / f"shard-{number:05d}.npy").write_bytes(b"")
    asked = Asked()
    make(tmp_path, asked=asked, batch_size=32)
    assert asked.samples == [32, 22, 8]  # the first batch, samples 10 to 31 in one go, though 20 to 29 are there
    for name, content in before.items():
        if name in ("shard-00001.npy", "shard-00003.npy"):
            rows = [np.load(file)["output_0"] for file in (io.BytesIO(content), tmp_path / name)]
            np.testing.assert_allclose(*rows, rtol=1e-6)
        else:
            assert (tmp_path / name).read_bytes() == content


def test_a_function_of_the_same_name_that_does_something_else(tmp_path):
    def times(factor):
        return lambda x: factor * x

    made = cache_teacher(mlp(2), X, tmp_path, preprocessing=times(1.0), shard_bytes=SHARD, verbose=0)
    again = cache_teacher(mlp(2), X, tmp_path, preprocessing=times(1.0001), shard_bytes=SHARD, verbose=0)
    assert again.size_bytes == made.size_bytes
    before = logits_in(tmp_path)
    with pytest.raises(ValueError, match=r"output_0: by .* of its largest.*another `preprocessing` function"):
        cache_teacher(mlp(2), X, tmp_path, preprocessing=times(1.5), shard_bytes=SHARD, verbose=0)
    np.testing.assert_array_equal(logits_in(tmp_path), before)
    cache_teacher(mlp(2), X, tmp_path, preprocessing=times(1.5), shard_bytes=SHARD, verbose=0, overwrite=True)


def test_a_teacher_that_draws_anew_each_time_is_no_other_teacher(tmp_path):
    def noisy(x):
        return x + tf.random.normal(tf.shape(x))

    for _ in range(2):
        cache_teacher(mlp(2), X, tmp_path, preprocessing=noisy, verbose=0)


def test_a_damaged_manifest(tmp_path):
    make(tmp_path)
    manifest = tmp_path / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(ValueError, match=r"is of format 99"):
        TeacherCache.open(tmp_path)
    manifest.write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        make(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no teacher cache in .*Make it: `cache_teacher"):
        TeacherCache.open(tmp_path / "elsewhere")


OTHER = {
    "taps": ({"taps": 1}, r"taps: \[\] there, \['dense"),
    "dtype": ({"dtype": "float16"}, r"dtype: 'float32' there, 'float16' here"),
    "views": ({"augment": lambda x, seed: x, "views": 2}, r"views: 1 there, 2 here; augment: None there"),
    "from_logits": ({"from_logits": True}, r"from_logits: None there, True here"),
    "shard_bytes": ({"shard_bytes": 999}, r"shard_bytes: 200 there, 999 here"),
    "preprocessing": ({"asked": lambda x: x * 1}, r"preprocessing: 'Asked' there"),
    "inputs": ({"given": (X * 10).astype("int32")}, r"inputs: \['float32'\] there, \['int32'\] here"),
    "teacher": ({"teacher": mlp(3)}, r"weights and config of the teacher \(fingerprint\): '"),
    "fewer": ({"given": X[:40]}, r"made of 64 samples; the data hold 40"),
    "more": ({"given": np.concatenate([X, X])}, r"made of 64 samples; the data hold 128"),
    "fewer batches": ({"given": tf.data.Dataset.from_tensor_slices(X[:40]).batch(8)}, r"64 samples; the data hold 40"),
    "more batches": ({"given": tf.data.Dataset.from_tensor_slices(X).batch(8).repeat(2)}, r"hold at least 72"),
    "order": ({"given": X[[*range(17), 18, 17, *range(19, 64)]]}, r"other data: sample 17 is another one.*same order"),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_cache_at_the_same_place_is_refused(tmp_path, name):
    make(tmp_path, batch_size=32)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    options, message = OTHER[name]
    with pytest.raises(ValueError, match=message) as error:
        make(tmp_path, **options)
    assert "overwrite=True" in str(error.value)
    assert "another path" in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwrite_replaces_a_cache_and_nothing_else(tmp_path):
    make(tmp_path / "c")
    (tmp_path / "c" / "notes.txt").write_text("mine")
    cache = make(tmp_path / "c", mlp(3), given=X[:5], overwrite=True)
    assert cache.samples == 5
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["manifest.json", "notes.txt", "shard-00000.npy"]
    with pytest.raises(ValueError, match=r"holds files, but no teacher cache"):
        make(tmp_path, overwrite=True)
    with pytest.raises(NotADirectoryError, match="is a file"):
        make(tmp_path / "c" / "notes.txt")


def test_the_same_net_built_again_is_the_same_teacher(tmp_path):
    """Keras numbers the names of layers through a process."""
    first, second = mlp(2, "softmax"), mlp(2, "softmax")
    assert first.layers[1].name != second.layers[1].name
    make(tmp_path, first)
    asked = Asked()
    make(tmp_path, second, asked=asked)
    assert asked.samples == [4]
    assert TeacherCache.open(tmp_path, second, asked).model is second
    second.layers[1].bias.assign_add([1e-7] * 8)
    with pytest.raises(ValueError, match=r"made with another teacher"):
        TeacherCache.open(tmp_path, second, asked)
    with pytest.raises(ValueError, match=r"made with another teacher"):  # the same weights, another activation
        TeacherCache.open(tmp_path, mlp(2), asked)
    with pytest.raises(ValueError, match=r"made with `preprocessing=Asked`; got None"):
        TeacherCache.open(tmp_path, first)


def test_what_the_teacher_cannot_have_cached(tmp_path):
    teacher = mlp(2)
    teacher.layers[-1].kernel.assign(np.asarray(teacher.layers[-1].kernel) * 1e6)
    with pytest.raises(ValueError, match=r"beyond 65504 in output 0, which float16 cannot hold. Pass `dtype="):
        make(tmp_path / "a", teacher, dtype="float16")
    teacher.layers[1].bias.assign([np.nan] * 8)
    with pytest.raises(ValueError, match=r"gives NaN in (tap 'dense|output 0)"):
        make(tmp_path / "b", teacher, taps=1)
    inputs = keras.Input((None, 2))
    sequences = keras.Model(inputs, layers.Dense(3)(inputs))
    lengths = [np.zeros((2, length, 2), "float32") for length in (4, 5)]
    spec = tf.TensorSpec((None, None, 2))
    ragged = tf.data.Dataset.from_generator(lambda: iter(lengths), output_signature=spec)
    with pytest.raises(ValueError, match=r"gives output_0 5x3 for the samples from 2 on, and gave output_0 4x3 before"):
        cache_teacher(sequences, ragged, tmp_path / "c", verbose=0)
    inputs = keras.Input((4, 2))
    attending = keras.Model(inputs, layers.MultiHeadAttention(1, 2, name="look")(inputs, inputs))
    with pytest.raises(ValueError, match=r"'look' of the teacher is an attention layer.*tap the layer behind it"):
        cache_teacher(attending, np.zeros((2, 4, 2), "float32"), tmp_path / "d", taps="attention", verbose=0)


BAD = {
    "teacher": (dict(teacher=3), TypeError, "`teacher` must be a keras.Model"),
    "unbuilt": (dict(teacher=keras.Sequential([layers.Dense(1)])), ValueError, "is not built"),
    "views": (dict(views=2), ValueError, "needs `augment=`"),
    "random": (dict(augment=lambda x, seed: x + tf.random.uniform([])), ValueError, "different views of a sample"),
    "drawn": (dict(augment=lambda x, seed: x + np.random.rand()), ValueError, "different views of a sample"),
    "augment": (dict(augment=3), TypeError, "`augment` must be a function"),
    "of one": (dict(augment=lambda x: x), TypeError, r"`augment` must be a function \(x, seed\)"),
    "layer": (dict(augment=layers.RandomFlip()), TypeError, r"`augment` must be a function \(x, seed\)"),
    "dtype": (dict(dtype="int8"), ValueError, "`dtype` must be one of"),
    "taps": (dict(taps="nowhere"), ValueError, "Nothing to tap in the teacher"),
    "batch": (dict(batch_size=0), ValueError, "`batch_size`"),
    "shard": (dict(shard_bytes=0), ValueError, "`shard_bytes`"),
    "verbose": (dict(verbose=3), ValueError, "`verbose` must be"),
    "from_logits": (dict(from_logits="yes"), TypeError, "`from_logits`"),
    "data": (dict(given=[1.0, 2.0]), TypeError, "arrays, a tuple"),
    "lengths": (dict(given=(X, Y[:3])), ValueError, r"as many samples each; got \[3, 64\]"),
    "none": (dict(given=X[:0]), ValueError, "holds no samples"),
    "endless": (dict(given=tf.data.Dataset.from_tensors(X).repeat()), ValueError, "never ends"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(tmp_path, name):
    options, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        make(tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()
