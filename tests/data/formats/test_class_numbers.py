import json

import numpy as np
import pytest

from mask2former.data.dataset import VOID
from mask2former.data.formats.class_numbers import find_class_numbers, read_names
from mask2former.io.errors import DataError


def numbers_in(folder, *maps, reduce_labels=False, skip_bad=False, read=np.asarray):
    return find_class_numbers(folder, maps, read, reduce_labels, skip_bad)


def write_classes(folder, *names):
    (folder / "classes.txt").write_text("\n".join(names) + "\n")


def never(item):
    raise AssertionError("a map was read")


def test_a_name_belongs_to_the_number_of_its_line(tmp_path):
    write_classes(tmp_path, "sky", "road", "car")
    found = numbers_in(tmp_path, [[0]], read=never)
    assert found.names == ["sky", "road", "car"]
    assert found.values == [0, 1, 2]
    classes = found.classes_of(np.array([[0, 1], [2, 255]], np.uint8), "a.png")
    assert classes.tolist() == [[0, 1], [2, VOID]]
    assert classes.dtype == np.int32


def test_reduced_labels_start_at_1_and_0_and_255_are_void(tmp_path):
    write_classes(tmp_path, "sky", "road", "car")
    found = numbers_in(tmp_path, reduce_labels=True, read=never)
    assert found.values == [1, 2, 3]
    assert found.classes_of(np.array([0, 1, 2, 3, 255]), "a").tolist() == [VOID, 0, 1, 2, VOID]
    with pytest.raises(DataError, match="a has the number 4"):
        found.classes_of(np.array([4]), "a")


def test_without_names_classes_are_numbered_as_in_all_the_maps(tmp_path):
    found = numbers_in(tmp_path, [[0, 2]], [[5, 255]])
    assert found.names == ["0", "1", "2", "3", "4", "5"]
    assert found.values == [0, 1, 2, 3, 4, 5]
    reduced = numbers_in(tmp_path, [[0, 2]], [[5, 255]], reduce_labels=True)
    assert reduced.names == ["1", "2", "3", "4", "5"]
    assert reduced.classes_of(np.array([0, 1, 5, 255]), "a").tolist() == [VOID, 0, 4, VOID]


def test_shades_of_grey_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="Only 3 of the 129 numbers up to 128 occur.*shades"):
        found = numbers_in(tmp_path, [[0, 64, 128, 255]])
    assert len(found.names) == 129
    with pytest.warns(UserWarning, match="Only 2 of the 9 numbers up to 9"):
        numbers_in(tmp_path, [[0, 3, 9]], reduce_labels=True)
    numbers_in(tmp_path, [[0, 7]])  # a quarter of them is no reason to warn


@pytest.mark.parametrize("names", [None, ["floor", "stain"]])
def test_maps_of_0_and_255_alone_have_a_foreground(tmp_path, names):
    if names:
        write_classes(tmp_path, *names)
    with pytest.warns(UserWarning, match="255 is taken as class 1, foreground, and not as void"):
        found = numbers_in(tmp_path, [[0, 0]], [[0, 255]])
    assert found.names == (names or ["background", "foreground"])
    assert found.values == [0, 255]
    assert found.classes_of(np.array([0, 255]), "a").tolist() == [0, 1]
    with pytest.raises(DataError, match="a has the number 254"):
        found.classes_of(np.array([254]), "a")


def test_one_name_keeps_255_void_and_warns_of_it(tmp_path):
    write_classes(tmp_path, "floor")
    with pytest.warns(UserWarning, match="classes.txt names one class, so 255 is taken as void"):
        found = numbers_in(tmp_path, [[0, 255]])
    assert found.classes_of(np.array([0, 255]), "a").tolist() == [0, VOID]


@pytest.mark.parametrize("maps", [([0, 1], [0, 255]), ([0, 255, 1],), ([0, 1],), ([0],)])
def test_a_single_1_or_no_255_makes_255_void(tmp_path, maps):
    write_classes(tmp_path, "floor", "stain")
    found = numbers_in(tmp_path, *maps)
    assert found.values == [0, 1]
    assert found.classes_of(np.array([0, 1, 255]), "a").tolist() == [0, 1, VOID]


def test_three_names_are_never_0_and_255_alone(tmp_path):
    write_classes(tmp_path, "a", "b", "c")
    found = numbers_in(tmp_path, [[0, 255]])
    assert found.classes_of(np.array([0, 255]), "a").tolist() == [0, VOID]


def test_with_two_names_reading_stops_at_a_number_that_decides(tmp_path):
    write_classes(tmp_path, "floor", "stain")
    read = []

    def reader(item):
        read.append(item)
        return np.array([0, 1])

    numbers_in(tmp_path, *range(5000), read=reader)
    assert len(read) < 5000


def test_an_unknown_number_is_named_with_a_hint_at_shifted_labels(tmp_path):
    write_classes(tmp_path, "a", "b", "c")
    found = numbers_in(tmp_path)
    with pytest.raises(DataError, match=r"m.png has the number 3, .*classes.txt.*--reduce-labels"):
        found.classes_of(np.array([0, 3]), "m.png")
    with pytest.raises(DataError, match=r"m.png has the number 9, .* are 0 to 2.*255\.$"):
        found.classes_of(np.array([0, 9, 3]), "m.png")
    for number in (-1, 256, 70000):
        with pytest.raises(DataError, match=f"number {number}"):
            found.classes_of(np.array([number], np.int32), "m.png")


def test_maps_of_two_bytes_have_another_void(tmp_path):
    write_classes(tmp_path, *(f"c{number}" for number in range(300)))
    found = numbers_in(tmp_path)
    assert found.classes_of(np.array([255, 299, 65535]), "a").tolist() == [255, 299, VOID]
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match="numbers up to 299; write the names"):
        numbers_in(tmp_path, [299])


def test_255_is_a_class_where_there_are_so_many(tmp_path):
    write_classes(tmp_path, *(f"c{number}" for number in range(255)))
    assert numbers_in(tmp_path).void == (255,)
    reduced = numbers_in(tmp_path, reduce_labels=True)
    assert reduced.classes_of(np.array([255]), "a").tolist() == [254]


@pytest.mark.parametrize(
    ("maps", "reduce_labels"), [([255], False), ([0, 255], True), ([0], True), ([], False)]
)
def test_maps_without_any_class_are_refused(tmp_path, maps, reduce_labels):
    with pytest.raises(DataError, match="No pixel of the label maps"):
        numbers_in(tmp_path, maps, reduce_labels=reduce_labels)


def test_unreadable_maps_are_passed_over_if_asked(tmp_path):
    def reader(item):
        if item == "bad":
            raise DataError("bad is damaged.")
        return np.array([0, 2])

    with pytest.raises(DataError, match="bad is damaged"):
        numbers_in(tmp_path, "bad", "good", read=reader)
    assert numbers_in(tmp_path, "bad", "good", read=reader, skip_bad=True).values == [0, 1, 2]


def test_names_are_read_from_each_kind_of_file(tmp_path):
    (tmp_path / "labels.txt").write_bytes("\ufeffa\r\nb \r\n\r\n".encode())
    assert read_names(tmp_path) == (["a", "b"], "labels.txt")
    (tmp_path / "labels.txt").unlink()
    (tmp_path / "id2label.json").write_text(json.dumps({"1": "b", "0": "a"}))
    assert read_names(tmp_path) == (["a", "b"], "id2label.json")
    (tmp_path / "id2label.json").unlink()
    table = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t11\t1\t1\twall\n2\t0.1\t6\t6\t1\tsky\n"
    (tmp_path / "objectInfo150.txt").write_text(table)
    assert read_names(tmp_path) == (["wall", "sky"], "objectInfo150.txt")
    (tmp_path / "objectInfo150.txt").unlink()
    assert read_names(tmp_path) == (None, "")


def test_ade20k_is_not_read_with_its_classes_shifted(tmp_path):
    (tmp_path / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n2\tsky\n")
    with pytest.raises(DataError, match="--reduce-labels"):
        numbers_in(tmp_path)
    found = numbers_in(tmp_path, reduce_labels=True)
    assert found.classes_of(np.array([0, 1, 2]), "a").tolist() == [VOID, 0, 1]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("classes.txt", "a\n\nb\n", "no name for class 1"),
        ("classes.txt", "a\nb\na\n", "name 'a' twice"),
        ("classes.txt", "\n", "is empty"),
        ("id2label.json", '{"1": "a", "2": "b"}', "keys 0 to 1"),
        ("id2label.json", '{"0": 5}', "no name for class 0"),
        ("id2label.json", "{", "not valid JSON"),
    ],
)
def test_bad_names_are_refused(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}.*{reason}"):
        read_names(tmp_path)


def test_names_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match="classes.txt is not UTF-8"):
        read_names(tmp_path)
