"""The documents: what they name exists, and they speak of the project alone."""

import ast
import importlib
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOP_FOLDERS = "optim_jax|models|experiments|tests|colabs|docs"
SKIPPED_FOLDERS = {"runs", "build", "dist", "__pycache__"}
TEXT_SUFFIXES = {".py", ".md", ".cfg", ".toml", ".ipynb", ".json", ".csv", ""}
MACHINE_PATH = re.compile(r"(?<![\w.}:/-])/(?:root|home|work|Users|opt|mnt)/\w")
HOW_IT_WAS_WRITTEN = re.compile(r"\b(?:agent|session|sandbox|workspace)s?\b", re.I)


def files(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Every text file of the project, by a walk that needs no git."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if name not in SKIPPED_FOLDERS
            and not name.endswith(".egg-info")
            and (name == ".ci" or not name.startswith("."))
        )
        for name in sorted(names):
            path = pathlib.Path(folder, name)
            if path.suffix in TEXT_SUFFIXES and not name.startswith(".coverage"):
                yield path


def documents(root: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in files(root) if path.suffix == ".md"]


def fenced_blocks(text: str, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```(?:{language})\n(.*?)^```", text, re.M | re.S)


def code(text: str) -> str:
    """Fenced blocks and inline spans, one per line."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return "\n".join([*fenced_blocks(text), *re.findall(r"`([^`\n]+)`", outside)])


def anchors(text: str) -> set[str]:
    """Headings as GitHub names them."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+\s+(.*?)\s*$", outside, re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


# The rules: each lists what is wrong in one document.


def dead_links(root: pathlib.Path, path: pathlib.Path) -> list[str]:
    text = path.read_text()
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    links = re.findall(r"\]\(\s*<?([^)\s>]+)", outside)
    links += re.findall(r"(?:src|href)=[\"']([^\"']+)", outside)
    dead = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = path.parent / target if target else path
        if not file.exists():
            dead.append(f"link to {link}")
        elif (
            anchor and file.suffix == ".md" and anchor not in anchors(file.read_text())
        ):
            dead.append(f"no heading for {link}")
    return dead


def missing_files(root: pathlib.Path, path: pathlib.Path) -> list[str]:
    """Paths of the tree named anywhere, and other documents by name."""
    text = path.read_text()
    tree = rf"(?<![\w./-])(?:{TOP_FOLDERS})/[\w./*-]*[\w*/]"
    colab = rf"(?<=/)(?:{TOP_FOLDERS})/[\w./-]+\.ipynb"
    missing = [
        f"file {name}"
        for name in re.findall(tree, text) + re.findall(colab, text)
        if not list(root.glob(name.rstrip("/"))) and not (root / f"{name}.py").exists()
    ]
    for name in re.findall(r"(?<![\w./-])[\w.-]+\.md\b", text):
        if not any((folder / name).is_file() for folder in (root, path.parent)):
            missing.append(f"document {name}")
    return missing


def missing_targets(root: pathlib.Path, path: pathlib.Path) -> list[str]:
    targets = re.findall(r"^([\w-]+)\s*:(?!=)", (root / "Makefile").read_text(), re.M)
    commands = re.findall(
        r"(?:^|[$;&(]\s*)make((?:[ \t]+[\w=./-]+)*)", code(path.read_text()), re.M
    )
    named = [
        word for command in commands for word in command.split() if "=" not in word
    ]
    return [f"make {name}" for name in named if name not in targets]


def missing_modules(root: pathlib.Path, path: pathlib.Path) -> list[str]:
    missing = []
    for name in re.findall(r"python[\w.]* -m ([\w.]+)", code(path.read_text())):
        if name.split(".")[0] not in TOP_FOLDERS.split("|"):
            continue
        module = root.joinpath(*name.split("."))
        runnable = module.with_suffix(".py")
        if not runnable.is_file():
            runnable = module / "__main__.py"
        if not runnable.is_file() or "__main__" not in (
            runnable.read_text() + runnable.name
        ):
            missing.append(f"python -m {name}")
    return missing


def machine_words(root: pathlib.Path, path: pathlib.Path) -> list[str]:
    text = path.read_text()
    found = [f"word {match.group()}" for match in HOW_IT_WAS_WRITTEN.finditer(text)]
    for url in re.findall(r"https?://[^\s)\"'>`]+", text):
        host = urllib.parse.urlsplit(url).hostname or ""
        public = "." in host and not host.endswith((".internal", ".local", ".corp"))
        if not public and host != "localhost":
            found.append(f"host {host}")
    return found


RULES = (dead_links, missing_files, missing_targets, missing_modules, machine_words)


@pytest.mark.parametrize(
    "path", documents(ROOT), ids=lambda path: str(path.relative_to(ROOT))
)
def test_document_names_what_exists(path):
    wrong = [message for rule in RULES for message in rule(ROOT, path)]
    assert not wrong, f"{path.relative_to(ROOT)}: " + "; ".join(wrong)


def machine_paths(root: pathlib.Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{number}: {line.strip()[:100]}"
        for path in files(root)
        for number, line in enumerate(
            path.read_text(errors="replace").splitlines(), start=1
        )
        if MACHINE_PATH.search(line)
    ]


def test_no_path_of_somebodys_machine():
    found = machine_paths(ROOT)
    assert not found, "\n".join(found)


# The README: presets, config fields, names and examples.


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


def preset_names() -> set[str]:
    presets = importlib.import_module("experiments.presets")
    tables = (value for value in vars(presets).values() if isinstance(value, dict))
    return {name for table in tables for name in table if isinstance(name, str)}


def test_readme_names_existing_presets(readme):
    named = set(re.findall(r"--preset[= ]([\w-]+)", readme))
    assert named <= preset_names()


def test_readme_names_existing_config_fields(readme):
    text = importlib.import_module("experiments.config").TrainConfig
    clicks = importlib.import_module("experiments.click_config").ClickTrainConfig
    flags = importlib.import_module("experiments.flags")
    # A command goes on while its lines end in a backslash.
    commands = re.findall(r"python -m experiments.*(?:\\\n.*)*", readme)
    prose = readme
    for command in commands:
        prose = prose.replace(command, "")
        config = clicks if "train_dlrm" in command else text
        named = set(re.findall(r"--config\.([a-z_][\w.]*\w)", command))
        assert named <= set(flags.leaf_fields(config)), command
    named = set(re.findall(r"--config\.([a-z_][\w.]*\w)", prose))
    known = set(flags.leaf_fields(text)) | set(flags.leaf_fields(clicks))
    assert named <= known | {"group.field"}


def test_readme_python_runs(readme):
    """The Python blocks, top to bottom in one namespace, as a reader pastes them."""
    blocks = fenced_blocks(readme, "python")
    assert blocks, "the README shows no Python"
    namespace = {"__name__": "readme"}
    for block in blocks:
        exec(compile(ast.parse(block), "README.md", "exec"), namespace)


def test_changelog_has_a_section_for_this_version():
    optim_jax = importlib.import_module("optim_jax")
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version = re.escape(optim_jax.__version__)
    assert re.search(rf"^## .*\b({version}|unreleased)\b", changelog, re.M | re.I)


# The rules themselves, on a small project.

GOOD = """# A project

See [the list](#two-commands-one-table) and [a file](models/llama.py), or CHANGELOG.md.

## Two commands, one table!

Make sure that `make test` and `make test PYTHON=python3.12` pass.
The models are in `models/*.py`, `models/`.

```
$ make demo
python -m experiments.train --preset=nano
```

![figure](figures/loss.png) <a href="https://arxiv.org/abs/2512.17131">paper</a>
`python -m pytest` [colab](https://colab.research.google.com/x/colabs/gpa.ipynb)
"""
BAD = {
    "link": "[a](models/vit_large.md)",
    "heading": "[a](#nowhere)",
    "image": '<img src="figures/other.png">',
    "file": "look at `models/vit.py`",
    "glob": "`experiments/results/*.csv`",
    "notebook": "https://colab.research.google.com/x/colabs/other.ipynb",
    "document": "as written in plan.md",
    "target": "`make coffee`",
    "second target": "```\nmake test coffee\n```",
    "module": "`python -m experiments.train_all`",
    "module that does not run": "`python -m models.llama`",
    "word": "as found in an earlier session",
    "host": "<http://packages.corp/simple>",
}


@pytest.fixture
def small_project(tmp_path):
    contents = {
        "README.md": GOOD,
        "CHANGELOG.md": "",
        "Makefile": "BIN := bin\ntest: install\n\tpytest\ndemo:\n\tpython\n",
        "models/llama.py": "",
        "experiments/train.py": 'if __name__ == "__main__":\n    pass\n',
        "colabs/gpa.ipynb": "{}",
        "figures/loss.png": "",
    }
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_good_document_passes(small_project):
    readme = small_project / "README.md"
    assert [m for rule in RULES for m in rule(small_project, readme)] == []


@pytest.mark.parametrize("case", BAD)
def test_bad_document_is_found(small_project, case):
    readme = small_project / "README.md"
    readme.write_text(GOOD + BAD[case] + "\n")
    assert [m for rule in RULES for m in rule(small_project, readme)]


@pytest.mark.parametrize("folder", ["root", "home", "Users"])
def test_machine_path_is_found(small_project, folder):
    (small_project / "models/llama.py").write_text(f"x = open('/{folder}/me/a.txt')\n")
    assert len(machine_paths(small_project)) == 1
