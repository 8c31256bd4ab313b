from mask2former.data.inspection.inspect_dataset import inspect_dataset
from mask2former.data.inspection.text_report import report
from tests.data.memory import MemoryDataset, flawed_dataset, sample


def test_the_report_is_a_table_a_summary_errors_and_warnings():
    text = report(inspect_dataset(flawed_dataset()))
    assert (
        text
        == """\
errors:
third.png is truncated.

label     id  class  kind     images  segments  crowds   pixels
    0      0  cat    thing         2         2       0    7.14%
    1      1  dog    thing         1         2       1   35.71%
    2      2  sky    stuff         1         1       0   42.86%

task:          panoptic
images:        2
errors:        1 (listed first)
image size:    height 2 to 3 (median 2.5), width 2 to 4 (median 3)
classes:       3, numbered 0 to 2
segments:      5, area 1 to 6 pixels (median 2.5); 4 smaller than 32x32, 1 without a pixel
in no segment: 14.29% of all pixels

warnings:
1 segment (second.png: cat) is without a pixel; training leaves them out; remove or redraw them."""
    )


def many_classes(present: int) -> list[str]:
    """The table of 200 classes of which some are present, class i (i % 60 + 1) times."""
    classes = {3 * i: f"class {i}" for i in range(200)}
    images = [sample([[0]], [i]) for i in range(present) for _ in range(i % 60 + 1)]
    text = report(inspect_dataset(MemoryDataset(images, classes=classes)))
    assert "0 to 597 without 1-2, 4-5, 7-8, 10-11, 13-14, 16-17, ... (199 gaps)\n" in text
    return text.split("\n\n")[0].splitlines()[1:]


def test_a_report_of_many_classes_shows_the_most_and_the_least_frequent():
    lines = many_classes(150)
    counts = [int(line.split()[6]) for line in lines if "more" not in line]
    assert counts == sorted(counts, reverse=True)
    assert (len(counts), counts[0], counts[-1]) == (28, 60, 1)
    assert lines[20] == "  ... 172 more classes, 50 of them without a segment"


def test_a_report_of_many_classes_leaves_out_those_that_never_occur():
    lines = many_classes(3)
    assert [line.split()[0] for line in lines[:3]] == ["2", "1", "0"]
    assert lines[3:] == ["  ... 197 more classes, 197 of them without a segment"]
    lines = many_classes(25)
    assert [line.split()[6] for line in lines[:25]] == [str(k) for k in range(25, 0, -1)]
    assert lines[25:] == ["  ... 175 more classes, 175 of them without a segment"]


def test_a_data_set_without_images_has_a_report():
    assert "images:        0" in report(inspect_dataset(MemoryDataset([])))


def test_gaps_in_the_numbers_of_the_classes_are_shown():
    classes = {1: "cat", 2: "dog", 5: "sky", 7: "sea"}
    found = inspect_dataset(MemoryDataset([sample([[0]], [0])], classes=classes))
    assert "4, numbered 1 to 7 without 3-4, 6\n" in report(found)
