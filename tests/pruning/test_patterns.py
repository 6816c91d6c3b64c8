"""Units and masks of every pattern, against a formula made another way."""

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.core.kernels import find_kernels
from kdopt.pruning.patterns import NM, PATTERNS, Block
from kdopt.pruning.selection import Selection

RANDOM = np.random.default_rng(0)


def net():
    """Conv + BatchNormalization, depthwise, transposed, attention, dense."""
    x = keras.Input((4, 4, 4))
    h = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, padding="same", name="conv")(x))
    h = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(layers.ReLU()(h))
    h = layers.Conv2DTranspose(4, 2, name="up")(h)
    h = layers.Reshape((25, 4))(h)
    h = layers.MultiHeadAttention(2, 3, name="mha")(h, h)
    return keras.Model(x, layers.Dense(6, name="dense")(layers.Flatten()(h)))


def select(pattern, allocation="uniform", names=None, model=None):
    selection = Selection(model or net(), names, pattern, allocation)
    return selection, [RANDOM.random(tuple(view.variable.shape)) for view in selection.kernels]


def by_name(selection, masks):
    return {view.name: mask for view, mask in zip(selection.kernels, masks, strict=False)}


@pytest.mark.parametrize("name", PATTERNS.names())
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5])
def test_contract(name, sparsity):
    """Exact to within one unit, bool masks of the Variables' shapes, the same twice, the config round trip."""
    names = ["mha"] if name == "head" else ["conv", "dense"] if name == "n_m" else None
    selection, scores = select(PATTERNS.get(name), names=names)
    masks = selection.masks(scores, sparsity)
    for variable, mask in zip(selection.variables, masks, strict=True):
        assert (mask.dtype, mask.shape) == (np.dtype(bool), tuple(variable.shape))
    coupled = selection.pattern.couple(selection, selection.kernels) if name != "head" else []
    for (i,) in coupled:
        own = selection.pattern.group(selection.kernels, (i,), [scores[i]])
        assert abs(np.count_nonzero(~masks[i]) - sparsity * masks[i].size) <= own.sizes.max() / 2 + 1e-9
    for mask, again in zip(masks, selection.masks(scores, sparsity), strict=True):
        np.testing.assert_array_equal(mask, again)
    copied = type(selection.pattern).from_config(selection.pattern.get_config())
    assert copied.get_config() == selection.pattern.get_config()


def test_channels_go_with_bias_gamma_and_beta():
    selection, scores = select("channel")
    masks = selection.masks(scores, 0.5)
    for view, score, mask in zip(selection.kernels, scores, masks, strict=False):
        axis = view.channel_axis % score.ndim
        sums = score.sum(axis=tuple(i for i in range(score.ndim) if i != axis))
        kept = np.ones(sums.size, bool)
        kept[np.argsort(sums)[: round(sums.size / 2)]] = False
        shape = [1] * score.ndim
        shape[axis] = -1
        np.testing.assert_array_equal(mask, np.broadcast_to(kept.reshape(shape), score.shape))
    companions = {v.path: m for v, m in zip(selection.variables, masks, strict=True) if len(v.shape) == 1}
    conv = by_name(selection, masks)["conv"].any(axis=(0, 1, 2))
    for path in ("conv/bias", "norm/gamma", "norm/beta"):
        np.testing.assert_array_equal(companions[path], conv)
    np.testing.assert_array_equal(companions["up/bias"], by_name(selection, masks)["up"].any(axis=(0, 1, 3)))


def test_pruned_channels_give_exact_zeros():
    from kdopt.pruning.prune import prune

    model = net()
    for weight in model.get_layer("norm").weights:
        weight.assign(RANDOM.random(8) + 0.5)
    pruned, _ = prune(model, 0.5, pattern="channel", layers=["conv"])
    seen = keras.Model(pruned.inputs, pruned.get_layer("norm").output)
    out = seen.predict(RANDOM.random((2, 4, 4, 4)), verbose=0)
    zero = (out == 0).all(axis=(0, 1, 2))
    assert zero.sum() == 4
    np.testing.assert_array_equal(zero, (pruned.get_layer("conv").kernel.numpy() == 0).all(axis=(0, 1, 2)))


def test_a_norm_that_two_layers_share_is_no_companion():
    x = keras.Input((4, 4, 2))
    one, two, norm = layers.Conv2D(3, 1, name="one"), layers.Conv2D(3, 1, name="two"), layers.BatchNormalization()
    model = keras.Model(x, layers.Add()([norm(one(x)), norm(two(x))]))
    assert [view.norm for view in find_kernels(model)[0]] == [None, None]


def test_input_channels_of_every_kind_of_kernel():
    selection, scores = select("input_channel")
    masks = by_name(selection, selection.masks(scores, 0.5))
    assert masks["conv"].all(axis=(0, 1, 3)).sum() == 2
    assert masks["up"].all(axis=(0, 1, 2)).sum() == 4
    assert masks["attention_output"].all(axis=2).sum() == 3
    assert "depthwise" not in masks
    assert [(skip.name, skip.unfit) for skip in selection.skipped] == [("depthwise", True)]


def test_n_of_m_along_the_input_channels():
    selection, scores = select(NM(1, 4), names=["conv", "dense"])
    full = selection.masks(scores, 0.75)
    conv, dense = full[:2]
    assert (conv.sum(axis=2) == 1).all()  # 4 input channels
    np.testing.assert_array_equal(conv.argmax(axis=2), scores[0].argmax(axis=2))
    assert (dense.reshape(-1, 4, 6).sum(axis=1) == 1).all()
    half = selection.masks(scores, 0.375)
    assert set(half[0].sum(axis=2).reshape(-1)) == {1, 4}
    assert np.count_nonzero(~half[0]) == round(0.375 * conv.size / 3) * 3
    with pytest.raises(ValueError, match="'conv' has 4 input channels, which 3:8 does not divide"):
        select(NM(3, 8), names=["conv"])
    with pytest.raises(ValueError, match="NM reaches a sparsity of 0.5 at most; got 0.8"):
        select(NM(2, 4), names=["conv"])[0].check_sparsity(0.8)


def test_blocks_of_uneven_ends():
    selection, scores = select(Block((3, 4)), names=["dense"])
    (score,), (mask, *_) = scores, selection.masks(scores, 0.4)
    rows, columns = score.shape  # 100 x 6: 34 x 2 blocks, the last of 1 row and of 2 columns
    for i in range(0, rows, 3):
        for j in range(0, columns, 4):
            block = mask[i : i + 3, j : j + 4]
            assert block.all() or not block.any()
    assert abs(np.count_nonzero(~mask) - 0.4 * mask.size) <= 6


def test_heads_go_as_a_whole():
    selection, scores = select("head", names=["mha"])
    total = sum(s.sum(axis=(0, 2)) for s in scores[:3]) + scores[3].sum(axis=(1, 2))
    masks = selection.masks(scores, 0.5)
    stays = int(np.argmax(total))
    for mask in masks[:3]:
        assert mask[:, stays].all()
        assert not mask[:, 1 - stays].any()
    assert masks[3][stays].all()
    assert not masks[3][1 - stays].any()
    biases = [m for v, m in zip(selection.variables, masks, strict=True) if v.path.endswith("bias")]
    assert [m.shape for m in biases] == [(2, 3)] * 3
    assert all(m[stays].all() and not m[1 - stays].any() for m in biases)


def test_what_a_pattern_is_not_for_is_told():
    with pytest.raises(ValueError, match="The pattern Head has no meaning for 'dense': it is no projection"):
        select("head", names=["dense"])
    with pytest.raises(ValueError, match="Unknown pattern 'chanel'. Did you mean 'channel'"):
        select("chanel")
    rows = keras.Sequential([keras.Input((3, 2)), layers.LSTM(4), layers.Dense(3, name="last"), layers.Dense(2)])
    selection, _ = select("channel", model=rows)
    assert [view.name for view in selection.kernels] == ["last"]
    assert {skip.reason for skip in selection.skipped} == {
        "recurrent: a channel is spread over the gates",
        "its channels are outputs of the model; name it in `layers` to prune them",
    }
    for image, reason in ((1, {"it has one input channel"}), (2, set())):
        net = keras.Sequential([keras.Input((6, 6, image)), layers.Conv2D(4, 3), layers.Conv2D(2, 3)])
        assert {skip.reason for skip in select("input_channel", model=net)[0].skipped} == reason
    for wrong in ((2,), (0, 4), 4):
        with pytest.raises(ValueError, match="`shape"):
            Block(wrong)
    with pytest.raises(ValueError, match="`m` must be greater than n=4; got 4"):
        NM(4, 4)
