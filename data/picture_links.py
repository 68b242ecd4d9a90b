"""Pictures as records name them: by path, by URL, as base64, or as the bytes of a file."""

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.data.bad_data import BadRecord
from rebus.data.image_files import MAX_BYTES, decode_picture, read_picture
from rebus.data.remote_pictures import RemotePictures
from rebus.data.samples import Picture

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_REMOTE_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PictureLinks:
    """Opens what records name, and nothing else that lies on the machine."""

    size_px: int
    """Width and height that pictures are fitted to."""
    root: Path | None = None
    """Folder that paths start from and stay in; records with paths are bad ones without it."""
    remote: RemotePictures | None = None
    """Fetches URLs; none are fetched by default."""

    def __post_init__(self) -> None:
        if self.size_px < 1:
            raise ValueError(f"size_px must be at least 1, got {self.size_px}")
        if self.root is not None and not self.root.is_dir():
            raise ValueError(f"root must be a folder, got {self.root}")

    def open(self, link: object) -> Picture:
        """Returns the picture that a path, a URL, base64 after ``data:image/...;base64,`` or bytes stand for.

        A struct of ``bytes`` and ``path``, as Hugging Face writes it, is taken for its bytes, or else for its path.

        Raises:
            BadRecord: if there is no such picture, it is broken or too large, or may not be looked for.
        """
        if isinstance(link, dict):
            link = _of_struct(link)
        if isinstance(link, bytes):
            return Picture(decode_picture(link, "the picture", self.size_px))
        if not isinstance(link, str) or not link:
            raise BadRecord("schema", f"a picture must be a path, a URL or bytes, got {type(link).__name__}")
        check_unicode(link, "the name of a picture")
        if start := _DATA_URL.match(link):
            return Picture(decode_picture(from_base64(link[start.end() :]), "the picture", self.size_px))
        if _REMOTE_URL.match(link):
            return Picture(decode_picture(self._fetched(link), link[:200], self.size_px))
        try:
            return Picture(read_picture(self._inside(link), self.size_px))
        except OSError as error:
            raise BadRecord("missing", f"{link[:200]} must be a file that can be read, got none") from error

    def _fetched(self, url: str) -> bytes:
        if self.remote is None:
            raise BadRecord("remote", f"a picture must not be remote unless that is allowed, got {url[:200]}")
        return self.remote.fetch(url)

    def _inside(self, link: str) -> Path:
        """Returns the path of a file within the root; links of the file system are followed before that is judged."""
        if self.root is None:
            raise BadRecord("missing", f"a picture given by its path must have a root to start from, got {link[:200]}")
        if "\0" in link:
            raise BadRecord("schema", "the path of a picture must not hold a zero byte, got one")
        root = self.root.resolve()
        path = (root / link).resolve()
        if not path.is_relative_to(root):
            raise BadRecord("missing", f"the path of a picture must stay within the root, got {link[:200]}")
        return path


def check_unicode(text: str, name: str) -> None:
    """Raises unless a text is one that files and tokenizers can hold: JSON may escape halves of characters.

    Raises:
        BadRecord: if there is such a half in it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord("schema", f"{name} must be Unicode, got half a character at {error.start}") from error


def from_base64(text: str) -> bytes:
    """Returns the bytes of a picture's file.

    Raises:
        BadRecord: if the text is no base64, or longer than any picture may be.
    """
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise BadRecord("too_large", f"a picture must have at most {MAX_BYTES:,} bytes, got {len(text) * 3 // 4:,}")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadRecord("broken_picture", f"a picture must be right base64, got something else ({error})") from error


def _of_struct(link: dict[str, Any]) -> object:
    if not set(link) <= {"bytes", "path"}:
        raise BadRecord("schema", f"a picture must be a struct of bytes and path, got one of {sorted(link)[:10]}")
    return link.get("bytes") or link.get("path")
