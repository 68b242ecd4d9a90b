"""C++ beside the Python: built for this very processor when it is first needed, and kept in the user's cache.

Where there is no compiler the callers go without, so nothing but speed depends on one.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

FLAGS = (
    "-std=c++17 -O3 -march=native -fPIC -fno-semantic-interposition -fopenmp "
    # All that -ffast-math allows but for the assumption that no number is infinite, and without its switch of the whole
    # process to numbers that underflow at once.
    "-fassociative-math -freciprocal-math -fno-signed-zeros -fno-trapping-math -fno-math-errno "
    "-fno-strict-aliasing"  # words are looked at as the numbers in them
).split()

_log = logging.getLogger(__name__)


@cache
def native_library(source: Path) -> ctypes.CDLL | None:
    """Returns a C++ file, compiled, or none (with one line in the log) where that cannot be.

    The headers beside it belong to it. The compiler is that of the environment variable ``CXX``, else ``g++`` or
    ``c++``. OpenMP is not linked but found in the process, where torch has brought its own.
    """
    try:
        library = _cache_folder() / f"{source.stem}-{_fingerprint(source)}.so"
        if not library.is_file():
            _compile(source, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        _log.info("%s is not compiled, so torch does its work: %s", source.name, error)
        return None


def _compiler() -> list[str]:
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    found = next(filter(shutil.which, ("g++", "c++")), None)
    if found is None:
        raise RuntimeError("no C++ compiler was found")
    return [found]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rebus"


def _fingerprint(source: Path) -> str:
    """Returns a hash of all that the compiled file depends on: a home may be shared by unlike machines."""
    processor = platform.machine() + platform.processor()
    if (described := Path("/proc/cpuinfo")).is_file():
        lines = described.read_text().splitlines()
        processor += "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    texts = (file.read_text() for file in sorted(source.parent.iterdir()) if file.suffix in (".cpp", ".hpp"))
    parts = (*texts, source.name, processor, *_compiler(), *FLAGS)
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _compile(source: Path, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        compiled, made = Path(folder) / "compiled.o", Path(folder) / library.name
        _run([*_compiler(), *FLAGS, "-c", str(source), "-o", str(compiled)])
        _run([*_compiler(), "-shared", str(compiled), "-o", str(made)])
        made.replace(library)  # at once, so that a second process never opens half a file


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[:500]}")
