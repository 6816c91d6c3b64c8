"""The one error of its own that this package raises."""


class ConversionError(RuntimeError):
    """A source that cannot become a correct file of the wanted precision: which layer, why, what to do.

    Bad arguments (unknown precision, unusable data, missing file) are `ValueError`, `TypeError` or `OSError` instead.
    """
