"""A chat with a saved model, in which pictures are given as files and drawn into files."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rebus.data.rendering import joined_parts
from rebus.data.samples import Message, Picture
from rebus.model.drawing_files import record, write_drawing, write_whole
from rebus.model.rebus import Rebus
from rebus.model.writing import Preview


class Conversation:
    """What was said so far; each thing said draws from a seed of its own."""

    def __init__(self, rebus: Rebus, folder: Path, seed: int) -> None:
        """Takes the model, where its pictures go, and the seed of the first thing said."""
        self.rebus = rebus
        self.folder = folder
        self.seed = seed
        self.newest_picture: Path | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets everything said and shown."""
        self._messages: list[Message] = []
        self._transcript: list[dict[str, Any]] = []
        self._shown: list[tuple[Picture, Path]] = []

    def show(self, path: Path) -> None:
        """Gives a picture along with what is said next.

        Raises:
            ValueError: if the file is no picture.
        """
        self._shown.append((self.rebus.look(path), path))

    def say(self, text: str) -> Iterator[str | Path]:
        """Yields what the model says as it comes: pieces of text, and the files into which it drew.

        Raises:
            ValueError: if the chat has become too long; nothing is added to it then.
        """
        start = time.perf_counter()
        said = Message("user", (*(picture for picture, _ in self._shown), text))
        parts: list[str | Picture] = []
        files: list[Path] = []
        for part in self.rebus.stream([*self._messages, said], seed=self.seed):
            assert not isinstance(part, Preview)  # none is asked for
            parts.append(part)
            if isinstance(part, Picture):
                files.append(self._draw(part, text, start))
            yield files[-1] if isinstance(part, Picture) else part
        reply = Message("assistant", joined_parts(parts))
        names = iter(files)
        answered = [{"picture": str(next(names))} if isinstance(part, Picture) else part for part in reply.parts]
        shown = [{"picture": str(path)} for _, path in self._shown]
        self._messages += [said, reply]
        self._transcript += [{"role": "user", "parts": [*shown, text]}, {"role": "assistant", "parts": answered}]
        self._shown = []
        self.seed += 1

    def save(self, path: Path) -> None:
        """Writes the chat to a ``.json`` file, or the newest drawn picture to a ``.png`` file.

        Raises:
            ValueError: if the name ends otherwise, or no picture was drawn.
        """
        if path.suffix == ".json":
            write_whole({path: (json.dumps(self._transcript, indent=2) + "\n").encode()})
        elif path.suffix != ".png":
            raise ValueError(f"file must end in .json (the chat) or .png (the newest drawn picture), got {path}")
        elif self.newest_picture is None:
            raise ValueError(f"{path} must be for a drawn picture, got none drawn yet")
        else:
            write_whole({path: self.newest_picture.read_bytes()})

    def _draw(self, picture: Picture, prompt: str, start: float) -> Path:
        """Paints codes into a file of the first number that is free."""
        assert picture.tokens is not None  # the language model writes codes
        drawing = self.rebus.paint(picture.tokens, seed=self.seed)[0]
        number = 1
        while (path := self.folder / f"{number:03d}.png").exists():
            number += 1
        asked = {"file": str(path), "prompt": prompt}
        write_drawing(path, drawing.image, record(self.rebus, drawing, asked, time.perf_counter() - start))
        self.newest_picture = path
        return path
