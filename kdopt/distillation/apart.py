"""Whether student and teacher are two models, or share layers."""

import keras


def check_apart(student: keras.Model, teacher: keras.Model) -> None:
    """Refuses layers in both models that training the student would change.

    Raises: ValueError.
    """
    taught = {id(variable) for variable in teacher.variables}
    shared = [variable.path for variable in student.trainable_variables if id(variable) in taught]
    for layer in shared_layers(student, teacher):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            shared += [variable.path for variable in layer.non_trainable_variables]
    if shared:
        paths = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
        raise ValueError(
            f"Student and teacher share weights that training changes ({paths}): training one would change the other. "
            "Clone the shared layers, or freeze them (`layer.trainable = False`)."
        )


def shared_layers(student: keras.Model, teacher: keras.Model) -> list[keras.layers.Layer]:
    """Layers with variables that are in both models."""
    theirs = {id(layer) for layer in teacher._flatten_layers()}
    return [layer for layer in student._flatten_layers() if id(layer) in theirs and layer.variables]
