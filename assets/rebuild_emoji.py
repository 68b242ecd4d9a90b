"""Rebuilds ``assets/emoji.zip`` from the npm packages that it was made of.

    npm install --prefix packages @lobehub/fluent-emoji-3d@1.1.0 @iconify-json/fluent-emoji-flat@1.2.6
    npm install --prefix packages @iconify-json/noto@1.2.9 emojibase-data@17.0.0 emojilib@4.0.3
    pip install cairosvg
    python assets/rebuild_emoji.py --packages packages/node_modules --output emoji.zip

With these versions and the same WebP and cairo libraries, every file comes out bit for bit as in the pack that ships.
``npm pack`` and ``tar`` serve as well: unpack every package into the folder that its name says.
"""

import argparse
import io
import json
import zipfile
from pathlib import Path

from PIL import Image

SIZE_PX = 128
WEBP_QUALITY = 80
COMPONENT_GROUP = 2
"""Skin tones and hair, which are no pictures of their own."""
LEFT_OUT = frozenset(("1f9d1-200d-1f4bb", "1f468-200d-1f4bb", "1f469-200d-1f4bb", "1f3ae", "1f4ce", "1f587"))
"""Technologists, video game and paperclips: they show or resemble trademarks. National flags are in no flat style."""


def concept_id(code_points: str) -> str:
    """Returns code points without leading zeros and variation selectors: ``23-20e3`` for ``0023-FE0F-20E3``."""
    return "-".join(part.lstrip("0") for part in code_points.lower().split("-") if part != "fe0f")


def list_concepts(emojibase: list[dict], groups: dict, keywords: dict[str, list[str]], drawn: set[str]) -> list[dict]:
    """Returns the entries of ``meta.json``: emoji in their usual order, as far as all styles have drawn them."""
    concepts = []
    for entry in sorted(emojibase, key=lambda entry: entry.get("order", 0)):
        identity = concept_id(entry["hexcode"])
        if entry.get("group", COMPONENT_GROUP) != COMPONENT_GROUP and identity in drawn - LEFT_OUT:
            concepts.append(
                {
                    "id": identity,
                    "emoji": entry["emoji"],
                    "label": entry["label"],
                    "tags": entry["tags"],
                    "keywords": keywords.get(entry["emoji"], []),
                    "group": groups["groups"][str(entry["group"])],
                    "subgroup": groups["subgroups"][str(entry["subgroup"])],
                }
            )
    return concepts


def svg_of(icons: dict, name: str) -> str:
    """Returns one picture of an Iconify set as a whole SVG document."""
    icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
    width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    )


def webp(picture: Image.Image, method: int) -> bytes:
    """Returns a picture in the size and format of the pack; ``method`` 0 to 6 trades time for file size."""
    small = picture.convert("RGBA")
    if small.size != (SIZE_PX, SIZE_PX):
        small = small.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=WEBP_QUALITY, method=method)
    return buffer.getvalue()


def rebuild(packages: Path, output: Path) -> int:
    """Writes the pack from unpacked npm packages and returns how many concepts it holds."""
    import cairosvg  # needed by this script alone, so the project does not depend on it

    solid = {concept_id(path.stem): path for path in (packages / "@lobehub/fluent-emoji-3d/assets").glob("*.webp")}
    icons, names = {}, {}
    for folder, package in (("flat", "@iconify-json/fluent-emoji-flat"), ("noto", "@iconify-json/noto")):
        icons[folder] = _read_json(packages / package / "icons.json")
        characters = _read_json(packages / package / "chars.json")
        names[folder] = {concept_id(code_points): name for code_points, name in characters.items()}
    concepts = list_concepts(
        _read_json(packages / "emojibase-data/en/data.json"),
        _read_json(packages / "emojibase-data/meta/groups.json"),
        _read_json(packages / "emojilib/dist/emoji-en-US.json"),
        set(solid) & set(names["flat"]) & set(names["noto"]),
    )
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for identity in sorted(concept["id"] for concept in concepts):
            with Image.open(solid[identity]) as picture:
                archive.writestr(f"fluent3d/{identity}.webp", webp(picture, method=6))
            for folder in ("flat", "noto"):
                svg = svg_of(icons[folder], names[folder][identity]).encode()
                png = cairosvg.svg2png(svg, output_width=SIZE_PX, output_height=SIZE_PX)
                with Image.open(io.BytesIO(png)) as picture:
                    archive.writestr(f"{folder}/{identity}.webp", webp(picture, method=4))
        archive.writestr("meta.json", json.dumps(concepts, ensure_ascii=False, indent=0))
    return len(concepts)


def _read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Rebuilds the pack that the command line asks for."""
    parser = argparse.ArgumentParser(description="Rebuilds the emoji pack from npm packages; see the top of this file.")
    parser.add_argument("--packages", type=Path, required=True, help="folder with the unpacked packages (node_modules)")
    parser.add_argument("--output", type=Path, default=Path("emoji.zip"), help="pack to write (default: %(default)s)")
    arguments = parser.parse_args()
    print(f"wrote {rebuild(arguments.packages, arguments.output)} concepts to {arguments.output}")


if __name__ == "__main__":
    main()
