"""AttentionMapsKL against the scores that Keras's own layers return, and value relations by NumPy."""

import keras
import numpy as np
import pytest
from bound_losses import assert_gradient, attending, bound, normal, recorded, tapped, values_of
from distillation_oracles import softmax
from keras import layers

from kdopt.core.recording import recording
from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.attention_maps import AttentionMapsKL
from kdopt.distillation.losses.hint import Hint
from kdopt.quantization import quantize_aware

TOKENS = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0], [2, 0, 0, 0, 0]])
EVERYWHERE = np.ones((3, 5, 5), bool)
PADDED = (TOKENS > 0)[:, :, None] & (TOKENS > 0)[:, None, :]
CAUSAL = np.tril(np.ones((5, 5), bool))[None] & EVERYWHERE


def multi(seed, heads=2, size=4):
    keras.utils.set_random_seed(seed)
    return layers.MultiHeadAttention(heads, size, bias_initializer="random_normal")


def grouped(seed, heads=4, size=3):
    keras.utils.set_random_seed(seed)
    return layers.GroupQueryAttention(size, heads, 2, bias_initializer="random_normal")


def embedding(width, mask):
    start = keras.initializers.RandomNormal(stddev=2.0)
    return layers.Embedding(9, width, mask_zero=mask, embeddings_initializer=start)


def states(seed, width, mask=False):
    """Token vectors, as an embedding gives them."""
    keras.utils.set_random_seed(seed)
    return embedding(width, mask)(TOKENS)


def called(layer, *inputs, **options):
    """What the layer is recorded as, and the probabilities it says it attends with."""
    masks = [getattr(one, "_keras_mask", None) for one in inputs]
    with recording([layer]) as seen:
        layer(*inputs, **options)
    for one, mask in zip(inputs, masks, strict=True):
        one._keras_mask = mask  # MultiHeadAttention takes the masks off its inputs
    return seen.calls[-1], np.asarray(layer(*inputs, return_attention_scores=True, **options)[1], "float64")


def loss_of(**options):
    loss = AttentionMapsKL(**options)
    loss.build([tapped((3, 5, 2, 4), attends=True)], [tapped((3, 5, 2, 4), attends=True)])
    return loss


def mean_over_positions(each, visible):
    """each(sample, head, target, sources) over heads and positions that see anything; shape (batch,)."""
    found = []
    for n, rows in enumerate(visible):
        places = [t for t in range(len(rows)) if rows[t].any()]
        found.append(np.mean([each(n, t, np.flatnonzero(rows[t])) for t in places]))
    return np.array(found)


def kl_oracle(p, q, visible):
    """p, q: probabilities (batch, heads, targets, sources)."""

    def each(n, t, sources):
        heads = zip(p[n, :, t][:, sources], q[n, :, t][:, sources], strict=True)
        return np.mean([sum(a * np.log(a / b)) for a, b in heads])

    return mean_over_positions(each, visible)


def mse_oracle(a, b, visible):
    return mean_over_positions(lambda n, t, sources: np.mean((a[n, :, t] - b[n, :, t])[:, sources] ** 2), visible)


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")  # Keras's GroupQueryAttention
@pytest.mark.parametrize("make", [multi, grouped])
@pytest.mark.parametrize(
    ("padded", "causal", "visible"),
    [(False, False, EVERYWHERE), (True, False, PADDED), (False, True, CAUSAL), (True, True, PADDED & CAUSAL)],
)
def test_scores_are_those_that_keras_attends_with(make, padded, causal, visible):
    options = {"use_causal_mask": True} if causal else {}
    x, y = states(1, 8, padded), states(2, 6, padded)
    (theirs, p), (ours, q) = called(make(3, size=5), x, x, **options), called(make(4), y, y, **options)
    found = loss_of(relations="scores").compute([theirs], [ours])[0]
    np.testing.assert_allclose(found, kl_oracle(p, q, visible), rtol=1e-3, atol=1e-7)


def projection(layer, which, inputs):
    """One of the linear maps of an attention layer in float64: (batch, length, heads, size)."""
    kernel, bias = (np.asarray(weight, "float64") for weight in getattr(layer, f"_{which}_dense").weights)
    return np.einsum("ble,ehd->blhd", np.asarray(inputs, "float64"), kernel) + bias


def relations_of(one, other):
    """(batch, heads, targets, sources), scaled by the root of the size, by loops over pairs."""
    found = np.empty((len(one), one.shape[2], one.shape[1], other.shape[1]))
    for n, h, t, s in np.ndindex(*found.shape):
        found[n, h, t, s] = one[n, t, h] @ other[n, s, h] / np.sqrt(one.shape[-1])
    return found


def masked_softmax(scores, visible):
    return softmax(np.where(visible[:, None], scores, -1e30))


def attention_pair(padded=True):
    x, y = states(1, 8, padded), states(2, 6, padded)
    layers_ = multi(3, size=5), multi(4)
    records = [called(layer, z, z)[0] for layer, z in zip(layers_, (x, y), strict=True)]
    return records, [(layer, z) for layer, z in zip(layers_, (x, y), strict=True)]


@pytest.mark.parametrize("padded", [False, True])
def test_values_relate_as_in_minilm(padded):
    (theirs, ours), sides = attention_pair(padded)
    visible = PADDED if padded else EVERYWHERE
    t, s = (relations_of(v, v) for v in (projection(layer, "value", z) for layer, z in sides))
    found = loss_of(relations="values").compute([theirs], [ours])[0]
    expected = kl_oracle(masked_softmax(t, visible), masked_softmax(s, visible), visible)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
    both = loss_of().compute([theirs], [ours])[0]
    scores = loss_of(relations="scores").compute([theirs], [ours])[0]
    np.testing.assert_allclose(both, scores + found, rtol=1e-5)


@pytest.mark.parametrize("relation", ["scores", "values"])
def test_mean_square_of_the_relations_as_in_tinybert(relation):
    (theirs, ours), sides = attention_pair()
    found = loss_of(relations=relation, distance="mse").compute([theirs], [ours])[0]
    which = ("query", "key") if relation == "scores" else ("value", "value")
    t, s = (relations_of(*(projection(layer, one, z) for one in which)) for layer, z in sides)
    np.testing.assert_allclose(found, mse_oracle(t, s, PADDED), rtol=1e-3)


def test_relation_heads_regroup_all_heads_side_by_side():
    x, y = states(1, 8), states(2, 6)
    teacher, student = multi(3, heads=4, size=3), multi(4, heads=2, size=4)
    theirs, ours = called(teacher, x, x)[0], called(student, y, y)[0]
    with pytest.raises(ValueError, match="relation_heads"):
        loss_of().compute([theirs], [ours])

    def scores(layer, z):
        query, key = (projection(layer, which, z).reshape(3, 5, 2, -1) for which in ("query", "key"))
        return relations_of(query, key)

    found = loss_of(relations="scores", relation_heads=2).compute([theirs], [ours])[0]
    p, q = softmax(scores(teacher, x)), softmax(scores(student, y))
    np.testing.assert_allclose(found, kl_oracle(p, q, EVERYWHERE), rtol=1e-3)
    with pytest.raises(ValueError, match="must divide 12"):
        loss_of(relation_heads=5).compute([theirs], [ours])


@pytest.mark.parametrize("shape", [(5, 5), (3, 5, 5), (3, 1, 5), (3, 1, 5, 5)])
def test_masks_of_every_shape_that_keras_takes(shape):
    keep = np.array([True, True, True, True, False])
    mask = np.broadcast_to(keep, shape)
    visible = np.broadcast_to(keep, EVERYWHERE.shape)
    x, y = states(1, 8), states(2, 6)
    theirs, p = called(multi(3), x, x, attention_mask=mask)
    ours, q = called(multi(4), y, y, attention_mask=mask)
    found = loss_of(relations="scores").compute([theirs], [ours])[0]
    np.testing.assert_allclose(found, kl_oracle(p, q, visible), rtol=1e-3)
    found = loss_of(relations="values").compute([theirs], [ours])[0]
    t, s = (relations_of(one, one) for one in (np.asarray(r.attention.value, "float64") for r in (theirs, ours)))
    related = keep[None, :, None] & visible  # what nobody attends to relates to nothing
    p, q = masked_softmax(t, related), masked_softmax(s, related)
    np.testing.assert_allclose(found, kl_oracle(p, q, related), rtol=1e-3)


def test_cross_attention_with_other_numbers_of_targets():
    x, y = states(1, 8), states(2, 6)
    (theirs, p), (ours, q) = called(multi(3), x[:, :2], x), called(multi(4), y[:, :2], y)
    assert p.shape == (3, 2, 2, 5)
    found = loss_of(relations="scores").compute([theirs], [ours])[0]
    np.testing.assert_allclose(found, kl_oracle(p, q, np.ones((3, 2, 5), bool)), rtol=1e-3)


def packed_oracle(teacher, student, distance):
    total = 0.0
    for which in ((0, 1), (2, 2)):
        t, s = (relations_of(*(np.asarray(x, "float64")[:, :, k] for k in which)) for x in (teacher, student))
        visible = np.ones((len(t), *t.shape[2:]), bool)
        total = total + (kl_oracle(softmax(t), softmax(s), visible) if distance == "kl" else mse_oracle(t, s, visible))
    return total


@pytest.mark.parametrize("distance", ["kl", "mse"])
def test_the_gradient(distance):
    teacher, student = normal(2, 4, 3, 2, 5, seed=1), normal(2, 4, 3, 2, 3, seed=2)
    loss = bound(AttentionMapsKL(distance=distance), teacher, student, attends=True)
    np.testing.assert_allclose(
        values_of(loss, teacher, student, attending), packed_oracle(teacher, student, distance), rtol=1e-4
    )
    assert_gradient(
        lambda s: values_of(loss, teacher, s, attending), lambda s: packed_oracle(teacher, s, distance), student
    )


def test_a_layer_that_gives_probabilities():
    p, q = (softmax(normal(2, 3, 4, 4, seed=seed).astype("float64")) for seed in (1, 2))
    loss = AttentionMapsKL(relations="scores")
    loss.build([tapped(p.shape)], [tapped(q.shape)])
    found = loss.compute([recorded(p)], [recorded(q)])[0]
    np.testing.assert_allclose(found, kl_oracle(p, q, np.ones((2, 4, 4), bool)), rtol=1e-4)
    with pytest.raises(ValueError, match="goes with `relations='scores'`"):
        AttentionMapsKL().build([tapped(p.shape)], [tapped(q.shape)])


def transformer(seed, width, heads=2):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,), dtype="int32")
    x = embedding(width, True)(inputs)
    x = layers.Add()([x, layers.MultiHeadAttention(heads, 4, name="attend")(x, x)])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def test_heads_are_compared_at_construction():
    def distill(teacher, student, **options):
        loss = AttentionMapsKL(**options)
        return Distiller(student=student, teacher=teacher, distillation_losses=loss, student_loss_weight=0.0)

    with pytest.raises(ValueError, match=r"4 heads of 4, 'attend' of the student 2 of 4. Pass `relation_heads=2`"):
        distill(transformer(1, 8, heads=4), transformer(2, 6))
    with pytest.raises(ValueError, match="must divide 16 and 8"):
        distill(transformer(1, 8, heads=4), transformer(2, 6), relation_heads=3)
    distill(transformer(1, 8, heads=4), transformer(2, 6), relation_heads=2).predict(TOKENS, verbose=0)
    plain = keras.Sequential([keras.Input((5,)), layers.Dense(3)], name="plain")
    with pytest.raises(ValueError, match="the student 'plain' calls no MultiHeadAttention"):
        distill(transformer(1, 8), plain)
    # As many heads of queries, but not of values.
    inputs = [keras.Input((5, 3)) for _ in range(2)]
    nets = [keras.Model(x, layers.GroupQueryAttention(3, 6, n)(x, x)) for x, n in zip(inputs, (2, 3), strict=True)]
    with pytest.raises(ValueError, match="compares values head by head: .* 2 heads of 3, .* of the student 3 of 3"):
        distill(*nets)
    distill(*nets, relations="scores")


@pytest.mark.parametrize("tap", ["attention", "attend"])
def test_attention_in_a_model_that_trains_with_rounding(tap):
    def net():
        inputs = keras.Input((5, 4))
        x = layers.MultiHeadAttention(2, 2, name="attend")(inputs, inputs)
        return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))

    x = normal(4, 5, 4)
    student = quantize_aware(net(), engine="native", calibration=x)
    distiller = Distiller(student=student, teacher=net(), distillation_losses=AttentionMapsKL(tap, "attend"))
    with pytest.raises(ValueError, match="'.*attend' of the student is an attention layer of a model that trains with"):
        distiller(x)


def test_minilm_of_equal_nets_is_zero_and_of_others_the_oracle():
    teacher, student = transformer(1, 8), transformer(2, 6)
    twin = keras.models.clone_model(teacher)
    twin.set_weights(teacher.get_weights())
    for net in (twin, student):
        distiller = Distiller(
            student=net, teacher=teacher, distillation_losses=[AttentionMapsKL()], student_loss_weight=0.0
        )
        with distiller.one_step():
            found = distiller.compute_loss(TOKENS, y_pred=distiller(TOKENS), training=False)
        sides = [(model.get_layer("attend"), model.layers[1](TOKENS)) for model in (teacher, net)]
        expected = 0.0
        for which in (("query", "key"), ("value", "value")):
            t, s = (
                masked_softmax(relations_of(*(projection(layer, one, z) for one in which)), PADDED)
                for layer, z in sides
            )
            expected += kl_oracle(t, s, PADDED).mean()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
        assert (float(found) < 1e-7) == (net is twin)


def test_a_tap_that_an_attention_layer_reads_keeps_its_mask():
    """Keras's MultiHeadAttention takes the masks off the tensors it reads, and a tap would see padding as words."""

    def net(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((5,), dtype="int32")
        x = layers.LayerNormalization(name="norm")(embedding(4, True)(inputs))
        x = layers.MultiHeadAttention(2, 4)(x, x)
        return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))

    student, teacher = net(1), net(2)
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=[Hint("norm")], student_loss_weight=0.0)
    with distiller.one_step():
        found = distiller.compute_loss(TOKENS, y_pred=distiller(TOKENS), training=False)
    s, t = (np.asarray(model.get_layer("norm")(model.layers[1](TOKENS))) for model in (student, teacher))
    np.testing.assert_allclose(found, np.mean((t - s)[TOKENS > 0] ** 2), rtol=1e-4)
