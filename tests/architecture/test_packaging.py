"""What is shipped: the wheel and the sdist, their metadata, and import with few parts.

The wheel carries `optim_jax` alone; `models/` and `experiments/` run from the checkout.
"""

import ast
import configparser
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHIPPED = ("optim_jax", "models", "experiments")
FIRST_PYTHON = "3.11"
CORE = {
    "jax": "0.10",
    "optax": "0.2.8",
    "flax": "0.12",
    "chex": "0",
    "orbax-checkpoint": "0",
    "absl-py": "0",
    "numpy": "2.0",
}
# Import names of what the core brings beside jax, optax, numpy and chex, and of the
# extras. Missing are those that others import themselves: absl (optax and chex),
# array_record (grain) and PIL (matplotlib).
NOT_NEEDED_BY_THE_LIBRARY = ("flax", "orbax", "models", "experiments")
EXPERIMENTS_EXTRA = ("grain", "matplotlib", "sklearn", "tensorboardX", "tqdm")
DATA_EXTRA = ("datasets", "pyarrow", "sentencepiece", "tokenizers")


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    assert config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def requirements(text: str) -> dict[str, Requirement]:
    lines = [line for line in text.splitlines() if line.strip()]
    return {(parsed := Requirement(line)).name: parsed for line in lines}


def version_literals() -> dict[str, str]:
    """Every `__version__ = "…"` at module level in the source, by file."""
    found = {}
    for package in SHIPPED:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Assign | ast.AnnAssign):
                    names = ast.unparse(node).split("=")[0]
                    if "__version__" in names:
                        value = ast.literal_eval(node.value)  # fails on a computation
                        found[str(path.relative_to(ROOT))] = value
    return found


# The files that say what the package is.


def test_version_is_one_literal():
    literals = version_literals()
    assert list(literals) == ["optim_jax/__init__.py"]
    (version,) = literals.values()
    assert str(Version(version)) == version
    # A literal, so `attr:` reads it from the source and a build needs no jax.
    assert setup_cfg()["metadata"]["version"] == "attr: optim_jax.__version__"


def test_core_dependencies_and_their_first_versions():
    core = requirements(setup_cfg()["options"]["install_requires"])
    assert set(core) == set(CORE)
    for name, first in CORE.items():
        (bound,) = core[name].specifier
        assert bound.operator == ">=", f"{name}: an upper bound would lock users out"
        assert Version(bound.version) >= Version(first)


def test_extras_parse_and_dev_holds_them_all():
    section = setup_cfg()["options.extras_require"]
    extras = {name: requirements(section[name]) for name in section}
    assert set(extras) == {"experiments", "data", "dev"}
    assert set(extras["experiments"]) | set(extras["data"]) <= set(extras["dev"])
    for name, found in extras.items():
        for requirement in found.values():
            assert requirement.specifier, f"{name}: {requirement} has no first version"


def test_installed_versions_satisfy_the_bounds():
    config = setup_cfg()
    wanted = requirements(config["options"]["install_requires"])
    wanted |= requirements(config["options.extras_require"]["dev"])
    for name, requirement in wanted.items():
        installed = importlib.metadata.version(name)
        assert requirement.specifier.contains(installed, prereleases=True), name


def test_python_floor_is_said_once_and_the_same_everywhere():
    config = setup_cfg()
    assert config["options"]["python_requires"] == f">={FIRST_PYTHON}"
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tools["ruff"]["target-version"] == "py" + FIRST_PYTHON.replace(".", "")
    assert tools["pyright"]["pythonVersion"] == FIRST_PYTHON
    classifiers = config["metadata"]["classifiers"]
    versions = re.findall(r"Python :: (3\.\d+)", classifiers)
    assert min(versions, key=Version) == FIRST_PYTHON
    assert SpecifierSet(f">={FIRST_PYTHON}").contains(
        ".".join(map(str, sys.version_info[:3]))
    )


def test_pyproject_holds_build_system_and_tools_only():
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text())) == {
        "build-system",
        "tool",
    }


# Wheel and sdist.


def has_build_backend() -> bool:
    try:
        return Version(importlib.metadata.version("setuptools")) >= Version("77")
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Wheel and sdist, built from a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("distributions")
    skipped = shutil.ignore_patterns(
        ".*", "runs", "build", "dist", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, folder / "source", ignore=skipped)
    command = [sys.executable, "-m", "build", "--outdir", str(folder / "dist")]
    if has_build_backend():  # otherwise pip brings it, into an environment of its own
        command += ["--no-isolation"]
    # By default the wheel is built from the sdist: proof that the sdist is complete.
    result = subprocess.run(
        [*command, str(folder / "source")], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def wheel_metadata(wheel: pathlib.Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_holds_the_library_only(distributions):
    with zipfile.ZipFile(distributions["wheel"]) as archive:
        names = archive.namelist()
    roots = {name.split("/")[0] for name in names}
    (info,) = roots - {"optim_jax"}
    assert info.endswith(".dist-info")
    inside = {name for name in names if name.startswith("optim_jax/")}
    source = {
        str(path.relative_to(ROOT)) for path in (ROOT / "optim_jax").rglob("*.py")
    }
    assert inside == source | {"optim_jax/py.typed"}
    assert any(name.endswith("/LICENSE") for name in names if name.startswith(info))


def test_wheel_metadata(distributions):
    metadata = wheel_metadata(distributions["wheel"])
    assert metadata["Name"] == "optim-jax"
    assert metadata["Version"] == version_literals()["optim_jax/__init__.py"]
    assert metadata["Requires-Python"] == f">={FIRST_PYTHON}"
    licence = metadata["License-Expression"] or metadata["License"]
    assert licence == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {"experiments", "data", "dev"}
    parsed = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert {r.name for r in parsed if r.marker is None} == set(CORE)
    if (ROOT / "README.md").is_file():
        assert (ROOT / "README.md").read_text().strip() in str(metadata.get_payload())


def test_sdist_holds_what_it_takes_to_build(distributions):
    with tarfile.open(distributions["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "setup.cfg",
        "pyproject.toml",
        "LICENSE",
        "optim_jax/py.typed",
        "optim_jax/__init__.py",
    } <= names
    assert not any(name.startswith(("models/", "experiments/")) for name in names)


# Import with few parts.


def run_python(
    code: str, python: str | os.PathLike = sys.executable, **options
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(python), "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def import_without(blocked: tuple[str, ...], statement: str):
    """Runs `statement` in a fresh interpreter where `blocked` cannot be imported."""
    code = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
{statement}
print("imported")
"""
    return run_python(code, cwd=ROOT)


def test_blocked_import_fails():
    result = import_without(("tomllib",), "import tomllib")
    assert result.returncode != 0
    assert "blocked: tomllib" in result.stderr


def test_library_imports_with_jax_optax_numpy_chex_only():
    blocked = (*NOT_NEEDED_BY_THE_LIBRARY, *EXPERIMENTS_EXTRA, *DATA_EXTRA)
    result = import_without(blocked, "import optim_jax\noptim_jax.__version__")
    assert result.stdout == "imported\n", result.stderr


def test_library_import_starts_no_device():
    # A library that touches a device at import breaks jax.distributed.initialize.
    result = run_python(
        """
        import optim_jax
        from jax._src import xla_bridge
        assert not xla_bridge.backends_are_initialized()
        """,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr


def test_models_import_with_the_core_only():
    result = import_without(
        ("experiments", *EXPERIMENTS_EXTRA, *DATA_EXTRA),
        """
import importlib, pkgutil, models
for module in pkgutil.walk_packages(models.__path__, "models."):
    importlib.import_module(module.name)
""",
    )
    assert result.stdout == "imported\n", result.stderr


def test_experiments_import_without_the_data_extra():
    # Every module, the binaries included: a file format is imported where it is read.
    result = import_without(
        DATA_EXTRA,
        """
import importlib, pkgutil, experiments
from absl import flags
for module in pkgutil.walk_packages(experiments.__path__, "experiments."):
    before = set(flags.FLAGS)
    importlib.import_module(module.name)
    for name in set(flags.FLAGS) - before:  # the next binary may define it as well
        delattr(flags.FLAGS, name)
""",
    )
    assert result.stdout == "imported\n", result.stderr


@pytest.mark.slow
def test_wheel_installs_into_an_empty_environment(distributions, tmp_path):
    """The core alone is enough, and the names of the checkout stay out of it."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    installed = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", str(distributions["wheel"])],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert installed.returncode == 0, installed.stderr[-4000:]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = """
        import importlib.util
        import jax.numpy as jnp
        import optim_jax
        assert "site-packages" in optim_jax.__file__, optim_jax.__file__
        for name in ("models", "experiments", "tests", "grain", "sklearn"):
            assert importlib.util.find_spec(name) is None, name
        print(optim_jax.__version__, jnp.zeros(3).sum())
        """
    result = run_python(code, python, cwd=tmp_path, env=environment)
    version = version_literals()["optim_jax/__init__.py"]
    assert result.stdout.split() == [version, "0.0"], result.stderr
