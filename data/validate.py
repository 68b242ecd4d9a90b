"""Reads a collection as one of the field's formats and says, record by record, what is wrong with it.

python -m rebus.data.validate conversations.json --schema llava --pictures images/
python -m rebus.data.validate records.jsonl              (tries every format and says which one fits)
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import get_args

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rebus.data.bad_data import BadDataConfig, BadDataLog, BadRecord, Position
from rebus.data.samples import Sample, pictures
from rebus.data.source_arguments import add_source_arguments, source_of
from rebus.data.sources import SchemaName, Source

NUM_TRIED = 100
"""Records by which a format is guessed."""
_SIZE_PX = 32
"""Pictures are decoded whole, but need not be kept."""


def problems(source: Source, counts: BadDataLog) -> Iterator[tuple[Position, BadRecord | Sample]]:
    """Yields, for each record, its place and what is wrong with it, or the sample that it makes."""
    for record, position in source.records.read():
        try:
            sample = source.sample(record)
        except BadRecord as error:
            counts.skip(error, position)
            yield position, error
        else:
            counts.good()
            yield position, sample


def fitting_schemas(source: Source) -> dict[SchemaName, tuple[int, str]]:
    """Returns how many of the first records fit each format, and what is wrong with the first that does not."""
    found: dict[SchemaName, tuple[int, str]] = {}
    for schema in get_args(SchemaName):
        results = [result for _, result in islice(problems(replace(source, schema=schema), _counts()), NUM_TRIED)]
        errors = [result for result in results if isinstance(result, BadRecord)]
        found[schema] = len(results) - len(errors), str(errors[0]) if errors else ""
    return found


def _counts() -> BadDataLog:
    return BadDataConfig(max_rate=1.0).build()


def _validate(source: Source, as_json: bool, limit: int | None) -> int:
    console, counts = Console(), _counts()
    num_pictures = num_turns = 0
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("records", total=limit)
        for position, result in islice(problems(source, counts), limit):
            progress.advance(task)
            if isinstance(result, BadRecord):
                line = {"source": position.file, "index": position.index, "reason": result.reason}
                print(json.dumps({**line, "message": str(result)}) if as_json else _line(position, result))
            else:
                num_pictures += len(pictures(result))
                num_turns += len(result.messages)
    if as_json:
        numbers = {"good": counts.num_good, "bad": dict(counts.bad)}
        print(json.dumps({**numbers, "messages": num_turns, "pictures": num_pictures}))
    else:
        console.print(f"bad records: {counts}; good ones hold {num_turns} messages and {num_pictures} pictures")
    return 1 if counts.bad or not counts.num_good else 0


def _line(position: Position, error: BadRecord) -> str:
    return f"{position.file}:{position.index}: {error.reason}: {error}"


def _guess(source: Source) -> int:
    found = fitting_schemas(source)
    table = Table("schema", f"fits of the first {NUM_TRIED}", "what is wrong with the first that does not")
    for schema, (number, message) in sorted(found.items(), key=lambda one: -one[1][0]):
        table.add_row(schema, str(number), message)
    Console().print(table)
    return 0 if any(number for number, _ in found.values()) else 1


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if all records are good, 1 if one is not, and 2 if the command line makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_arguments(parser, needs_schema=False)
    parser.add_argument("--limit", type=int, help="records to read; all by default")
    parser.add_argument("--json", action="store_true", help="print an object for each bad record, and one of counts")
    chosen = parser.parse_args(argv)
    if chosen.limit is not None and chosen.limit < 1:
        parser.error(f"--limit must be at least 1, got {chosen.limit}")
    try:
        source = source_of(chosen, _SIZE_PX)
        return _validate(source, chosen.json, chosen.limit) if chosen.schema else _guess(source)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
