"""The house: where files lie, their names, and two things done in one place only."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("optim_jax", "models", "experiments")
SOURCE_FOLDERS = (*PACKAGES, "tests", "colabs")
MAX_LINES = 500
NAMES_OF_NOTHING = {"util", "utils", "helper", "helpers", "common", "misc", "shared"}
MESH_MODULE = "experiments/sharding/mesh.py"
FLAGS_MODULE = "experiments/flags.py"


def python_files(root: pathlib.Path, *folders: str) -> Iterator[pathlib.Path]:
    for folder in folders:
        yield from sorted((root / folder).rglob("*.py"))


# Files.


def folders_without_init(root: pathlib.Path) -> list[str]:
    """Folders of a package that `find_packages` would skip."""
    folders = {path.parent for path in python_files(root, *PACKAGES)}
    folders |= {root / package for package in PACKAGES}
    return [
        str(folder.relative_to(root))
        for folder in sorted(folders)
        if not (folder / "__init__.py").is_file()
    ]


def names_of_nothing(root: pathlib.Path) -> list[str]:
    """Files or folders whose name does not say what is in them."""
    found = set()
    for path in python_files(root, *SOURCE_FOLDERS):
        parts = path.relative_to(root).with_suffix("").parts
        for part in parts:
            last_word = part.strip("_").rpartition("_")[2]
            if last_word in NAMES_OF_NOTHING:
                found.add(str(path.relative_to(root)))
    return sorted(found)


def long_files(root: pathlib.Path) -> list[str]:
    counts = {
        str(path.relative_to(root)): len(path.read_text().splitlines())
        for path in python_files(root, *SOURCE_FOLDERS)
    }
    return [f"{path}: {n} lines" for path, n in counts.items() if n > MAX_LINES]


def orphan_tests(root: pathlib.Path) -> list[str]:
    """Test files under tests/<package> whose name leads to no source.

    `tests/models/layers/test_attention.py` tests `models/layers/attention.py`, and so
    does `test_attention_masks.py`. A package may stand for a module, and
    `test_init.py` tests the package's `__init__`.
    """
    orphans = []
    for path in python_files(root, *(f"tests/{package}" for package in PACKAGES)):
        if not path.name.startswith("test_"):
            continue
        source = root / path.parent.relative_to(root / "tests")
        words = path.stem.removeprefix("test_").split("_")
        names = ["_".join(words[:n]) for n in range(1, len(words) + 1)]
        if words[0] == "init" and source.is_dir():
            continue
        if not any(
            (source / f"{name}.py").is_file() or (source / name).is_dir()
            for name in names
        ):
            orphans.append(str(path.relative_to(root)))
    return orphans


# Things done in one place only.


def aliases_of(tree: ast.Module, modules: set[str]) -> set[str]:
    """Local names under which members of `modules`, or the modules, are known."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in modules:
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def mesh_calls(root: pathlib.Path) -> list[str]:
    """Calls that make a device mesh outside the one module that may."""
    found = []
    makers = {"make_mesh", "create_device_mesh", "create_hybrid_device_mesh", "Mesh"}
    for path in python_files(root, *PACKAGES, "colabs"):
        name = str(path.relative_to(root))
        tree = ast.parse(path.read_text())
        from_jax = aliases_of(
            tree, {"jax", "jax.sharding", "jax.experimental.mesh_utils"}
        )
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or name == MESH_MODULE:
                continue
            called = ast.unparse(node.func)
            last = called.rpartition(".")[2]
            is_jax = called in from_jax or called.startswith(
                ("jax.", "sharding.", "mesh_utils.")
            )
            if last in makers and is_jax:
                found.append(f"{name}:{node.lineno}: {called}")
    return found


def is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def is_binary(tree: ast.Module) -> bool:
    return any(is_main_guard(node) for node in tree.body)


def may_read_flags(node: ast.stmt) -> bool:
    """`main`, what is private to the binary, and the guard; not a public `run`."""
    is_function = isinstance(node, ast.FunctionDef)
    return is_main_guard(node) or (
        is_function and (node.name == "main" or node.name.startswith("_"))
    )


def flag_holders(tree: ast.Module) -> set[str]:
    """Names bound to `flags.DEFINE_…`; `holder.value` reads the command line."""
    return {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and "flags.DEFINE_" in ast.unparse(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def flag_reads(root: pathlib.Path) -> list[str]:
    """Uses of absl FLAGS outside `experiments/flags.py` and the binaries' `main`.

    `FLAGS = flags.FLAGS` at module level only names the object.
    """
    found = []
    for path in python_files(root, *PACKAGES):
        name = str(path.relative_to(root))
        tree = ast.parse(path.read_text())
        if name == FLAGS_MODULE:
            continue
        values = {f"{holder}.value" for holder in flag_holders(tree)}
        if path.name == "__main__.py":  # imported by nobody: a binary throughout
            continue
        binary = is_binary(tree)
        for statement in tree.body:
            if binary and may_read_flags(statement):
                continue
            if ast.unparse(statement) == "FLAGS = flags.FLAGS":
                continue
            for node in ast.walk(statement):
                if not isinstance(node, ast.Attribute | ast.Name):
                    continue
                if ast.unparse(node) in {"FLAGS", "flags.FLAGS", *values}:
                    found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    return found


CHECKS = {
    "package folder without __init__.py": folders_without_init,
    "name that says nothing": names_of_nothing,
    f"file above {MAX_LINES} lines": long_files,
    "test without a source of its name": orphan_tests,
    f"mesh made outside {MESH_MODULE}": mesh_calls,
    "FLAGS read outside a binary's main": flag_reads,
}


@pytest.mark.parametrize("rule", CHECKS)
def test_repository_keeps_the_rule(rule):
    found = CHECKS[rule](ROOT)
    assert not found, f"{rule}:\n" + "\n".join(found)


# The checks themselves, on small trees that keep the rules and trees that do not.

GUARD = '\nif __name__ == "__main__":\n    app.run(main)\n'
KEPT = {
    "optim_jax/trees/paths.py": "x = 1\n",
    "optim_jax/commonness.py": "x = 1\n" * MAX_LINES,
    "experiments/sharding/mesh.py": "import jax\nmesh = jax.make_mesh((8,), ('data',))",
    "experiments/training/loop.py": "from experiments.sharding.mesh import make_mesh\n"
    "mesh = make_mesh(4)\ndef f(m: jax.sharding.Mesh): ...\n",
    "experiments/flags.py": "from absl import flags\npreset = flags.FLAGS.preset\n",
    "experiments/train.py": "FLAGS = flags.FLAGS\ndef main(argv):\n    FLAGS.seed\n"
    + GUARD,
    "experiments/reproduce/__main__.py": "def f():\n    return flags.FLAGS.n\n",
    "experiments/step.py": "_N = flags.DEFINE_integer('n', 1, '')\n"
    "def _request():\n    return _N.value, config_from_flags(flags.FLAGS)\n"
    "def main(argv):\n    print(_N.value)\n" + GUARD,
    "tests/optim_jax/trees/test_paths.py": "",
    "tests/optim_jax/trees/test_paths_masks.py": "",
    "tests/optim_jax/test_trees.py": "",
    "tests/optim_jax/test_init.py": "",
    "tests/contract/test_anything.py": "",
}
BROKEN = {
    "package folder without __init__.py": [("optim_jax/trees/deep/a.py", "")],
    "name that says nothing": [
        ("optim_jax/utils.py", ""),
        ("models/common/norms.py", ""),
        ("models/llama_helpers.py", ""),
        ("tests/test_utils.py", ""),
        ("experiments/misc.py", ""),
    ],
    f"file above {MAX_LINES} lines": [("models/llama.py", "x = 1\n" * (MAX_LINES + 1))],
    "test without a source of its name": [
        ("tests/optim_jax/trees/test_matrices.py", ""),
        ("tests/optim_jax/test_paths.py", ""),
    ],
    f"mesh made outside {MESH_MODULE}": [
        ("models/a.py", "import jax\nm = jax.make_mesh((8,), ('data',))\n"),
        ("models/a.py", "from jax import make_mesh\nm = make_mesh((8,), ('d',))\n"),
        ("colabs/a.py", "from jax.sharding import Mesh\nm = Mesh(devices, ('d',))\n"),
        ("experiments/a.py", "import jax\nm = jax.sharding.Mesh(devices, ('d',))\n"),
    ],
    "FLAGS read outside a binary's main": [
        ("experiments/a.py", "def run():\n    return FLAGS.seed\n" + GUARD),
        ("experiments/a.py", "def run():\n    return flags.FLAGS['seed']\n"),
        ("experiments/a.py", "def main():\n    return FLAGS.seed\n"),
        ("experiments/a.py", "def f():\n    return read(flags.FLAGS)\n"),
        (
            "experiments/a.py",
            "_N = flags.DEFINE_integer('n', 1, '')\ndef f():\n    return _N.value\n",
        ),
    ],
}


def write_tree(root: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if name.split("/")[0] in PACKAGES and "deep" not in path.parts:
            (path.parent / "__init__.py").touch()
    for package in PACKAGES:
        (root / package).mkdir(exist_ok=True)
        (root / package / "__init__.py").touch()
    return root


@pytest.mark.parametrize("rule", CHECKS)
def test_kept_rule_passes(tmp_path, rule):
    assert CHECKS[rule](write_tree(tmp_path, KEPT)) == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [(rule, *file) for rule, files in BROKEN.items() for file in files],
)
def test_broken_rule_is_found(tmp_path, rule, path, text):
    found = CHECKS[rule](write_tree(tmp_path, {**KEPT, path: text}))
    folder = str(pathlib.PurePath(path).parent)
    assert found
    assert all(place.startswith((path, folder)) for place in found)
