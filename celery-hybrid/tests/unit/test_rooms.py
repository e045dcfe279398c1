"""The folders of the package depend on each other in one direction, and so do their modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import celery_hybrid

PACKAGE = "celery_hybrid"
SOURCES = Path(celery_hybrid.__file__).parent

#: From the bottom: each room may import those before it, and no other. Rooms in one line do not know each other.
FLOORS = (
    ("errors", "files", "masking", "names", "processes", "terminal", "loader"),
    ("guard", "rabbitmq", "broker"),
    ("archive",),
    ("delivery", "dead_letters"),
    ("results", "recovery"),
    ("worker",),
    ("metrics", "testing"),
    ("verify", "release"),
    ("diagnose",),
)


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return ".".join((PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_of(path): path for path in sorted(SOURCES.rglob("*.py"))}


def named(node: ast.AST, package: str) -> Iterator[str]:
    """Yield what a statement imports: at the top, in a function, for types alone, or by a string."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            yield whole if whole in MODULES else base
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in {"import_module", "__import__", "symbol_by_name"}:
            yield str(node.args[0].value).split(":")[0]


def imports() -> dict[str, set[str]]:
    """Return which modules of the package each of them imports."""
    found: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        nodes = ast.walk(ast.parse(path.read_text()))
        found[name] = {each for node in nodes for each in named(node, package) if each in MODULES} - {name, PACKAGE}
    return found


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return one circle of a graph, nothing when there is none."""
    done: set[str] = set()

    def follow(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        for each in sorted(graph.get(node, ())):
            found = follow(each, [*way, node])
            if found:
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := follow(node, []))), [])


def test_modules_import_each_other_without_a_circle() -> None:
    graph = imports()
    assert sum(map(len, graph.values())) > 100
    assert circle(graph) == []


def test_rooms_depend_on_each_other_in_one_direction() -> None:
    floors = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {room_of(name) for name in MODULES} - {""}
    assert rooms == floors.keys()
    climbing = sorted(
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if name != PACKAGE
        and room_of(name) != room_of(other)
        and floors[room_of(name)] <= floors[room_of(other)]
        and not (floors[room_of(name)] == floors[room_of(other)] == 0)
    )
    assert climbing == []


def test_a_program_of_a_release_needs_nothing_of_the_package_that_it_meets() -> None:
    programs = {name: others for name, others in imports().items() if room_of(name) == "release"}
    assert "celery_hybrid.release.trial" in programs
    assert not any(programs.values())


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_an_import_is_seen_wherever_it_stands() -> None:
    source = (
        "from celery_hybrid.results import store\n"
        "from ..names import id_of\n"
        "def later():\n    import celery_hybrid.errors\n"
        "def hidden():\n    importlib.import_module('celery_hybrid.worker.control')\n"
    )
    found = {each for node in ast.walk(ast.parse(source)) for each in named(node, "celery_hybrid.verify")}
    assert found == {
        "celery_hybrid.results.store",
        "celery_hybrid.names",
        "celery_hybrid.errors",
        "celery_hybrid.worker.control",
    }
