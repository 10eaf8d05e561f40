"""The house: arrows go one way, files are readable in one sitting, chapters and the package need no study."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "finer1_lite"
# From the bottom. A module imports from lower layers and from its own folder.
LAYERS = (
    ("files", "identity", "images", "logprobs", "samplers", "reading", "prompts"), ("rewards", "losses"), ("config",),
    ("departures", "data"), ("policy",),
    ("loop", "sft", "tapo"), ("cot",), ("teachers",), ("evaluate", "recipes"),
    ("birds", "plots", "diagrams", "use", "share", "reproduce"),
)  # fmt: skip
FLOOR = {room: floor for floor, layer in enumerate(LAYERS) for room in layer}
INSIDE_A_LAYER = {("sft", "loop"), ("tapo", "loop"), ("share", "use"), ("birds", "plots")}
FILES = sorted(PACKAGE.rglob("*.py"))
HEART = {"losses": {"torch"}, "logprobs": {"torch"}, "samplers": {"numpy"}, "rewards": set(), "prompts": set()}


def lines(paths) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file of the project imports."""
    package, found = path.relative_to(ROOT).with_suffix("").parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def rooms(path: Path) -> set[str]:
    """The top-level modules or folders of the package that a file imports from."""
    names = (name.split(".") for name in imports(path))
    return {parts[1] for parts in names if parts[0] == "finer1_lite" and len(parts) > 1} & FLOOR.keys()


def test_every_module_has_its_layer():
    there = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert there - {"__init__"} == FLOOR.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in rooms(path) - {own}:
        assert FLOOR[other] < FLOOR[own] or (own, other) in INSIDE_A_LAYER, f"{own} imports {other}"
    assert not any(name.split(".")[0] in ("studies", "tests") for name in imports(path))


@pytest.mark.parametrize("name, libraries", HEART.items())
def test_the_heart_stands_alone(name, libraries):
    imported = {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py")}
    assert imported - sys.stdlib_module_names - {"finer1_lite"} == libraries


def test_chapters_need_no_study():
    for chapter in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(chapter.read_text())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        assert not re.search(r"^\s*(?:from|import) studies\b", code, re.MULTILINE), chapter.name


def test_the_owner_stands_in_one_place():
    """Badges, pip lines and cards have the repository of pyproject.toml: `make owner` changes all."""
    owner = re.search(r"github\.com/([^/]+)/finer1_lite", (ROOT / "pyproject.toml").read_text())[1]
    files = [ROOT / "README.md", PACKAGE / "card.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    for file in files:
        found = re.findall(r"github(?:\.com)?/([\w-]+)/finer1_lite", file.read_text(encoding="utf-8"))
        assert found and set(found) == {owner}, file.name


def test_sizes():
    sizes = {path: lines([path]) for path in FILES}
    assert max(sizes.values()) <= 300, max(sizes, key=sizes.get)
    whole = sum(sizes.values())
    assert whole <= 7400 and lines(PACKAGE / f"{name}.py" for name in HEART) <= 800
    folders = {folder: lines(folder.rglob("*.py")) for folder in PACKAGE.iterdir() if folder.is_dir()}
    assert max(folders.values()) < whole / 5, max(folders, key=folders.get)
    studies = sorted((ROOT / "studies").glob("*.py"))
    assert lines(studies) <= 2000 and max(lines([s]) for s in studies) <= 150
    assert lines((ROOT / "tests").rglob("*.py")) <= 7900
