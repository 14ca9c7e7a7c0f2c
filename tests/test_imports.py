"""What importing and asking for help may cost, and which room may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import wsmerge

PACKAGE = Path(wsmerge.__file__).parent
HEAVY = {"torch", "transformers", "mergekit", "peft", "numba", "zarr", "matplotlib"}
# Each room, and the rooms it may import besides itself.
MAY_IMPORT = {
    "core": set(),
    "recipe": {"core"},
    "engine": {"core", "recipe"},
    "registry": {"core"},
    "steering": {"core", "recipe", "engine", "registry"},
    "api": {"core", "recipe", "engine", "registry", "steering"},
    "demo": {"core", "recipe", "engine", "registry", "steering", "api"},
    "cli": {"core", "recipe", "engine", "registry", "steering", "api", "demo"},
}


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import wsmerge",
        "import wsmerge.api, wsmerge.registry, wsmerge.recipe, wsmerge.engine.merge, wsmerge.steering.extraction",
        "sys.argv = ['wsmerge', '--help']\nfrom wsmerge.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_loaded(code):
    assert not loaded_by(code) & HEAVY


def test_every_public_name_resolves():
    for name in wsmerge.__all__:
        assert getattr(wsmerge, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        wsmerge.no_such_name  # noqa: B018 - the access is the test


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room not in MAY_IMPORT:
        return  # the package's own __init__ and __main__, and errors, which import no room
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        source = node.module if isinstance(node, ast.ImportFrom) else None
        for module in [f"wsmerge.{name}" for name in names] if source == "wsmerge" else [source] if source else names:
            parts = module.split(".")
            if parts[0] == "wsmerge" and len(parts) > 1 and parts[1] != "errors":
                assert parts[1] in MAY_IMPORT[room] | {room}, f"{path.name} imports {module}"


def test_the_top_level_links_are_what_they_say():
    root = PACKAGE.parent
    for name in ("registry", "cli"):
        link = root / name
        if link.exists():  # a built package has none
            assert link.resolve() == PACKAGE / name
