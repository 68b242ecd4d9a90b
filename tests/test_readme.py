"""Runs every bash and python block of the README, as a reader would, in a folder of links to the checkout.

A block is left out only by a comment directly before it: ``<!-- not run: reason -->``. Some programs are stood in for,
so that no block installs or trains: of training commands only the configuration is read, here in this process (an
unknown flag or preset fails), ``make`` prints what it would do, and ``pip`` checks that the Makefile has the same line.
Python runs here, too, where torch is known already.
"""

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = {"bash", "python", "text", "json", ""}
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)

STAND_INS = {
    "python": """
        case "$*" in
            "-m pip "*) shift 2; exec pip "$@" ;;
            *"-m rebus.train."*) echo "$*" >> trainings; exit ;;
        esac
        exec {python} "$@"
    """,
    "torchrun": """
        while [ $# -gt 0 ] && [ "${{1#rebus.train.}}" = "$1" ]; do shift; done
        echo "-m $*" >> trainings
    """,
    "make": 'exec {make} --no-print-directory -n VENV=new "$@"',
    "pip": 'make test demo | tr -d "\\042" | grep -F -e "-m pip $*"',
}
STAND_INS["python3"] = STAND_INS["python"]
STAND_INS["deepspeed"] = STAND_INS["torchrun"]


@dataclass(frozen=True)
class Block:
    """One fenced block of a Markdown text."""

    line: int
    language: str
    text: str
    reason: str | None


def blocks(markdown):
    """All fenced blocks of a text."""
    for match in FENCE.finditer(markdown):
        line = markdown.count("\n", 0, match.start("language")) + 1
        yield Block(line, match["language"], match["text"], match["reason"])


README = list(blocks((ROOT / "README.md").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a link to everything in the checkout, except what commands write, and the stand-ins in bin/."""
    folder = tmp_path_factory.mktemp("readme")
    for path in ROOT.iterdir():
        if path.name not in {"outputs", "runs", "bin", "new"}:
            (folder / path.name).symlink_to(path)
    (folder / "bin").mkdir()
    for name, script in STAND_INS.items():
        path = folder / "bin" / name
        path.write_text("#!/bin/sh -e\n" + script.format(python=sys.executable, make=shutil.which("make")))
        path.chmod(0o755)
    return folder


def run(block, folder):
    """Runs one block to its end; the test fails with what it printed if it does."""
    (run_bash if block.language == "bash" else run_python)(block, folder)


def run_python(block, folder):
    """Runs a block as a program of its own would: in the folder, and not stopped before its end."""
    with contextlib.chdir(folder):
        try:
            exec(compile(block.text, f"README.md line {block.line}", "exec"), {"__name__": "__main__"})
        except (Exception, SystemExit) as stopped:
            if not (isinstance(stopped, SystemExit) and stopped.code == 0):
                told = "".join(traceback.format_exception(stopped))
                pytest.fail(f"README.md line {block.line}: exit code 1\n{block.text}\n{told}", pytrace=False)


def run_bash(block, folder):
    """Runs a block in a shell of its own, and reads the configurations of its trainings."""
    search_path = [str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment |= {"PATH": os.pathsep.join(search_path), "HF_HUB_OFFLINE": "1"}
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    result = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode != 0:
        printed = f"{result.stdout}\n{result.stderr}"
        pytest.fail(
            f"README.md line {block.line}: exit code {result.returncode}\n{block.text}\n{printed}", pytrace=False
        )
    trainings = folder / "trainings"
    for command in trainings.read_text().splitlines() if trainings.exists() else []:
        check_training(block, command)
    trainings.unlink(missing_ok=True)


def check_training(block, command):
    """Reads the configuration of ``-m rebus.train.STAGE ...``; the test fails if the stage would refuse it."""
    _, module, *flags = command.split()
    try:
        importlib.import_module(module).main([*flags, "--print_config"])
    except (ImportError, SystemExit) as stopped:
        if not (isinstance(stopped, SystemExit) and stopped.code == 0):
            pytest.fail(f"README.md line {block.line}: exit code 1\n{command}\n{stopped}", pytrace=False)


@pytest.mark.parametrize(
    "block",
    [block for block in README if block.language in ("bash", "python") and not block.reason],
    ids=lambda block: f"line-{block.line}",
)
def test_block_runs(block, workspace):
    run(block, workspace)


def test_set_up_by_hand_is_that_of_the_makefile(workspace):
    commands = re.findall(r"^(?:python -m )?pip install .*$", "".join(block.text for block in README), re.MULTILINE)
    run(Block(1, "bash", "\n".join(commands), None), workspace)


def test_readme_shows_commands_and_python_and_marks_its_languages():
    assert {"bash", "python"} <= {block.language for block in README if not block.reason}
    assert {block.language for block in README} <= LANGUAGES


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "make demo"),
        ("bash", 'pip install torch==2.13.0\npip install -e ".[dev]"'),
        ("bash", "python -m pip install -e ."),
        ("bash", "OMP_NUM_THREADS=1 python -c 'import sys' && test -f LICENSE"),
        ("python", "import json\njson.loads('{}')"),
    ],
)
def test_good_blocks_pass(language, text, workspace):
    run(Block(1, language, text, None), workspace)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "make no-such-target"),
        ("bash", "pip install torch==1.0"),
        ("bash", "python no_such_file.py"),
        ("bash", "false\ntrue"),
        ("bash", "false | cat"),
        ("bash", "python -m rebus.train.no_such_stage --preset mini"),
        ("bash", "torchrun --standalone -m rebus.train.no_such_stage"),
        ("python", "import no_such_module"),
        ("python", "import sys\nsys.exit('too early')"),
    ],
)
def test_bad_blocks_fail(language, text, workspace):
    with pytest.raises(pytest.fail.Exception, match=r"README\.md line 1: exit code"):
        run(Block(1, language, text, None), workspace)


def test_blocks_are_found_with_their_mark():
    markdown = "# A\n```bash\na\nb\n```\n\n<!-- not run: takes hours -->\n```python\nc\n```\n```text\nd\n```\n"
    assert list(blocks(markdown)) == [
        Block(2, "bash", "a\nb\n", None),
        Block(8, "python", "c\n", "takes hours"),
        Block(11, "text", "d\n", None),
    ]
