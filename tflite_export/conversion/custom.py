"""Operations that are not builtin, where the user's app has them."""

from collections.abc import Collection
from typing import Any

_FLEX = "Flex"


def check_custom_ops(names: Any) -> frozenset[str]:
    """The names as a set.

    Raises: TypeError.
    """
    if isinstance(names, str) or not isinstance(names, Collection) or not all(isinstance(one, str) for one in names):
        raise TypeError(f"`custom_ops` must be a list of names, e.g. ['FlexErf']; got {names!r}.")
    return frozenset(names)


def allow(converter: Any, names: frozenset[str]) -> None:
    """Lets TensorFlow's converter make these operations; which of them are in the file is for the contract."""
    if any(name.startswith(_FLEX) for name in names):
        import tensorflow as tf

        kinds = set(converter.target_spec.supported_ops)
        converter.target_spec.supported_ops = [*kinds, tf.lite.OpsSet.SELECT_TF_OPS]
    if any(not name.startswith(_FLEX) for name in names):
        converter.allow_custom_ops = True


def not_run(names: Collection[str]) -> str:
    """What to tell of a file that this runtime cannot run."""
    flex = [name for name in names if name.startswith(_FLEX)]
    where = "the app's runtime must register them"
    if flex:
        where += "; Flex ones come with TensorFlow's select-tf-ops, which add over 100 MB to an app"
    return (
        f"neither loaded nor compared with its source here, since it holds {', '.join(sorted(names))}: ai_edge_litert "
        f"does not have them, {where}"
    )
