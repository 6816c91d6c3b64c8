"""How far a student follows its teacher: same answers, same probabilities, as well calibrated, as robust."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.core.backend import require_tensorflow
from kdopt.core.validation import check_integer, check_one_of, check_positive
from kdopt.distillation.activations import SIGMOID, SOFTMAX
from kdopt.distillation.comparing.answers import ROLES, Answers
from kdopt.distillation.comparing.calibration import Reliability, divergence, reliability
from kdopt.distillation.comparing.corrupting import corruptions_for
from kdopt.distillation.comparing.figure import plot_agreement
from kdopt.distillation.comparing.samples import gathered
from kdopt.distillation.teachers import ModelTeacher, Preprocessing
from kdopt.distillation.validation import check_from_logits, check_inputs


@dataclass(frozen=True)
class Corrupted:
    """What is left under one corruption.

    Attributes:
        name: Of the corruption.
        severity: Float > 0.
        top1_agreement: Float in [0, 1].
        teacher_accuracy, student_accuracy: Floats in [0, 1]; `None` without labels.
    """

    name: str
    severity: float
    top1_agreement: float
    teacher_accuracy: float | None
    student_accuracy: float | None


@dataclass(frozen=True)
class Agreement:
    """What `agreement` measured; `print` shows a table, `plot` a picture.

    Attributes:
        samples: Integer, how many inputs.
        top1_agreement: Float in [0, 1], the share of answers with the same class.
        kl_nats: Float >= 0, mean KL(teacher || student).
        teacher_accuracy, student_accuracy: Floats in [0, 1]; `None` without labels.
        teacher_reliability, student_reliability: How often each is right where it is how sure; `None` without labels.
        corruptions: The same under each corruption and severity.
    """

    samples: int
    top1_agreement: float
    kl_nats: float
    teacher_accuracy: float | None
    student_accuracy: float | None
    teacher_reliability: Reliability | None
    student_reliability: Reliability | None
    corruptions: tuple[Corrupted, ...]

    @property
    def teacher_ece(self) -> float | None:
        """The teacher's expected calibration error, in [0, 1]; `None` without labels."""
        return None if self.teacher_reliability is None else self.teacher_reliability.ece

    @property
    def student_ece(self) -> float | None:
        """The student's expected calibration error, in [0, 1]; `None` without labels."""
        return None if self.student_reliability is None else self.student_reliability.ece

    def summary(self) -> str:
        """A table."""
        rows: list[tuple[Any, ...]] = [("top-1 agreement, accuracy", "agreement", *ROLES)]
        rows.append(("unchanged data", self.top1_agreement, self.teacher_accuracy, self.student_accuracy))
        if self.teacher_reliability is not None:
            rows.append(("calibration error", None, self.teacher_ece, self.student_ece))
        for row in self.corruptions:
            told = row.top1_agreement, row.teacher_accuracy, row.student_accuracy
            rows.append((f"{row.name}, severity {row.severity:g}", *told))
        if self.teacher_reliability is None:
            rows = [("top-1", "agreement"), *(row[:2] for row in rows[1:])]
        width = max(len(str(row[0])) for row in rows)
        lines = [f"{row[0]:<{width}}" + "".join(f"{_cell(value):>11}" for value in row[1:]) for row in rows]
        last = f"KL(teacher || student): {self.kl_nats:.4f} nats; {self.samples:,} samples"
        return "\n".join(line.rstrip() for line in (*lines, last))

    def __str__(self) -> str:
        return self.summary()

    def plot(self) -> Any:
        """Draws the reliability of both nets, and accuracy and agreement under corruption.

        Returns: `matplotlib.figure.Figure`: `figure.savefig("agreement.png")` writes it.
        Raises: ImportError without matplotlib; ValueError where neither labels nor corruptions were given.
        """
        return plot_agreement(self)


def agreement(
    teacher: keras.Model,
    student: keras.Model,
    data: Any,
    *,
    output: str | int | None = None,
    activation: str | None = None,
    from_logits: bool | dict[str, bool] | None = None,
    teacher_preprocessing: Preprocessing | None = None,
    corruptions: str | Sequence[str] | Mapping[str, Callable[[np.ndarray, float], np.ndarray]] | None = "auto",
    severities: float | Sequence[float] = (1, 3, 5),
    bins: int = 15,
    batch_size: int = 256,
    seed: int = 0,
) -> Agreement:
    """Measures how far a student follows its teacher.

        top-1 agreement = mean [argmax p = argmax q],   KL = mean sum_c p_c * (log p_c - log q_c)
        ECE = sum_m |B_m| / n * |acc(B_m) - conf(B_m)|,   B_m: answers whose largest probability is in bin m

    with p of the teacher and q of the student. Accuracy tells how good a student is; agreement and KL whether it is the
    teacher that it learned, and the calibration error whether its probabilities can be taken at their word. Runs both
    nets on the data once, and once more for each corruption and severity.

    Every position of an output with positions is an answer of its own, unless one of the nets masks it; so is every
    unit of a sigmoid output.

    Args:
        teacher, student: `keras.Model` with the same outputs; left as they are.
        data: Inputs, or a tuple `(inputs, labels)`; arrays, or dicts or lists of them; or a `tf.data.Dataset` or
            `PyDataset` of batches of that. Labels are class numbers or one-hot; of a sigmoid 0 and 1. Preprocessed as
            in training. All is held in memory.
        output: Name or index of the output to compare, where there are several. Defaults to `None`.
        activation: `"softmax"` or `"sigmoid"`, for models that return logits. Defaults to `None`: as the models say,
            softmax where both return logits of several units.
        from_logits: Whether the models return logits: True, False, or `{"student": ..., "teacher": ...}`. Defaults to
            `None`: read from the last activation.
        teacher_preprocessing: Function or layer that makes the teacher's input of the student's, as in `Distiller`.
            Defaults to `None`: the same input.
        corruptions: `"auto"` (default): `"noise"` (of 0.1 * severity of the data's standard deviation) on all that is
            continuous, and `"blur"`, `"contrast"`, `"brightness"` on images, arrays (samples, height, width, channels)
            of floats or bytes; or a list of these; or a mapping from names to functions (array, severity) -> array; or
            `None`.
        severities: A number > 0, or several. Defaults to `(1, 3, 5)`.
        bins: Integer >= 1, of the reliability. Defaults to `15`.
        batch_size: Integer >= 1. Defaults to `256`.
        seed: Integer >= 0, of the noise. Defaults to `0`.

    Returns: `Agreement`.
    Raises: ValueError for outputs that cannot be compared (other class counts, a regression), NaN in the answers, no
        data, labels that do not fit; TypeError for what is no model.

    Example:
    ```
    found = agreement(teacher, distiller.student, (x_test, y_test))
    print(found)
    found.plot().savefig("agreement.png")
    ```

    Reference: Stanton et al., "Does Knowledge Distillation Really Work?", NeurIPS 2021 (agreement, KL); Guo et al.,
        "On Calibration of Modern Neural Networks", ICML 2017, equation 3; Hendrycks & Dietterich, "Benchmarking neural
        network robustness to common corruptions and perturbations", ICLR 2019 (severities are our own).
    """
    require_tensorflow("agreement")
    _check(teacher, student, activation)
    check_inputs(student, ModelTeacher(teacher, teacher_preprocessing))
    check_integer("bins", bins)
    check_integer("batch_size", batch_size)
    given = severities if isinstance(severities, list | tuple) else [severities]
    strengths = [check_positive("severities", severity) for severity in given]
    x, y, count = gathered(data)
    worse = corruptions_for(corruptions, x, check_integer("seed", seed, minimum=0))
    answers = Answers(
        teacher,
        student,
        x,
        output=output,
        activation=activation,
        from_logits=check_from_logits(from_logits),
        teacher_preprocessing=teacher_preprocessing,
        batch_size=batch_size,
    )
    clean = answers.log_probabilities(x, "unchanged")
    labels = None if y is None else answers.labels(y)
    rows = [
        Corrupted(name, severity, *_scores(answers.log_probabilities(corrupt(x, severity), told), labels))
        for name, corrupt in worse.items()
        for severity in strengths
        if (told := f"{name}, severity {severity:g}")
    ]
    agreed, teacher_accuracy, student_accuracy = _scores(clean, labels)
    teacher_bins, student_bins = (_reliability(one, labels, bins) for one in clean)
    kl = divergence(*clean)
    return Agreement(count, agreed, kl, teacher_accuracy, student_accuracy, teacher_bins, student_bins, tuple(rows))


def _scores(both: Sequence[np.ndarray], labels: np.ndarray | None) -> tuple[float, float | None, float | None]:
    """(top-1 agreement, accuracy of the teacher, of the student)."""
    teacher, student = (one.argmax(axis=-1) for one in both)
    right = [None if labels is None else float(np.mean(one == labels)) for one in (teacher, student)]
    return float(np.mean(teacher == student)), right[0], right[1]


def _reliability(log_p: np.ndarray, labels: np.ndarray | None, bins: int) -> Reliability | None:
    if labels is None:
        return None
    return reliability(np.exp(log_p.max(axis=-1)), log_p.argmax(axis=-1) == labels, bins)


def _check(teacher: Any, student: Any, activation: str | None) -> None:
    for role, model in zip(ROLES, (teacher, student), strict=True):
        if not isinstance(model, keras.Model):
            raise TypeError(f"`{role}` must be a keras.Model; got {type(model).__name__}.")
        if isinstance(getattr(model, "student", None), keras.Model):
            raise TypeError(f"`{role}` is a Distiller: give its `student`, or its `teacher`.")
    if activation is not None:
        check_one_of("activation", activation, (SOFTMAX, SIGMOID))


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4f}"
