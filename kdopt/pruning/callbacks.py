"""Gradual pruning as a Keras callback."""

from typing import Any

from kdopt.core.notices import warn_user
from kdopt.core.validation import check_one_of
from kdopt.criteria.base import CRITERIA, Criterion
from kdopt.pruning.allocation import Allocation, PerLayer, Threshold, allocation_of
from kdopt.pruning.masking import Layers, MaskCallback
from kdopt.pruning.patterns import PATTERNS, Pattern
from kdopt.pruning.rules import GradualRule
from kdopt.pruning.run import sparsity
from kdopt.pruning.selection import Selection
from kdopt.schedules.base import Schedule

_FEW = 4
_SCOPES = {"layer": "uniform", "global": "global"}


class GradualPruning(MaskCallback):
    """Makes weights zero while the model trains, more and more of them.

    Give it to `fit` of any Keras 3 model, fresh or trained: Functional, Sequential, subclassed, nested, a `Distiller`
    (its student is pruned), a `quantize_aware` model. Kernels are pruned; biases and normalization are left alone,
    except by patterns that take whole channels. At the end the zeros are exact, everything attached is gone, and the
    model is plain Keras. Zeros make a file smaller only when it is compressed, and nothing faster.

        every update of the schedule, at t optimizer updates since this fit began:
            mask = the 1 - schedule(t) share of weights with the highest scores;   w <- w * mask
        every optimizer update in between:   w <- w * mask

    Each `fit` starts the schedule anew; to fine-tune with the zeros kept, use `Constant`. With
    `steps_per_execution=k` the masks change at the first boundary at or after their step. Cost: one
    multiplication per kernel and step, and a selection on the host at each update. A weight whose mask comes
    back (a cyclic schedule, scores that change) starts at zero, without its old momentum; with criteria that look at
    data, what is out stays the first to go. Gradients of masked
    weights are computed like all others, so they count in `clipnorm` and `global_clipnorm`.

    With `splicing=True` masked weights go on learning behind their zeros, from the gradients at the masked weights,
    and every update of the masks chooses among all weights anew, so that a mistake is taken back:

        every optimizer update u:   dense <- dense + u(gradient at dense * mask);   w <- dense * mask
        every update of the schedule:   mask = the 1 - schedule(t) share of |dense|;   w <- dense * mask

    Made for SGD: Adam moves every weight by about the learning rate, so masked ones drift until they are chosen for it.
    Masks move until the schedule's last update. Costs one more tensor of the size of each kernel. Weights that are out
    do not decay (AdamW). A backup at the end of an epoch keeps what they have learned.

    With other callbacks, wherever they stand in the list:

    - `BackupAndRestore`: masks and step are kept in its folder; a killed `fit` resumes with them. Use
      `double_checkpoint=True`.
    - `EarlyStopping(restore_best_weights=True)`, `ModelCheckpoint(save_best_only=True)`: their best
      starts anew when the final sparsity is reached; if that never happens, a warning says so.
    - Weights that another callback (or an averaging optimizer) puts in at the end are masked again.

    Logs at the end of an epoch: `sparsity`, the fraction of zeros in all pruned kernels, and
    `sparsity/<layer>` for each.

    Args:
        schedule: `kdopt.schedules.Schedule`, e.g. `Polynomial(0.8, end_step=1000)`.
        criterion: Name in `kdopt.criteria.CRITERIA`, or a `Criterion`. Defaults to `"l1"`.
        scope: `"layer"` (default): every kernel gets the schedule's sparsity. `"global"`: all kernels
            together do, and the weakest lose most. Short for `allocation="uniform"` and `"global"`.
        layers: List of layers, layer names, layer classes and regular expressions (`re.compile`), or a function
            `KernelView -> bool`; see `kdopt.core.kernels.select`. Defaults to `None`: all with a kernel. A layer of a
            kind without a rule is left out with a warning.
        pattern: Name in `kdopt.pruning.PATTERNS`, or a `Pattern`: what goes as a whole. Defaults to
            `"unstructured"`.
        allocation: Name in `kdopt.pruning.ALLOCATIONS`, a dict layer name -> sparsity, or an
            `Allocation`: how much each kernel loses. Defaults to `None`: as `scope` says.
        data: For a criterion that needs data, what its `scores` takes. One that needs gradients takes
            those of the training when `data` is `None` (default): summed inside the compiled step since
            the last update of the masks, at the cost of one accumulator a kernel.
        splicing: Bool. Whether masked weights go on learning; for criteria of the weights. Defaults to `False`.

    Attributes:
        masks: Path of a kernel -> its mask, bool, False where the weight is held at zero.
        kernels: `KernelView`s of what is pruned, from the first batch on.
        skipped: `Skipped` layers and why.

    Raises: ValueError for an argument it cannot use, and at the first batch for layers that have no kernel
        or that the pattern does not divide; RuntimeError if a
        backup is restored whose masks are missing or belong to other weights.

    Example:
    ```
    pruning = GradualPruning(Polynomial(0.8, end_step=1000))
    model.fit(x, y, epochs=10, callbacks=[pruning])
    ```

    Reference: Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
        compression", 2017. Splicing: Guo, Yao & Chen, "Dynamic Network Surgery for Efficient DNNs", NeurIPS 2016;
        Lin et al., "Dynamic Model Pruning with Feedback", ICLR 2020.
    """

    def __init__(
        self,
        schedule: Schedule,
        criterion: str | Criterion = "l1",
        scope: str = "layer",
        layers: Layers = None,
        *,
        pattern: str | Pattern = "unstructured",
        allocation: Any = None,
        data: Any = None,
        splicing: bool = False,
    ) -> None:
        super().__init__(layers)
        if not isinstance(schedule, Schedule):
            raise TypeError(
                "`schedule` must be a kdopt.schedules.Schedule, e.g. Constant(0.8) or "
                f"Polynomial(0.8, end_step=1000); got {schedule!r}."
            )
        self.schedule = schedule
        self.criterion = CRITERIA.get(criterion)
        self.scope = check_one_of("scope", scope, tuple(_SCOPES))
        self.pattern = PATTERNS.get(pattern)
        self.allocation = self._check_allocation(allocation)
        self.data = data
        self.splicing = bool(splicing)
        if splicing and self.criterion.needs != "weights":
            raise ValueError(
                f"splicing=True compares all values of weights, masked ones too; {type(self.criterion).__name__} "
                f"needs {self.criterion.needs}. Use a criterion of the weights, such as 'l1', or splicing=False."
            )
        if self.criterion.needs == "data" and data is None:
            raise ValueError(
                f"The criterion {type(self.criterion).__name__} needs samples: pass `data=`, e.g. (x_train[:512], "
                "y_train[:512]), or use one that needs none, such as 'l1', or gradients only, such as 'taylor'."
            )

    def _check_allocation(self, allocation: Any) -> Allocation:
        if allocation is None:
            return allocation_of(_SCOPES[self.scope])
        if self.scope != "layer":
            raise ValueError(
                f"`scope` and `allocation` say the same; pass one of them. Got {self.scope!r} and {allocation!r}."
            )
        return allocation_of(allocation)

    def _make_rule(self) -> GradualRule:
        selection = Selection(self.model, self.layers, self.pattern, self.allocation)
        if not isinstance(self.allocation, (Threshold, PerLayer)):
            selection.check_sparsity(self.schedule.final_sparsity)
        schedule = self.schedule.in_steps(self._updates_an_epoch())
        _warn_of_few_changes(schedule)
        return GradualRule(selection, schedule, self.criterion, self.data)

    def _describe_unfinished(self) -> str:
        wanted = self.schedule.final_sparsity
        reached = sparsity(self.kernels)
        return f"sparsity is {reached:.3f} instead of {wanted:.3f}. Train longer or use a smaller end_step."


def _warn_of_few_changes(schedule: Schedule) -> None:
    """A gradual schedule that changes the masks once or twice is not what its name says."""
    if not hasattr(schedule, "frequency"):
        return
    step, changes = schedule.next_update(-1), 0
    while step is not None and changes < _FEW:
        step, changes = schedule.next_update(step), changes + 1
    if changes < _FEW:
        warn_user(
            f"GradualPruning: {schedule!r} changes the masks {changes} times in all. Use a smaller `frequency`, so "
            "that the net can recover in between."
        )
