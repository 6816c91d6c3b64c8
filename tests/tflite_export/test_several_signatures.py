"""One file, several functions: shared weights, and training on the device."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_export
from tflite_export.tflite import flatbuffer, records

layers = keras.layers
X = np.random.default_rng(0).random((40, 8, 8, 3)).astype("float32")
LABELS = X[:, :, :, :2].mean((1, 2)).argmax(-1).astype("int32")


@pytest.fixture(scope="module")
def nets():
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), name="image")
    h = layers.GlobalAveragePooling2D()(layers.Conv2D(64, 3, activation="relu", name="conv")(image))
    encoder = keras.Model(image, layers.Dense(24, activation="relu", name="wide")(h), name="encoder")
    return encoder, keras.Model(image, layers.Dense(3, name="head")(encoder(image)), name="classifier")


@pytest.mark.parametrize(
    ("precision", "limit"),
    [("float32", 1e-5), ("float16", 2e-3), ("dynamic", 2e-2), ("weight_int8", 2e-2), ("int8", 2e-2)],
)
def test_embed_and_classify_share_their_weights(nets, precision, limit):
    encoder, classifier = nets
    data = {"embed": X, "classify": X} if precision == "int8" else None
    file = tflite_export.convert({"embed": encoder, "classify": classifier}, precision, data)
    session = file.session()
    assert set(session.signatures) == {"embed", "classify"}
    expected = {"embed": np.asarray(encoder(X)), "classify": np.asarray(classifier(X))}
    for name, values in expected.items():
        (found,) = session.run(name, X).values()
        assert np.abs(found - values).max() <= limit * np.abs(values).max(), name
    alone = tflite_export.convert(classifier, precision, X).size_bytes
    weights = {"float32": 4, "float16": 2}.get(precision, 1) * (27 * 64 + 64 * 24)
    assert file.size_bytes < alone + 0.7 * weights + 1500  # of a graph


def test_ranges_of_each_signature_are_those_of_a_file_of_its_own():
    """A gate that MUL writes over, a mask of attention and a NEG: all that is put right before the quantizer."""
    keras.utils.set_random_seed(0)
    x, seen = keras.Input((8, 16), name="x"), keras.Input((8,), name="seen")
    far = layers.Lambda(lambda kept: (1 - kept[:, None, :]) * -1e9)(seen)
    scores = layers.Add()([layers.Dot(2)([layers.Dense(16)(x), layers.Dense(16)(x)]), far])
    h = layers.Dot((2, 1))([layers.Softmax()(scores), layers.Lambda(lambda h: -h)(layers.Dense(16)(x))])
    h = layers.Multiply()([layers.Dense(16, activation="sigmoid")(h), layers.Rescaling(6.0)(h)])
    body = keras.Model([x, seen], h, name="body")
    full = keras.Model([x, seen], layers.Dense(3)(layers.GlobalAveragePooling1D()(h)), name="full")
    generator = np.random.default_rng(0)
    data = {
        "x": generator.normal(size=(120, 8, 16)).astype("float32"),
        "seen": (generator.random((120, 8)) < 0.7).astype("float32"),
    }
    session = tflite_export.convert({"body": body, "full": full}, "int8", {"body": data, "full": data}).session()
    for name, model in (("body", body), ("full", full)):
        (found,) = session.run(name, data).values()
        np.testing.assert_array_equal(found, tflite_export.convert(model, "int8", data).predict(data))


def test_what_a_signature_never_saw_is_told():
    x = keras.Input((6,))
    dead = layers.Dense(4, activation="relu", bias_initializer=keras.initializers.Constant(-9.0), name="dead")(x)
    model = keras.Model(x, layers.Dense(2)(layers.Concatenate()([dead, layers.Dense(4)(x)])))
    data = np.random.default_rng(0).uniform(size=(120, 6)).astype("float32")
    file = tflite_export.convert({"one": model}, "int8", {"one": data})
    assert any("nothing but zeros came out of dead" in note for note in file.notes)


def test_a_loop_in_a_signature_is_refused_in_integers(nets):
    x = keras.Input((6, 4))
    tagger = keras.Model(x, layers.LSTM(3, name="recurrent")(x))
    data = {"embed": X, "tag": np.random.default_rng(0).random((100, 6, 4)).astype("float32")}
    with pytest.raises(tflite_export.ConversionError, match="'recurrent' is a loop.*`unroll=True`"):
        tflite_export.convert({"embed": nets[0], "tag": tagger}, "int8", data)


def test_open_shapes_of_signatures():
    image = keras.Input((None, None, 3), name="image")
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image)))
    with pytest.raises(ValueError, match=r"open sizes.*`shapes=\{'find': \{'image': \(32, 32, 3\)\}\}`"):
        tflite_export.convert({"find": model}, "float32")
    with pytest.raises(ValueError, match=r"of \['find'\]; got \{'image'"):
        tflite_export.convert({"find": model}, "float32", shapes={"image": (8, 8, 3)})
    fixed = tflite_export.convert({"find": model}, "float32", shapes={"find": {"image": (8, 8, 3)}})
    np.testing.assert_allclose(fixed.session().run("find", X)["global_average_pooling2d"], model(X), atol=1e-5)
    for shapes in ("open", {"find": "open"}):
        assert tflite_export.convert({"find": model}, "float32", shapes=shapes).inputs[0].shape == (1, None, None, 3)

    @tf.function(input_signature=[tf.TensorSpec([1, 5], name="v")])
    def positive(v):
        return {"kept": tf.boolean_mask(v, v > 0)}

    with pytest.raises(tflite_export.ConversionError, match="signature 'positive': 'kept' has an open shape"):
        tflite_export.convert({"positive": positive}, "float32")


def test_signatures_that_take_bytes():
    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(image))))
    logits = tflite_export.fold_processing(model, rescale=(1 / 255, 0), uint8_input=True)
    scores = tflite_export.fold_processing(model, rescale=(1 / 255, 0), uint8_input=True, output="softmax")
    pixels = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 3)).astype("uint8")
    sources, data = {"logits": logits, "scores": scores}, {"logits": pixels, "scores": pixels}
    file = tflite_export.convert(sources, "int8", data)
    assert "CAST" not in {op.name for op in records.ops(file.content)}
    for name, source in sources.items():
        (found,) = file.session().run(name, pixels).values()
        np.testing.assert_array_equal(found, tflite_export.convert(source, "int8", pixels).predict(pixels))


def test_inputs_of_each_signature_are_in_order():
    a, b = keras.Input((2,), name="zz"), keras.Input((3,), name="aa")
    one = keras.Model([a, b], {"q": layers.Dense(2)(a), "p": layers.Dense(4)(b)})
    file = tflite_export.convert({"first": one, "second": one}, "float32")
    model = flatbuffer.read(file.content)
    for number in range(2):
        graph = model.Subgraphs(model.SignatureDefs(number).SubgraphIndex())
        tensors = records.tensors(file.content, model.SignatureDefs(number).SubgraphIndex())
        assert [tensors[i].shape for i in graph.InputsAsNumpy()] == [(1, 2), (1, 3)]


def test_training_on_the_device_equals_keras(nets):
    """Eleven steps of SGD with momentum, in the runtime and by Keras, from the same weights."""
    encoder, classifier = nets
    file = tflite_export.convert(
        tflite_export.trainable_head(classifier, batch=8, learning_rate=0.2, momentum=0.9), "float32"
    )
    assert file.min_runtime == "2.6"
    session = file.session()
    np.testing.assert_allclose(session.run("infer", X)["logits"], classifier(X), atol=1e-5)

    again = tflite_export.convert(tflite_export.trainable_head(classifier), "float32").session()
    np.testing.assert_allclose(again.run("infer", X)["logits"], classifier(X), atol=1e-5)  # nothing was trained yet
    image = keras.Input((24,))
    head = keras.Model(image, layers.Dense(3, name="copy")(image))
    head.set_weights(classifier.get_layer("head").get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    head.compile(keras.optimizers.SGD(0.2, momentum=0.9), loss, jit_compile=False)
    features = np.asarray(encoder(X))
    losses = []
    for step in range(11):
        rows = np.arange(8 * step, 8 * step + 8) % 40
        losses.append(float(head.train_on_batch(features[rows], LABELS[rows])))
        (found,) = session.run("train", {"image": X[rows], "label": LABELS[rows]})["loss"]
        assert found[0] == pytest.approx(losses[-1], rel=1e-4)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(session.run("infer", X)["logits"], head(features), atol=1e-4)

    kept = session.run("save", np.zeros((1, 1), "float32"))["parameters"]
    kernel, bias = head.get_weights()
    np.testing.assert_allclose(kept[0], np.concatenate([kernel.ravel(), bias]), atol=1e-4)
    fresh = file.session()
    np.testing.assert_allclose(fresh.run("infer", X)["logits"], classifier(X), atol=1e-5)
    fresh.run("restore", kept)
    np.testing.assert_allclose(fresh.run("infer", X)["logits"], head(features), atol=1e-4)


def test_heads_that_are_refused(nets):
    encoder, classifier = nets
    with pytest.raises(ValueError, match=r"must be a Dense with softmax or without activation.*Dense 'wide' with relu"):
        tflite_export.trainable_head(encoder)
    nested = keras.Sequential([keras.Input((8, 8, 3)), classifier])
    with pytest.raises(ValueError, match="is the nested model 'classifier'"):
        tflite_export.trainable_head(nested)
    with pytest.raises(TypeError, match="with one output"):
        tflite_export.trainable_head(keras.Sequential([layers.Dense(2)]))
    for wrong in ({"batch": 0}, {"learning_rate": 0}, {"momentum": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            tflite_export.trainable_head(classifier, **wrong)


def test_bad_arguments(nets):
    encoder, classifier = nets
    two = {"embed": encoder, "classify": classifier}
    bad = [
        ({}, "float32", None, "an empty dict"),
        ({"a b": encoder}, "float32", None, r"letters, digits and _.*\['a b'\]"),
        (two, "int16x8", None, "can be 'float32', 'float16'.*got 'int16x8'"),
        (two, "int8", {"embed": X}, r"for every signature; missing: \['classify'\]"),
        (two, "int8", X, "is a dict signature name -> data"),
        (two, "float32", {"other": X}, r"of \['embed', 'classify'\]; got \['other'\]"),
    ]
    for sources, precision, data, message in bad:
        with pytest.raises(ValueError, match=message):
            tflite_export.convert(sources, precision, data)
    session = tflite_export.convert(two, "float32").session()
    with pytest.raises(ValueError, match=r"the signatures \['classify', 'embed'\]; got 'detect'"):
        session.run("detect", X)
    with pytest.raises(ValueError, match="expected shape"):
        session.run("embed", X[:, :4])


def test_a_signature_that_is_another_function(nets, monkeypatch):
    encoder, _ = nets
    from tflite_export.runtime.session import Session

    call = Session.call
    monkeypatch.setattr(Session, "call", lambda *given: {name: 2 * value for name, value in call(*given).items()})
    with pytest.raises(tflite_export.ConversionError, match="signature 'embed', output 'wide': another function"):
        tflite_export.convert({"embed": encoder}, "float32")


def test_limits_hold_for_several_signatures(nets):
    encoder, classifier = nets
    sources = {"embed": encoder, "classify": classifier}
    with pytest.raises(tflite_export.ConversionError, match="at most 100 were asked for"):
        tflite_export.convert(sources, "float32", max_bytes=100)
    with pytest.raises(tflite_export.ConversionError, match="needs TensorFlow Lite 2.17; asked for was 2.5"):
        tflite_export.convert(sources, "dynamic", min_runtime="2.5")

    @tf.function(input_signature=[tf.TensorSpec([1, 3, 3], name="m")])
    def factor(m):
        return tf.linalg.cholesky(m)

    with pytest.raises(tflite_export.ConversionError, match="Cholesky"):
        tflite_export.convert({"embed": encoder, "factor": factor}, "float32")


def test_calls_that_change_variables_take_whole_batches(nets):
    _, classifier = nets
    session = tflite_export.convert(tflite_export.trainable_head(classifier, batch=8), "float32").session()
    kept = session.run("save")["parameters"]
    labels = np.arange(8, dtype="int32") % 3
    given = {next(name for name in session.signatures["train"][0] if name != "label"): X[:8], "label": labels}
    with pytest.raises(ValueError, match="'train' changes variables and takes 8 samples a call.*got 5"):
        session.run("train", {name: values[:5] for name, values in given.items()})
    np.testing.assert_array_equal(session.run("save")["parameters"], kept)
    session.run("train", given)
    assert np.abs(session.run("save")["parameters"] - kept).max() > 0
    np.testing.assert_array_equal(session.run("restore", {"parameters": kept})["parameters"], kept)
    assert len(session.run("infer", X[:5])["logits"]) == 5


def test_a_file_of_several_signatures_tells_them(nets):
    encoder, classifier = nets
    file = tflite_export.convert({"embed": encoder, "classify": classifier}, "float32")
    found = tflite_export.inspect(file)
    assert set(found.signatures) == {"embed", "classify"}
    for text in (str(file), str(found)):
        assert "signatures: " in text
        assert "embed" in text
    assert sum(found.dtype_bytes.values()) < file.size_bytes  # what they share is counted once


def test_each_signature_is_verified(nets):
    encoder, classifier = nets
    file = tflite_export.convert({"embed": encoder, "classify": classifier}, "float32")
    sources, data = {"embed": encoder, "classify": classifier}, {"embed": X, "classify": X}
    result = tflite_export.verify(sources, file, data)
    assert result.passed
    assert [check.name.split("/")[0] for check in result.outputs] == ["embed", "classify"]
    other = keras.models.clone_model(encoder)
    assert not tflite_export.verify({"embed": other}, file, {"embed": X}).passed
    with pytest.raises(ValueError, match=r"signatures \[.*\]; got sources for \['head'\]"):
        tflite_export.verify({"head": classifier}, file, {"head": X})
    with pytest.raises(ValueError, match=r"a dict signature name -> data, of \['embed'\]"):
        tflite_export.verify({"embed": encoder}, file, X)


def test_strange_data_of_a_signature_are_told(nets):
    encoder, _ = nets
    with pytest.warns(UserWarning, match=r"representative_data\['embed'\]`: 8 samples"):
        tflite_export.convert({"embed": encoder}, "int8", {"embed": X[:8]})


def test_data_of_a_signature_on_another_scale_than_in_training():
    x = keras.Input((6, 6, 3), name="image")
    h = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3)(x))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(h)))
    pixels = np.random.default_rng(0).uniform(size=(128, 6, 6, 3)).astype("float32")
    model.compile("sgd", "mse")
    model.fit(pixels, np.zeros((128, 2)), epochs=30, verbose=0)
    with pytest.warns(UserWarning, match=r"representative_data\['classify'\]`: .*'norm'"):
        tflite_export.convert({"classify": model}, "int8", {"classify": 255 * pixels})
    folded = tflite_export.fold_processing(model, rescale=(1 / 255, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "`representative_data")
        tflite_export.convert({"classify": folded}, "int8", {"classify": 255 * pixels})
