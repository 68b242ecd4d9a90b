import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("data", "evaluation", "model", "tokenizers", "train")
ENTRY_POINTS = ("generate.py", "chat.py")

BELOW_MODEL = ("rebus.tokenizers", "rebus.data", "rebus.model")
MAY_IMPORT = {
    "tokenizers": ("rebus.tokenizers",),
    "data": (
        "rebus.data",
        "rebus.tokenizers",
        "rebus.model.grammar",
    ),
    "model": BELOW_MODEL,
    "evaluation": (*BELOW_MODEL, "rebus.evaluation", "rebus.train.recipes"),  # by name, to start their trainings
    "train": (*BELOW_MODEL, "rebus.train", "rebus.evaluation.detector"),
    "generate.py": (*BELOW_MODEL, "rebus.evaluation", "rebus.train"),
    "chat.py": (*BELOW_MODEL, "rebus.evaluation", "rebus.train"),
}
EMPTY_NAMES = {"common", "helper", "helpers", "misc", "util", "utils"}
USED_BY_OTHERS = {"protobuf", "tensorboard"}  # no import of ours, the reason is beside them in pyproject.toml


def sources(part):
    """Python files of a package or an entry point."""
    path = ROOT / part
    return [path] if path.suffix == ".py" and path.exists() else sorted(path.rglob("*.py"))


def imports(path):
    """Full names that a file imports: ``from a import b`` is ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def imported_modules():
    """First parts of all names that the packages and entry points import."""
    files = [path for part in (*PACKAGES, *ENTRY_POINTS) for path in sources(part)]
    return {name.split(".")[0] for path in files for name in imports(path)}


def distributions(requirements):
    """Normalized names of what requirement lines ask for."""
    return {normalized(re.split(r"[\[<>=~! ;]", line)[0]) for line in requirements}


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_one_way(part):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(part)
        for name in imports(path)
        if name.split(".")[0] == "rebus" and not any(f"{name}.".startswith(f"{may}.") for may in MAY_IMPORT[part])
    ]
    assert not wrong


def test_tokenizers_at_the_root_is_hugging_face():
    program = "import tokenizers; tokenizers.Tokenizer; print(tokenizers.__file__)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ROOT / "tokenizers" not in Path(result.stdout.strip()).parents
    assert not (ROOT / "tokenizers" / "__init__.py").exists()


def test_listed_packages_are_the_folders_with_python_files():
    folders = {path.parent.relative_to(ROOT) for part in PACKAGES for path in sources(part)}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == {
        "rebus",
        *(".".join(["rebus", *folder.parts]) for folder in folders),
    }


def test_every_package_but_tokenizers_has_an_init_that_does_no_work():
    folders = {path.parent for part in PACKAGES for path in sources(part)}
    inits = {ROOT / "__init__.py", *(folder / "__init__.py" for folder in folders - {ROOT / "tokenizers"})}
    for path in inits:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) and len(tree.body) == 1, f"{path} must hold one docstring alone"


def test_no_name_hides_a_dependency_or_says_nothing():
    installed = {name for name in packages_distributions() if name != "rebus"}
    taken = EMPTY_NAMES | set(sys.stdlib_module_names) | installed
    files = {path.relative_to(ROOT) for part in PACKAGES for path in sources(part)}
    names = {part.removesuffix(".py") for path in files for part in path.parts[1:]} | set(PACKAGES) - {"tokenizers"}
    assert not names & (taken - {"__init__"})


def test_third_party_imports_are_declared_and_declared_dependencies_imported():
    ours = {"rebus", *PACKAGES} - {"tokenizers"}
    third_party = imported_modules() - ours - sys.stdlib_module_names
    base = distributions(PYPROJECT["project"]["dependencies"])
    extras = PYPROJECT["project"]["optional-dependencies"]
    names = ("cluster", "data", "evaluation", "finetuning")
    extra = set().union(*(distributions(extras[name]) for name in names))
    provided_by = {name: {normalized(each) for each in names} for name, names in packages_distributions().items()}
    assert {name for name in third_party if not provided_by.get(name, set()) & (base | extra)} == set()
    imported = set().union(*(provided_by[name] for name in third_party))
    assert base - USED_BY_OTHERS <= imported


def test_nothing_heavy_is_in_the_base_install():
    base = distributions(PYPROJECT["project"]["dependencies"])
    assert not base & {
        "ray",
        "gradio",
        "fastapi",
        "rapidocr-onnxruntime",
        "onnxruntime",
        "torchvision",
        "opencv-python",
    }


def test_files_are_short_and_the_ledger_counts_them():
    result = subprocess.run([sys.executable, ROOT / ".ci" / "size_ledger.py"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "total without tests" in result.stdout


def test_the_code_is_ascii():
    paths = [path for part in (*PACKAGES, *ENTRY_POINTS) for path in sources(part)]
    assert not [path for path in paths if not path.read_text(encoding="utf-8").isascii()]
