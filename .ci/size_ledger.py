"""Prints how many lines the project has and where; fails when a file has more than 400."""

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("tokenizers", "model", "data", "train", "evaluation", "bench", "assets", ".ci", "tests")
MAX_LINES = 400
NUM_LARGEST = 10


def main() -> int:
    """Returns the exit code: 1 when a file is too long."""
    lines = {path.relative_to(ROOT): count_lines(path) for path in python_files()}
    per_part: Counter[str] = Counter()
    for path, count in lines.items():
        per_part[path.parts[0] if len(path.parts) > 1 else "entry points"] += count

    print("lines  part")
    for part, count in per_part.most_common():
        print(f"{count:5}  {part}")
    print(f"{sum(per_part.values()) - per_part['tests']:5}  total without tests")
    print(f"\nlines  largest of {len(lines)} files")
    for path, count in sorted(lines.items(), key=lambda item: -item[1])[:NUM_LARGEST]:
        print(f"{count:5}  {path}")

    too_long = {path: count for path, count in lines.items() if count > MAX_LINES}
    for path, count in too_long.items():
        print(f"{path} must have at most {MAX_LINES} lines, got {count}", file=sys.stderr)
    return 1 if too_long else 0


def python_files() -> list[Path]:
    """Every Python file of the project; virtual environments, runs and build folders are not searched."""
    nested = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return sorted([*ROOT.glob("*.py"), *nested])


def count_lines(path: Path) -> int:
    """Number of lines, blank ones and comments included."""
    return len(path.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    sys.exit(main())
