"""Names of classes in words: what a user gives to a dual encoder, and what labels of a data set become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elastivid.core.errors import ElastividError

PROMPTS = ("{}", "a video of {}", "a clip of {}", "footage of {}", "{} in a video")


class ClassesError(ElastividError, ValueError):
    """Names of classes are missing, empty, repeated, or do not fit the model."""


@dataclass(frozen=True)
class Names:
    """Names of classes and the sentences they are put into.

    Args:
        classes: names; empty leaves them to the model, which then must have a head.
        prompts: texts with `{}` in the place of the name; their vectors are averaged.

    Raises:
        ClassesError: one name alone, an empty or repeated one, or prompts without a place for it.
    """

    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = PROMPTS

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(name.strip() for name in self.classes))
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if len(self.classes) == 1 or not all(self.classes) or twice:
            raise ClassesError(
                f"classes need at least two different names, none of them empty; got {len(self.classes)}"
                + (f", of which {', '.join(twice[:3])} occurs twice" if twice else "")
            )
        if not self.prompts or not all("{}" in prompt for prompt in self.prompts):
            raise ClassesError(f"every prompt needs a {{}} in the place of the name, got {list(self.prompts)}")

    @property
    def sentences(self) -> list[str]:
        """Every prompt with every name, those of one name together."""
        return [prompt.replace("{}", name) for name in self.classes for prompt in self.prompts]


def spoken(label: str) -> str:
    """A label of a data set as words: "brush_hair" becomes "brush hair", "PlayingGuitar" "playing guitar"."""
    apart = "".join(f" {c}" if c.isupper() and i and label[i - 1].islower() else c for i, c in enumerate(label))
    return " ".join(apart.replace("_", " ").replace("-", " ").lower().split())


def read_names(file: Path) -> tuple[str, ...]:
    """Names in a file, one a line; empty lines and lines that start with # are passed over.

    Raises:
        ClassesError: the file cannot be read or is no text.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ClassesError(
            f"cannot read the names of classes: {error}; expected UTF-8 text, one name a line"
        ) from error
    return tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))


def split_names(text: str) -> tuple[str, ...]:
    """Names in `a dog, a cat`, parted by commas; empty parts stay and are refused later."""
    return tuple(part.strip() for part in text.split(","))


def labels_as_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Every label as words, or as it is where two would come out alike."""
    words = tuple(spoken(label) for label in labels)
    return words if len(set(words)) == len(words) and all(words) else tuple(labels)
