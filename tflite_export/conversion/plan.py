"""What `convert` is asked for, checked before anything is converted."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tflite_export import precisions
from tflite_export.conversion.contract import Contract
from tflite_export.conversion.custom import check_custom_ops
from tflite_export.conversion.job import Job
from tflite_export.conversion.mixed import check_layers
from tflite_export.conversion.sparse import check_sparse
from tflite_export.conversion.targets import Target, choose
from tflite_export.silence import silenced
from tflite_export.sources import samples
from tflite_export.sources.protocol import InputSpec, Source
from tflite_export.sources.resolve import resolve
from tflite_export.tflite.op_versions import number


def plan(
    source: Any,
    precision: str | None = None,
    representative_data: Any = None,
    *,
    target: str | None = None,
    batch: int | None = 1,
    shapes: Mapping[str, Sequence[int]] | str | None = None,
    layers: Mapping[str, str] | None = None,
    sparse: bool = False,
    custom_ops: Collection[str] = (),
    min_runtime: str | None = None,
    max_bytes: int | None = None,
    max_samples: int = 512,
    verbose: bool = False,
) -> tuple[Job, Target | None]:
    """The arguments of `convert`, for one source, as a job; and the target.

    Raises: TypeError, ValueError, FileNotFoundError, RuntimeError, as `convert`.
    """
    check_numbers(precision, target, batch, min_runtime, max_bytes, max_samples)
    allowed = check_custom_ops(custom_ops)
    with silenced(verbose):
        resolved = resolve(source)
    _check_batch(resolved, batch)
    place = None
    if target is not None:
        trained = resolved.has_ranges or bool(resolved.kernels)
        place, precision = choose(target, precision, batch, data=representative_data is not None, trained=trained)
    rule = precisions.get(str(precision))
    if sparse:
        check_sparse(rule.name)
    if allowed and target is not None:
        raise ValueError(f"Target {target!r} runs builtin operations only; leave `custom_ops` or `target` out.")
    if allowed and rule.integer:
        raise ValueError(
            f"`custom_ops` does not go with {rule.name!r}: to learn its ranges, the file would have to run here. "
            "Choose 'float32', 'float16' or 'dynamic'."
        )
    resolved = with_shapes(resolved, shapes)
    data = None
    if representative_data is not None:
        data = samples.Stream(resolved.inputs, representative_data, limit=max_samples)
    contract = Contract(
        rule, batch is None, shapes == "open", min_runtime=min_runtime, max_bytes=max_bytes, custom_ops=allowed
    )
    precise = check_layers(layers, resolved, rule.name)
    job = Job(resolved, contract, data, batch, verbose, precise, bool(sparse), allowed)
    return job, place


def check_numbers(precision: Any, target: Any, batch: Any, min_runtime: Any, max_bytes: Any, max_samples: Any) -> None:
    """Refuses arguments that can be judged without a source.

    Raises: TypeError, ValueError.
    """
    _check_integer("batch", batch, optional=True)
    _check_integer("max_bytes", max_bytes, optional=True)
    _check_integer("max_samples", max_samples)
    if min_runtime is not None:
        number(min_runtime)
    if precision is None and target is None:
        raise ValueError(f"Pass `precision`, one of {', '.join(map(repr, precisions.names()))}; or `target`.")
    if precision is not None:
        precisions.get(precision)


def _check_integer(name: str, value: Any, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an integer >= 1{' or None' if optional else ''}; got {value!r}.")


def _check_batch(source: Source, batch: int | None) -> None:
    fixed = source.fixed_batch
    if fixed is not None and fixed != batch:
        raise ValueError(f"{source.label} was built with batch size {fixed}: pass `batch={fixed}`; got {batch}.")


def with_shapes(source: Source, shapes: Mapping[str, Sequence[int]] | str | None, signature: str = "") -> Source:
    """The source with the sizes that the user gave to open ones.

    Args:
        source: With a batch dimension first in every input.
        shapes: As in `convert`.
        signature: Name of the signature it is to be, of several.

    Raises: TypeError, ValueError.
    """
    if shapes == "open":
        return source
    if shapes is not None and not isinstance(shapes, Mapping):
        raise TypeError(f'`shapes` must be a dict input name -> shape of one sample, or "open"; got {shapes!r}.')
    given = {} if shapes is None else dict(shapes)
    if unknown := sorted(set(given) - set(source.inputs)):
        raise ValueError(f"`shapes` names {unknown}; {source.label} has the inputs {list(source.inputs)}.")
    inputs = {}
    for name, spec in source.inputs.items():
        own, wanted = spec.shape[1:], tuple(given.get(name, spec.shape[1:]))
        fits = len(own) == len(wanted) and all(
            isinstance(want, int | np.integer) and want >= 1 and size in (None, want)
            for size, want in zip(own, wanted, strict=True)
        )
        if name in given and not fits:
            raise ValueError(f"`shapes`: input {name!r} has samples of shape {own} (None = open); got {wanted}.")
        if None in wanted:
            example: Any = {name: tuple(32 if size is None else size for size in own)}
            example = {signature: example} if signature else example
            raise ValueError(
                f"{source.label}: input {name!r} has open sizes {own}, with which GPU delegates and browsers refuse a "
                f'file. Fix them, e.g. `shapes={example}`, or keep them with `shapes="open"`.'
            )
        inputs[name] = InputSpec((spec.shape[0], *wanted), spec.dtype)
    return replace(source, inputs=inputs)
