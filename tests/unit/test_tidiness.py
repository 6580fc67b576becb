"""Is the repository as tidy as its pages say?

What a linter can hold is held by the linters; this holds the rest: sizes, names, homes of
dependencies, and what the README shows.
"""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from shoal.cli.main import app
from typer.main import get_command

ROOT = Path(__file__).parents[2]
ROOTS = ("protos", "services", "cluster", "training")
FOLDERS = (*ROOTS, "tests", "loadtest", "deploy")

MAX_FILE_LINES = 500
MAX_TEST_FILE_LINES = 800
MAX_FUNCTION_LINES = 70
BANNED_MODULES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}

# Where each dependency may be imported: a folder, or one file. The others' homes are contracts of
# import-linter, which sees packages and not single files.
HOMES = {
    "ray": (
        "cluster/shoal/cluster/actors.py",
        "training/shoal/training/ray_workers.py",
        "loadtest/",
    ),
    "matplotlib": ("training/", "cluster/shoal/cli/drift_plots.py", "loadtest/rerank_curve.py"),
    "torch": ("training/",),
    "fsspec": ("services/shoal/table/stores.py",),
    "ir_measures": ("cluster/shoal/cli/judging.py", "training/"),
}


def python_files():
    return sorted(
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if "_pb2" not in path.name and not {"node_modules", ".venv"} & set(path.parts)
    )


def name_of(path):
    return path.relative_to(ROOT).as_posix()


FILES = python_files()
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
SHIPPED = [path for path in FILES if name_of(path).startswith(ROOTS)]


def test_the_files_are_found():
    assert len(SHIPPED) > 50
    assert {name_of(path).split("/")[0] for path in SHIPPED} == set(ROOTS)


def test_no_init_hides_the_other_roots_of_the_namespace():
    hidden = [name_of(path) for path in ROOT.glob("*/shoal/__init__.py")]
    assert hidden == [], "an __init__.py in a folder named shoal hides all other roots"


def test_files_are_short_enough_to_be_one_thing():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    limits = {
        name: MAX_TEST_FILE_LINES if name.startswith("tests/") else MAX_FILE_LINES
        for name in lengths
    }
    assert {name: length for name, length in lengths.items() if length > limits[name]} == {}


def functions(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def body_lines(function):
    """Lines of a function's body, its docstring left out."""
    first, *others = function.body
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if is_docstring and not others:
        return 0
    start = others[0].lineno if is_docstring else first.lineno
    return function.end_lineno - start + 1


def test_functions_can_be_seen_at_once():
    long_ones = {
        f"{name_of(path)}:{function.lineno} {function.name}": body_lines(function)
        for path in SHIPPED
        for function in functions(TREES[path])
        if body_lines(function) > MAX_FUNCTION_LINES
    }
    assert long_ones == {}


def test_modules_are_named_for_what_they_do():
    named = [name_of(path) for path in FILES if path.stem.strip("_") in BANNED_MODULES]
    assert named == []


def test_every_module_says_what_it_is_for():
    silent = [name_of(path) for path in FILES if path.name != "__init__.py"]
    assert [name for name in silent if not ast.get_docstring(TREES[ROOT / name])] == []


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("package", HOMES)
def test_each_dependency_has_one_home(package):
    strays = [
        name_of(path)
        for path in FILES
        if not name_of(path).startswith(("tests/", *HOMES[package]))
        if any(module.split(".")[0] == package for module in imported(TREES[path]))
    ]
    assert strays == []


def test_committed_files_name_no_path_of_somebodys_machine():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this is no git checkout")
    private = re.compile(rb"/(?:home|Users|root|work)/[A-Za-z0-9._-]")
    # Homes of users in images, which are the same everywhere.
    known = (b"/home/shoal", b"/home/ray")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".onnx", ".npy", ".jsonl", ".gz"):
            content = path.read_bytes()
            for each in known:
                content = content.replace(each, b"")
            found += [(name, match.group()) for match in private.finditer(content)]
    assert [each for each in found if each[0] != name_of(Path(__file__))] == []


# The README, which is what newcomers type from

PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "ARCHITECTURE.md",
        "protos/README.md",
        "loadtest/README.md",
        "training/README.md",
    )
]


def code_blocks(language):
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL):
            yield name_of(page), block


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_close_their_blocks_and_link_to_what_is_there(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("```") % 2 == 0
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_shell_blocks_are_shell_and_python_blocks_python():
    for page, block in code_blocks("sh"):
        done = subprocess.run(["sh", "-n"], input=block, text=True, capture_output=True)
        assert done.returncode == 0, (page, block, done.stderr)
    for page, block in code_blocks("python"):
        ast.parse(block, page)


def shown_commands():
    for page, block in code_blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "shoal":
                yield pytest.param(words[1:], id=f"{page}: {line.split('#')[0].strip()}")


@pytest.mark.parametrize("words", list(shown_commands()))
def test_the_commands_that_pages_show_exist_with_their_options(words):
    command = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    assert not hasattr(command, "commands"), f"there is no command {words[:1]}"
    # Parsed as Typer would: unknown options and missing arguments raise.
    command.make_context(command.name, list(words))


def test_the_targets_that_pages_show_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for page, block in code_blocks("sh"):
        for target in re.findall(r"^make ([a-z]+)", block, re.MULTILINE):
            assert target in targets, (page, target)
    assert {"demo", "test", "lint", "fix", "bench", "protos", "clean", "help"} <= targets


def test_files_that_pages_name_are_there():
    for page in PAGES:
        named = re.findall(
            r"(?<![\w/])(?:deploy|loadtest|services|protos|cluster|tests|training)/[\w./-]+\w",
            page.read_text(),
        )
        missing = [name for name in named if "." in Path(name).name and not (ROOT / name).exists()]
        assert missing == [], name_of(page)
