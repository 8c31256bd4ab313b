import pytest

from mask2former import DataError
from mask2former.io.files import read_json, replacing, write_text


def test_json_must_be_an_object(tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(DataError, match="must hold a JSON object, but it holds a list"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("text", ['{"a": ', "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\udcff"])
def test_what_is_not_json_is_named(tmp_path, text):
    (tmp_path / "x.json").write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match="x.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="midway"), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("midway")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
