"""Who may import whom: `app -> api -> engine -> {package format, errors, settings}`.

By reading the sources, so that an import inside a function counts too, and by importing in a
fresh process, so that what comes in through a third module counts as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server" / "gpt2serve"
EXPORT = ROOT / "export" / "gpt2export"

#: Layers, lowest first. What is not in here belongs to the web application's side.
GROUND = {
    "gpt2serve.errors": 0,
    "gpt2serve.package": 1,
    "gpt2serve.origins": 1,
    "gpt2serve.sizes": 1,
    "gpt2serve.settings": 2,
}
TORCH = {"torch", "transformers", "optimum", "safetensors", "huggingface_hub"}
WEB = {"litestar", "uvicorn", "starlette", "prometheus_client", "structlog"}


def name_of(path: Path) -> str:
    """`gpt2serve.engine.core` of ROOT/server/gpt2serve/engine/core.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    """Full names of all modules that `path` imports anywhere, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found
    return found


def top(module: str) -> str:
    return module.partition(".")[0]


def layer_of(module: str) -> str:
    """`ground`, `engine`, `api` or `app` of a module inside gpt2serve."""
    if any(module == name or module.startswith(f"{name}.") for name in GROUND):
        return "ground"
    second = [*module.split("."), ""][1]
    return second if second in ("engine", "api") else "app"


def module_in(name: str) -> str:
    """The module that an imported name lives in: `gpt2serve.errors` of `...errors.Overloaded`."""
    path = SERVER.parent / Path(*name.split("."))
    while not (path.with_suffix(".py").exists() or (path / "__init__.py").exists()):
        path = path.parent
    return ".".join(path.relative_to(SERVER.parent).parts)


SERVER_SOURCES = sources(SERVER)
EXPORT_SOURCES = sources(EXPORT)


def test_names_are_found() -> None:
    names = {name_of(path) for path in SERVER_SOURCES}
    assert {"gpt2serve", "gpt2serve.app", "gpt2serve.engine.core", "gpt2serve.errors"} <= names
    assert module_in("gpt2serve.errors.Overloaded") == "gpt2serve.errors"


ALLOWED = {
    "ground": {"ground"},
    "engine": {"ground", "engine"},
    # The web side shares modules with the application: metrics, logs.
    "api": {"ground", "engine", "api"},
    "app": {"ground", "engine", "api", "app"},
}
#: Beside `app` and `cli`, modules of the web side that the api may use.
SHARED_WITH_API = {"gpt2serve.metrics", "gpt2serve.logs"}


@pytest.mark.parametrize("path", SERVER_SOURCES, ids=name_of)
def test_layers(path: Path) -> None:
    if path == SERVER / "__init__.py":
        return  # the door: it imports when a name is used, which is tested below
    layer = layer_of(name_of(path))
    for imported in imports_of(path):
        if top(imported) != "gpt2serve":
            continue
        module = module_in(imported)
        if layer == "api" and module in SHARED_WITH_API:
            continue
        assert layer_of(module) in ALLOWED[layer], f"{name_of(path)} imports {imported}"


def test_ground_modules_build_on_each_other_in_order() -> None:
    for name, height in GROUND.items():
        path = SERVER.parent / Path(*name.split(".")).with_suffix(".py")
        for imported in imports_of(path):
            if top(imported) == "gpt2serve":
                assert GROUND[module_in(imported)] < height, f"{name} imports {imported}"


@pytest.mark.parametrize("path", SERVER_SOURCES, ids=name_of)
def test_the_server_knows_no_exporter(path: Path) -> None:
    for imported in imports_of(path):
        assert top(imported) not in {"gpt2export", *TORCH}, f"{path.name} imports {imported}"


def test_the_engine_knows_no_web() -> None:
    for path in sources(SERVER / "engine"):
        for imported in imports_of(path):
            assert top(imported) not in WEB, f"{path.name} imports {imported}"


@pytest.mark.parametrize(
    ("package", "module"),
    [("onnxruntime", "gpt2serve.engine.sessions"), ("onnx", "gpt2serve.engine.weights")],
)
def test_one_module_imports(package: str, module: str) -> None:
    users = [
        name_of(path)
        for path in SERVER_SOURCES
        if any(top(imported) == package for imported in imports_of(path))
    ]
    assert users == [module]


def test_one_module_imports_obstore() -> None:
    """And only when there is a URL: it is an extra."""
    users = [
        name_of(path)
        for path in SERVER_SOURCES
        if any(top(imported) == "obstore" for imported in imports_of(path))
    ]
    assert users == ["gpt2serve.engine.stores.object_store"]
    assert "obstore" not in loaded_by("import gpt2serve.engine.store")


def test_one_module_imports_opentelemetry() -> None:
    """And only when traces are wanted: it is an extra."""
    users = [
        name_of(path)
        for path in SERVER_SOURCES
        if any(top(imported) == "opentelemetry" for imported in imports_of(path))
    ]
    assert users == ["gpt2serve.api.traces"]
    assert "opentelemetry" not in loaded_by("import gpt2serve.app, gpt2serve.api.serving")


def test_policy_is_pure() -> None:
    """No clock, no event loop, no thread, no file, no numbers library in the deciding parts."""
    for name in (
        "scheduler",
        "kv_cache",
        "model_cache",
        "turns",
        "shares",
        "failures",
        "stores/disk_policy",
        "stores/reachability",
    ):
        for imported in imports_of(SERVER / "engine" / f"{name}.py"):
            assert top(imported) in {
                "__future__",
                "math",
                "collections",
                "dataclasses",
                "enum",
                "gpt2serve",
                "typing",
            }, f"{name} imports {imported}"


def test_only_settings_read_the_environment() -> None:
    readers = set()
    for path in SERVER_SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            reads = isinstance(node, ast.Attribute) and node.attr in (
                "environ",
                "environb",
                "getenv",
            )
            if reads or (isinstance(node, ast.Name) and node.id in ("environ", "getenv")):
                readers.add(name_of(path))
    assert readers == {"gpt2serve.settings"}


@pytest.mark.parametrize("path", EXPORT_SOURCES, ids=name_of)
def test_the_exporter_knows_the_package_format_only(path: Path) -> None:
    # The format's own errors are part of the format.
    for imported in imports_of(path):
        if top(imported) == "gpt2serve":
            module = module_in(imported)
            assert module in {"gpt2serve.package", "gpt2serve.errors"}, (
                f"{path.name} imports {imported}"
            )


def test_what_users_run_needs_no_tests() -> None:
    for folder in ("benchmarks", "examples", "samples"):
        for path in sources(ROOT / folder):
            if any(part.startswith(".") for part in path.relative_to(ROOT).parts):
                continue  # a cache
            assert "tests" not in map(top, imports_of(path)), path


# -- in a fresh process -----------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    """First parts of the names of all modules that `statement` loads."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names = set(done.stdout.split())
    assert names
    return names | {top(name) for name in names}


def test_the_application_loads_no_torch() -> None:
    loaded = loaded_by("import gpt2serve.app, gpt2serve.cli")
    assert {"litestar", "gpt2serve"} <= loaded
    assert not loaded & {"gpt2export", *TORCH}


def test_the_engine_loads_no_web() -> None:
    loaded = loaded_by("from gpt2serve import Engine, SamplingParams")
    assert {"onnxruntime", "gpt2serve"} <= loaded
    assert not loaded & {"gpt2export", "gpt2serve.app", "gpt2serve.api", *TORCH, *WEB}


def test_the_bare_package_loads_almost_nothing() -> None:
    loaded = loaded_by("import gpt2serve")
    assert not loaded & {"onnxruntime", "numpy", "tokenizers", *TORCH, *WEB}


def test_the_package_format_needs_no_runtime() -> None:
    loaded = loaded_by("import gpt2serve.package, gpt2serve.settings, gpt2serve.errors")
    assert not loaded & {"onnxruntime", "numpy", "tokenizers", "gpt2serve.engine", *TORCH, *WEB}
