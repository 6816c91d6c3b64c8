"""What happens to kernels in training: tfmot's schemes by name."""

import re
from dataclasses import dataclass

from kdopt.core.validation import check_one_of


@dataclass(frozen=True)
class Scheme:
    """How kernels are rounded, and what of them training must keep.

    Args:
        weight_bits: Integer in [2, 8], or None: not rounded in training; the converter gives them scales.
        keeps_zeros: Whether weights that are zero stay zero.
        keeps_values: Whether a kernel of at most 256 different values gets no more.
    """

    weight_bits: int | None = 8
    keeps_zeros: bool = False
    keeps_values: bool = False

    @property
    def preserves(self) -> bool:
        return self.keeps_zeros or self.keeps_values


SCHEMES = {
    "int8": Scheme(),
    "prune_preserve": Scheme(keeps_zeros=True),
    "cluster_preserve": Scheme(keeps_values=True),
    "prune_cluster_preserve": Scheme(keeps_zeros=True, keeps_values=True),
    "no_weights": Scheme(weight_bits=None),
    "w4a8": Scheme(weight_bits=4),
    "w2a8": Scheme(weight_bits=2),
}


def scheme_of(name: str) -> Scheme:
    """The scheme called `name`.

    Raises: ValueError for an unknown one, and for numbers of bits that TFLite cannot store.
    """
    bits = re.fullmatch(r"w(\d+)a(\d+)", name) if isinstance(name, str) else None
    if bits and name not in SCHEMES:
        raise ValueError(
            f"scheme={name!r} does not survive export: TFLite's kernels compute on int8 activations, and a file holds "
            "weights as int8 or int4 (2 bits fit exactly into 4). Way out: 'w4a8', 'w2a8' or 'int8'."
        )
    return SCHEMES[check_one_of("scheme", name, tuple(SCHEMES))]
