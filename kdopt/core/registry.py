"""A registry: from a name, a config or an instance to an object."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

import keras

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to the classes of one kind of thing.

    Registration also makes the class known to Keras under `package>ClassName`, so that it
    serializes inside a `.keras` file.

    Args:
        kind: String, what the members are ("criterion"); used in error messages.
        base: Class every member is an instance of.
        package: String for Keras; two members of one package need different class names. Defaults to `"kdopt"`.

    Example:
    ```
    CRITERIA = Registry("criterion", Criterion)

    @CRITERIA.register("l1")
    class L1(Criterion): ...

    CRITERIA.get("l1")        # L1()
    ```
    """

    def __init__(self, kind: str, base: type[T], package: str = "kdopt") -> None:
        self.kind = kind
        self.base = base
        self.package = package
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that adds a member under `name`.

        Raises: ValueError if `name` is taken.
        """

        def add(cls: type[T]) -> type[T]:
            if name in self._classes:
                taken = self._classes[name].__qualname__
                raise ValueError(f"{self.kind} name {name!r} is already taken by {taken}.")
            self._classes[name] = cls
            return keras.saving.register_keras_serializable(self.package)(cls)

        return add

    def names(self) -> tuple[str, ...]:
        """The registered names, sorted."""
        return tuple(sorted(self._classes))

    def get(self, identifier: Any) -> T:
        """The object that `identifier` names.

        Args:
            identifier: A registered name, a Keras-serialized config (dict with `class_name`),
                or an instance (returned as it is).

        Raises: ValueError for an unknown name, TypeError for anything else.
        """
        if isinstance(identifier, self.base):
            return identifier
        if isinstance(identifier, str):
            if identifier in self._classes:
                return self._made(identifier)
            close = get_close_matches(identifier, self._classes, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Unknown {self.kind} {identifier!r}.{hint} Known: {', '.join(self.names())}.")
        if isinstance(identifier, dict) and "class_name" in identifier:
            made = keras.saving.deserialize_keras_object(identifier)
            if isinstance(made, self.base):
                return made
        if isinstance(identifier, type) and issubclass(identifier, self.base):
            name = identifier.__name__
            raise TypeError(
                f"A {self.kind} must be an object; got the class {name}. Call it: `{name}({_needs(identifier)})`."
            )
        raise TypeError(
            f"A {self.kind} must be one of {', '.join(map(repr, self.names()))}, a serialized config or an "
            f"instance of {self.base.__name__}; got {identifier!r}."
        )

    def _made(self, name: str) -> T:
        cls = self._classes[name]
        if needed := _needs(cls):
            raise ValueError(f"The {self.kind} {name!r} needs arguments. Give an object: `{cls.__name__}({needed})`.")
        return cls()


def _needs(cls: type) -> str:
    """The arguments without which it cannot be made."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = inspect.signature(cls).parameters.values()
    needed = [one.name for one in given if one.default is one.empty and one.kind not in variadic]
    return ", ".join([*needed, "..."]) if needed else ""
