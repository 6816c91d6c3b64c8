"""What a teacher cache holds, in its `manifest.json`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdopt.core.files import write_atomic
from kdopt.distillation.cache.shards import Field, is_whole, shard_name

NAME, FORMAT = "manifest.json", 1
_WORDS = {"teacher": "weights and config of the teacher (fingerprint)"}


@dataclass
class Manifest:
    """A cache in words.

    Attributes:
        key: Under which its answers travel with the data.
        name: Of the teacher.
        made: The arguments it was made with, as JSON: a cache is gone on with only under the same.
        outputs: Structure of shapes and dtypes, as `shapes_of`.
        kinds: What each output is, as `kinds_of`.
        forms: How each output is stored, as `form_of`.
        tensors: All that can be tapped in the teacher, as `tap_to_config`; empty for a cache without taps.
        layers: Names of `teacher.layers`.
        fields: Columns of the rows.
        per_shard: Rows of every shard but the last; a multiple of the views.
        samples: How many there are; None until all are done.
        shards: Number -> rows, bytes and SHA-256 of what is done.
    """

    key: str
    name: str
    made: dict[str, Any]
    outputs: Any
    kinds: list[str | None]
    forms: list[str]
    tensors: list[dict[str, Any]]
    layers: list[str]
    fields: list[Field]
    per_shard: int
    samples: int | None = None
    shards: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def views(self) -> int:
        return self.made["views"]

    @property
    def taps(self) -> list[str]:
        return self.made["taps"]

    def write(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        write_atomic(folder / NAME, json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode())

    def damaged(self, folder: Path) -> list[int]:
        """Shards that are missing or not as they were written."""
        return [number for number, entry in self.shards.items() if not is_whole(folder / shard_name(number), entry)]

    def check_made(self, made: dict[str, Any], folder: Path) -> None:
        """Refuses to go on with a cache that was made otherwise.

        Raises: ValueError with what differs.
        """
        differing = [
            f"{_WORDS.get(name, name)}: {_short(self.made[name])} there, {_short(value)} here"
            for name, value in made.items()
            if self.made[name] != value
        ]
        if differing:
            raise ValueError(
                f"The cache in {str(folder)!r} was made otherwise ({'; '.join(differing)}). Give another path, or "
                "`overwrite=True` to replace it."
            )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache.

    Raises: FileNotFoundError if there is none; ValueError if it cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no teacher cache in {str(folder)!r} (no {NAME}). Make it: `cache_teacher(teacher, data, path)`."
        )
    try:
        content = json.loads(path.read_bytes())
        found = content.pop("format")
        if found == FORMAT:
            content["fields"] = [Field(each["name"], each["dtype"], tuple(each["shape"])) for each in content["fields"]]
            content["shards"] = {int(number): entry for number, entry in content["shards"].items()}
            return Manifest(**content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}). Delete the folder and make the cache anew.") from error
    raise ValueError(f"{path} is of format {found}; this release of kdopt reads {FORMAT}. Make the cache anew.")


def prepare_folder(folder: Path, overwrite: bool) -> Manifest | None:
    """The cache that is there already, if it is to be gone on with.

    Args:
        folder: Of the cache.
        overwrite: Whether one that is there goes.

    Raises: NotADirectoryError, ValueError if the place is taken by something else.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"A teacher cache is a folder; {str(folder)!r} is a file. Give another path.")
    for path in folder.glob(".*.tmp") if folder.is_dir() else ():
        if path.name.startswith((".shard-", f".{NAME}")):
            path.unlink()  # of a run that was killed while it wrote
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if not (folder / NAME).is_file():
        raise ValueError(
            f"The folder {str(folder)!r} holds files, but no teacher cache (no {NAME}). Give an empty or a new one."
        )
    found = read_manifest(folder)
    if not overwrite:
        return found
    for path in [*folder.glob(shard_name(0).replace("00000", "*")), folder / NAME]:  # the manifest last
        path.unlink()
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:16]}..."
