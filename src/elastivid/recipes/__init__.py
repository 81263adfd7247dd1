"""Recipes that the package ships, and how one is found by name or by file.

A recipe is a module with `RECIPE`, a subclass of `elastivid.train.recipe.Recipe`, in it.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from elastivid.core.errors import UnknownNameError

if TYPE_CHECKING:
    from elastivid.train.recipe import Recipe


def names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def summaries() -> dict[str, str]:
    """First line of every shipped recipe's docstring, by name; nothing is imported for it."""
    folder = Path(__path__[0])
    return {
        name: (folder / f"{name}.py").read_text(encoding="utf-8").lstrip().removeprefix('"""').splitlines()[0]
        for name in names()
    }


def find(name: str) -> type[Recipe]:
    """The recipe called `name`, or that of the file with this path.

    Raises:
        UnknownNameError: neither a shipped recipe nor a path that ends in .py; the message lists the shipped ones.
        FileNotFoundError: there is no such file.
        TrainingError: the file holds no recipe.
    """
    if name.endswith(".py"):
        return _of_file(Path(name).expanduser())
    if name not in names():
        raise UnknownNameError("recipe (a shipped name, or the path of a .py file)", name, names())
    recipe: type[Recipe] = importlib.import_module(f"{__name__}.{name}").RECIPE
    return recipe


def _of_file(path: Path) -> type[Recipe]:
    from elastivid.train.recipe import Recipe
    from elastivid.train.stages import TrainingError

    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and worker processes look it up there
    spec.loader.exec_module(module)
    recipe = getattr(module, "RECIPE", None)
    if not (isinstance(recipe, type) and issubclass(recipe, Recipe)):
        raise TrainingError(f"{path} holds no recipe: it must end in RECIPE = <a subclass of Recipe>, got {recipe!r}")
    return recipe
