"""Checks of how the code hangs together, read from its syntax: nothing is imported or run.

    python tools/structure.py        prints every breach, one per line; exit code 1 when there is one

Each check takes source text and returns the breaches it found, so that a test can feed it a bad snippet.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
PACKAGE = "elastivid"

# From the bottom to the top: a folder imports itself and what stands before it.
LAYERS = (
    "core",
    "video",
    "layers",
    "select",
    "memory",
    "losses",
    "models",
    "weights",
    "data",
    "train",
    "evaluate",
    "planning",
    "recipes",
    "search",
    "app",
)

MAX_FILE_LINES = 800
MAX_FUNCTION_LINES = 80  # without the docstring
MAX_CONSTRUCTOR_ARGUMENTS = 8
MAX_CLOSURE_FILES = 12  # of our files outside core/, the vocabulary that everybody reads once
MAX_COMPOSED_FILES = 20  # the same for a model file that is put together from other model files

# A path that starts at the root of somebody's machine.
PRIVATE_PATH = re.compile(r"(?<![\w.:/~$}<-])/(?:home|root|work|tmp|opt|mnt|scratch|Users)/[\w.-]")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> dict[str, Path]:
    """Every module of the package with its file."""
    found = {}
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(source: str, known: frozenset[str], *, types: bool = True) -> set[str]:
    """Our modules that `source` imports anywhere, functions included.

    Args:
        source: text of a module.
        known: names of all our modules; tells whether `from a.b import c` imports module a.b.c or a name of a.b.
        types: also count what only `if TYPE_CHECKING:` imports.
    """
    tree = ast.parse(source)
    skipped: set[ast.AST] = set()
    if not types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped.update(inner for statement in node.body for inner in ast.walk(statement))
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names.update(name if name in known else node.module for name in full)
    return {name for name in names if name.split(".")[0] == PACKAGE}


def direction_breaches(module: str, source: str, known: frozenset[str]) -> list[str]:
    """Imports of `module` that point upwards, are relative or leave the known folders."""
    breaches = [
        f"{module}: relative import in line {node.lineno}; write the full name"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    parts = module.split(".")
    if len(parts) < 2 or parts[1] == "__main__":
        return breaches  # the package itself only names what it resolves later; __main__ stands above everything
    if parts[1] not in LAYERS:
        return [*breaches, f"{module}: folder {parts[1]!r} is not one of {', '.join(LAYERS)}"]
    for name in sorted(imports_of(source, known)):
        target = name.split(".")[1:2]
        if target and target[0] in LAYERS and LAYERS.index(target[0]) > LAYERS.index(parts[1]):
            breaches.append(f"{module} imports {name}: {target[0]}/ stands above {parts[1]}/")
    return breaches


def size_breaches(name: str, source: str) -> list[str]:
    """Files, functions and constructors of `source` over the limits."""
    breaches = []
    lines = source.count("\n") + 1
    if lines > MAX_FILE_LINES:
        breaches.append(f"{name}: {lines} lines, at most {MAX_FILE_LINES}")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, FunctionNode):
            continue
        length = _code_lines(node)
        if length > MAX_FUNCTION_LINES:
            breaches.append(f"{name}: function {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}")
        if node.name == "__init__":
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs][1:]
            if len(arguments) > MAX_CONSTRUCTOR_ARGUMENTS:
                breaches.append(
                    f"{name}: constructor in line {node.lineno} has {len(arguments)} arguments, "
                    f"at most {MAX_CONSTRUCTOR_ARGUMENTS}; pass a frozen dataclass"
                )
    return breaches


def _code_lines(node: FunctionNode) -> int:
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def docstring_breaches(name: str, source: str) -> list[str]:
    """Public modules, classes, functions and methods of `source` without a docstring.

    An empty file needs none, nor do the methods of a Protocol that consist of `...`: the classes that fill them do.
    """
    tree = ast.parse(source)
    breaches = [] if ast.get_docstring(tree) or not tree.body else [f"{name}: the module has no docstring"]
    return breaches + [f"{name}: {what} has no docstring" for what in _undocumented(tree, "")]


def _undocumented(parent: ast.AST, prefix: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(parent):
        if not isinstance(node, FunctionNode | ast.ClassDef) or node.name.startswith("_"):
            continue
        overload = any(ast.unparse(d).endswith(("overload", ".setter")) for d in node.decorator_list)
        shape_only = [ast.unparse(statement) for statement in node.body] == ["..."]
        if not (overload or shape_only) and ast.get_docstring(node) is None:
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node, f"{prefix}{node.name}.")


def closure(module: str, imports: dict[str, set[str]]) -> set[str]:
    """Our modules outside `core` that are needed to run `module`, without itself and empty package files.

    Args:
        module: where to start.
        imports: imports of every module, without those for types only.
    """
    seen: set[str] = set()
    pending = [module]
    while pending:
        for name in imports.get(pending.pop(), set()):
            if name not in seen:
                seen.add(name)
                pending.append(name)
    return {name for name in seen - {module} if name.count(".") >= 2 and not name.startswith(f"{PACKAGE}.core.")}


def closure_breaches(imports: dict[str, set[str]]) -> list[str]:
    """Model files that need more of our files than a reader can hold."""
    models = f"{PACKAGE}.models."
    breaches = []
    for module in sorted(name for name in imports if name.startswith(models)):
        needed = closure(module, imports)
        composed = any(name.startswith(models) for name in imports[module] - {models + "base"})
        limit = MAX_COMPOSED_FILES if composed else MAX_CLOSURE_FILES
        if len(needed) > limit:
            breaches.append(f"{module} needs {len(needed)} of our files, at most {limit}: {', '.join(sorted(needed))}")
    return breaches


def path_breaches(name: str, text: str) -> list[str]:
    """Lines of `text` that name a path of one particular machine."""
    return [
        f"{name}:{number}: names the path of one machine: {line.strip()[:100]}"
        for number, line in enumerate(text.splitlines(), start=1)
        if PRIVATE_PATH.search(line)
    ]


def text_files() -> Iterator[Path]:
    """Files of the repository that people read."""
    endings = {".py", ".md", ".toml", ".yml", ".yaml", ".cff", ".txt", ".html", ".csv", ".json"}
    folders = (".ci", "src", "tests", "tools", "docs", "examples", "recipes", "benchmarks")
    candidates = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in folders:
        candidates += [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    for path in sorted(candidates):
        if path.suffix in endings or path.name in ("Makefile", "run"):
            yield path


def all_breaches() -> list[str]:
    """Breaches of every check over the whole repository."""
    sources = {module: path.read_text(encoding="utf-8") for module, path in modules().items()}
    known = frozenset(sources)
    breaches: list[str] = []
    for module, source in sources.items():
        breaches += direction_breaches(module, source, known)
        breaches += docstring_breaches(module, source)
    breaches += closure_breaches({m: imports_of(s, known, types=False) for m, s in sources.items()})
    for path in text_files():
        name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8", errors="replace")
        breaches += path_breaches(name, text)
        if path.suffix == ".py":
            breaches += size_breaches(name, text)
    return breaches


if __name__ == "__main__":
    found = all_breaches()
    print("\n".join(found) if found else f"structure: {len(modules())} modules, no breach")
    sys.exit(bool(found))
