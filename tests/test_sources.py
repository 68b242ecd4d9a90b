import io
import json
import sys
import tarfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rebus.data import records, validate
from rebus.data.bad_data import BadDataConfig, BadRecord, Position, TooManyBadRecords
from rebus.data.hub_records import HubRecords
from rebus.data.image_files import MAX_PIXELS
from rebus.data.picture_links import PictureLinks
from rebus.data.records import FolderRecords, JsonRecords, ParquetRecords, TarRecords
from rebus.data.remote_pictures import RemotePictures
from rebus.data.schemas import SCHEMAS
from rebus.data.sources import Source, records_of

COLORS = {"red.png": (255, 0, 0), "green.png": (0, 255, 0), "deep/blue.png": (0, 0, 255)}
ANY = BadDataConfig(max_rate=1.0)


def encoded(color, form="PNG", size=(9, 7)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deep").mkdir()
    for name, color in COLORS.items():
        (folder / name).write_bytes(encoded(color))
    (folder / "torn.jpg").write_bytes(encoded((9, 9, 9), "JPEG", (300, 300))[:900])
    (folder / "words.png").write_text("no picture")
    (folder.parent / "secret.png").write_bytes(encoded((1, 1, 1)))
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    return folder


def links(root):
    return PictureLinks(size_px=4, root=root)


def outline(sample):
    """Returns who says what, a picture by its color."""
    names = {color: name for name, color in COLORS.items()}

    def said(part):
        if isinstance(part, str):
            return part
        assert part.pixels is not None
        return names[tuple(part.pixels[0, 0].tolist())]

    return [(message.role, *map(said, message.parts)) for message in sample.messages]


@pytest.mark.parametrize(
    ("link", "reason", "message"),
    [
        (5, "schema", "path, a URL or bytes, got int"),
        ({"url": "a"}, "schema", "struct of bytes and path"),
        ("no.png", "missing", "no such file"),
        ("deep", "missing", "got a folder"),
        ("x" * 5000, "missing", "file that can be read"),
        ("a\0b", "schema", "zero byte"),
        ("a\ud800b", "schema", "must be Unicode, got half a character at 1"),
        ("../secret.png", "missing", "must stay within the root"),
        ("link.png", "missing", "must stay within the root"),
        ("/etc/passwd", "missing", "must stay within the root"),
        ("torn.jpg", "broken_picture", "damaged or truncated"),
        ("words.png", "broken_picture", "something else"),
        ("http://169.254.169.254/a.png", "remote", "must not be remote"),
        ("FILE:///etc/passwd", "remote", "must not be remote"),
        ("data:image/png;base64,@@", "broken_picture", "right base64"),
    ],
)
def test_what_is_wrong_with_a_picture_is_said(link, reason, message, root):
    with pytest.raises(BadRecord, match=message) as caught:
        links(root).open(link)
    assert caught.value.reason == reason


def written(folder, root):
    """Writes the same three captioned pictures in each format of files."""
    pairs = [{"image": name, "text": f"number {index}"} for index, name in enumerate(sorted(COLORS))]
    lines = [json.dumps(pair) for pair in pairs]
    (folder / "a.jsonl").write_text("\n\n".join(lines) + "\n")
    (folder / "a.json").write_text(f"[{','.join(lines)}]")
    with tarfile.open(folder / "a.tar", "w") as archive:
        for index, pair in enumerate(pairs):
            members = {"png": (root / pair["image"]).read_bytes(), "txt": pair["text"].encode(), "pkl": b"never read"}
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"part/{index:03}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    for pair in pairs:
        picture = folder / "folder" / pair["image"]
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes((root / pair["image"]).read_bytes())
        picture.with_suffix(".txt").write_text(pair["text"])
    return {
        "jsonl": JsonRecords(folder / "a.jsonl"),
        "json": JsonRecords(folder / "a.json"),
        "tar": TarRecords(folder / "a.tar"),
        "folder": FolderRecords(folder / "folder"),
    }


def written_parquet(folder, root):
    """Writes them as Parquet, pictures as Hugging Face does."""
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"image": {"bytes": (root / name).read_bytes(), "path": None}, "text": f"number {index}"}
        for index, name in enumerate(sorted(COLORS))
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet", row_group_size=2)
    return ParquetRecords(folder / "a.parquet", batch_size=1)


@pytest.mark.parametrize("form", ["jsonl", "json", "tar", "folder", pytest.param("parquet", marks=pytest.mark.slow)])
def test_all_formats_of_files_hold_the_same_and_go_on_where_asked(form, root, tmp_path):
    collection = written_parquet(tmp_path, root) if form == "parquet" else written(tmp_path, root)[form]
    inside = tmp_path / "folder" if form == "folder" else root
    source = Source(records=collection, schema="captions", links=links(inside))
    found = list(source.samples(ANY.build()))
    expected = [[("document", f"number {index}", name)] for index, name in enumerate(sorted(COLORS))]
    assert [outline(sample) for sample, _ in found] == expected
    assert [position.index for _, position in found] == [0, 1, 2]
    assert next(records_of(collection.path).read())[1] == found[0][1]
    for start in range(5):
        rest = list(source.samples(ANY.build(), start))
        assert [outline(sample) for sample, _ in rest] == expected[start:]
        assert [position for _, position in rest] == [position for _, position in found][start:]


@pytest.mark.slow  # the import alone takes seconds
@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_of_hugging_face_is_read(streaming, root, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    only = tmp_path / "only"
    only.mkdir()
    written_parquet(only, root)
    source = Source(records=HubRecords(str(only), streaming=streaming), schema="captions", links=links(root))
    found = [(outline(sample)[0][1], position.index) for sample, position in source.samples(ANY.build(), 1)]
    assert found == [("number 1", 1), ("number 2", 2)]


@pytest.fixture
def hub(root, tmp_path, monkeypatch):
    """A folder of datasets: one of two subsets, one split and two splits as ``save_to_disk`` writes them."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name in ("bright", "dark"):
        (tmp_path / "subsets" / name).mkdir(parents=True)
        written_parquet(tmp_path / "subsets" / name, root)
    subsets = [{"config_name": name, "data_files": f"{name}/*.parquet"} for name in ("bright", "dark")]
    (tmp_path / "subsets" / "README.md").write_text(f"---\nconfigs: {json.dumps(subsets)}\n---\n")
    pictures = {"image": [str(root / name) for name in COLORS], "text": list(COLORS)}
    rows = datasets.Dataset.from_dict(pictures).cast_column("image", datasets.Image())
    rows.save_to_disk(tmp_path / "rows")
    datasets.DatasetDict(train=rows.select(range(1)), test=rows).save_to_disk(tmp_path / "splits")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        (["subsets", "--subset", "dark"], 3),
        (["subsets", "--subset", "dark", "--streaming"], 3),
        (["rows"], 3),
        (["splits"], 1),
        (["splits", "--split", "test"], 3),
    ],
)
def test_the_command_reads_datasets_of_hugging_face(arguments, number, hub, capsys):
    assert validate.main([f"hf:{hub / arguments[0]}", *arguments[1:], "--schema", "captions", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"good": number, "bad": {}, "messages": number, "pictures": number}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("hf:{}/subsets", [], "Config name is missing"),
        ("hf:{}/subsets", ["--subset", "dull"], "'dull' not found. Available: ['bright', 'dark']"),
        ("hf:{}/subsets", ["--subset", "dark", "--split", "test"], 'Unknown split "test"'),
        ("hf:{}/splits", ["--split", "dev"], "split must be one of train, test, got dev"),
        ("hf:{}/splits", ["--streaming"], "must be read without subset and streaming"),
        ("hf:{}/none", [], "must be a dataset that can be read, got none: Couldn't find any data file"),
        ("hf:owner/name", [], "Couldn't reach 'owner/name' on the Hub (OfflineModeIsEnabled)"),
        ("{}/subsets", ["--split", "test"], "--split must come with a dataset hf:..., got"),
    ],
)
def test_what_is_wrong_with_a_dataset_of_hugging_face_is_said(path, arguments, message, hub, capsys):
    with pytest.raises(SystemExit, match="2"):
        validate.main([path.format(hub), *arguments, "--schema", "captions"])
    assert message in capsys.readouterr().err


def test_hugging_face_datasets_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if they were not installed
    with pytest.raises(ValueError, match=r"must have datasets: pip install 'rebus-lm\[data\]'"):
        list(HubRecords("owner/name").read())


def test_several_files_of_one_record_are_known_by_their_names(root, tmp_path):
    said = [{"role": "user", "content": "<image>Make it blue."}, {"role": "assistant", "content": "<image>"}]
    record = {"messages": said, "images": ["7.before.png", "7.after.png"]}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in {
            "7.before.png": encoded(COLORS["red.png"]),
            "7.after.png": encoded(COLORS["deep/blue.png"]),
            "7.json": json.dumps(record).encode(),
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = Source(records=TarRecords(tmp_path / "a.tar"), schema="swift", links=PictureLinks(size_px=4))
    assert [outline(sample) for sample, _ in source.samples(ANY.build())] == [
        [("user", "red.png", "Make it blue."), ("assistant", "deep/blue.png")]
    ]


def test_bad_records_are_skipped_counted_and_kept_apart(root, tmp_path):
    good = json.dumps({"image": "red.png", "text": "a red one"})
    lines = [good, "{", "[]", good, json.dumps({"text": "a"}), '{"image": "torn.jpg", "text": "a"}', good]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = Source(records=JsonRecords(tmp_path / "a.jsonl"), schema="captions", links=links(root))
    log = replace(ANY, quarantine=tmp_path / "bad" / "quarantine.jsonl").build()
    assert [position.index for _, position in source.samples(log)] == [0, 3, 6]
    log.close()
    assert log.num_good == 3 and log.bad == {"not_json": 2, "schema": 1, "broken_picture": 1}
    assert str(log) == "4 of 7 (2 not_json, 1 schema, 1 broken_picture)"
    kept = [json.loads(line) for line in (tmp_path / "bad" / "quarantine.jsonl").read_text().splitlines()]
    assert [(one["index"], one["reason"]) for one in kept] == [
        *((1, "not_json"), (2, "not_json"), (4, "schema"), (5, "broken_picture")),
    ]
    assert {one["source"] for one in kept} == {str(tmp_path / "a.jsonl")}
    assert "0x" not in (tmp_path / "bad" / "quarantine.jsonl").read_text()  # Pillow's words hold addresses


def test_too_many_bad_records_end_the_run():
    log = BadDataConfig(max_rate=0.1, min_records=20).build()
    error, position = BadRecord("schema", "no image"), Position("a.jsonl", 7)
    for _ in range(18):
        log.good()
    log.skip(error, position)
    with pytest.raises(TooManyBadRecords, match=r"at most 10.0% of all, got 3 of 21.*a.jsonl, record 7: no image"):
        for _ in range(2):
            log.skip(error, position)


def test_errors_of_the_program_stop_at_once(root, monkeypatch):
    def broken(record, open_picture):
        raise KeyError("a slip of ours")

    monkeypatch.setitem(SCHEMAS, "captions", broken)
    source = Source(records=FolderRecords(root), schema="captions", links=links(root))
    monkeypatch.setattr(FolderRecords, "_record", lambda self, picture: {"image": "red.png"})
    with pytest.raises(KeyError, match="a slip of ours"):
        list(source.samples(ANY.build()))


def test_what_lies_far_over_the_caps_is_refused_before_it_is_read(root, tmp_path, monkeypatch):
    header = encoded((0, 0, 0))
    ihdr = b"IHDR" + (2**14).to_bytes(4, "big") * 2 + header[24:29]  # 2^28 pixels
    wide = header[:12] + ihdr + zlib.crc32(ihdr).to_bytes(4, "big") + header[33:]
    with pytest.raises(BadRecord, match=f"at most {MAX_PIXELS:,} pixels") as caught:
        links(root).open(wide)
    assert caught.value.reason == "too_large"
    monkeypatch.setattr(records, "MAX_MEMBER_BYTES", 10)
    tar = written(tmp_path, root)["tar"]
    log = ANY.build()
    assert not list(Source(records=tar, schema="captions", links=links(root)).samples(log))
    assert log.bad == {"too_large": 3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PictureLinks(size_px=0), "size_px must be at least 1, got 0"),
        (lambda: BadDataConfig(max_rate=1.5), r"max_rate must be in \[0, 1\], got 1.5"),
        (lambda: BadDataConfig(min_records=0), "min_records must be at least 1, got 0"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_files(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "b.json").write_text("[1,")
    (tmp_path / "a.tar").write_bytes(b"no archive" * 99)
    for read, message in [
        (lambda: records_of(tmp_path / "a.csv"), "or a file .json, .jsonl, .parquet, .tar, got .csv"),
        (lambda: records_of(tmp_path / "none.tar"), "got no such file"),
        (lambda: list(FolderRecords(tmp_path / "none").read()), "must be a folder of pictures, got no such file"),
        (lambda: list(JsonRecords(tmp_path / "a.json").read()), "must be a list of JSON objects, got dict"),
        (lambda: list(JsonRecords(tmp_path / "b.json").read()), "got no JSON"),
        (lambda: list(TarRecords(tmp_path / "a.tar").read()), "must be a whole tar archive"),
        (lambda: list(TarRecords(tmp_path / "a.json").read()), "must be a file .tar, got .json"),
    ]:
        with pytest.raises(ValueError, match=message):
            read()


def test_the_command_says_what_is_wrong(root, capsys):
    path = root / "mixed.jsonl"
    turns = [{"from": "human", "value": "<image>Is it <image> or this?"}, {"from": "gpt", "value": "Yes."}]
    right = {"image": ["red.png", "green.png"], "conversations": turns}
    path.write_text(json.dumps(right) + "\n" + json.dumps(right | {"image": "red.png"}))
    assert validate.main([str(path), "--schema", "llava"]) == 1
    printed = capsys.readouterr().out
    assert f"{path}:1: num_pictures: <image> must stand once for each picture" in printed
    assert "1 of 2 (1 num_pictures); good ones hold 2 messages and 2 pictures" in printed.replace("\n", " ")
    assert validate.main([str(path), "--schema", "llava", "--json", "--limit", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == {"good": 1, "bad": {}, "messages": 2, "pictures": 2}
    assert validate.main([str(path)]) == 0
    table = capsys.readouterr().out
    assert table.index("llava") < table.index("mmc4")
    for wrong, message in [(["--limit", "0"], "at least 1"), (["--schema", "coco"], "invalid choice")]:
        with pytest.raises(SystemExit, match="2"):
            validate.main([str(path), *wrong])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        validate.main([str(root / "none.jsonl"), "--schema", "llava"])


def test_remote_pictures_are_fetched_only_where_that_is_allowed(root, monkeypatch, capsys):
    monkeypatch.setattr(RemotePictures, "fetch", lambda self, url: encoded(COLORS["red.png"]))
    (root / "remote.jsonl").write_text('{"text": "a", "image": "https://example.org/red.png"}')
    for options, code in [([], 1), (["--allow_remote"], 0)]:
        assert validate.main([str(root / "remote.jsonl"), "--schema", "captions", *options]) == code
    assert "remote: a picture must not be remote unless that is allowed" in capsys.readouterr().out


def test_pixels_are_fitted(root):
    picture = links(root).open("red.png")
    assert picture.pixels is not None and picture.pixels.shape == (4, 4, 3)
    assert np.array_equal(picture.pixels[0, 0], COLORS["red.png"])
    again = links(root).open({"bytes": None, "path": "red.png"}).pixels
    assert again is not None and np.array_equal(again, picture.pixels)
