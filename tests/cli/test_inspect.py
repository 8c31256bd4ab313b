"""`mask2former inspect` on rendered data sets."""

import json

import pytest
from PIL import Image

from mask2former.cli import main
from mask2former.data.rendering import render_dataset


@pytest.fixture(params=["coco-panoptic", "coco-instances", "semantic"])
def data(request, tmp_path):
    """A folder with four small scenes for training and one for validation."""
    render_dataset(tmp_path / "data", request.param, range(4), [9], 48)
    return tmp_path / "data"


def inspect(data, *arguments) -> int:
    return main(["inspect", str(data), "--workers=0", "--split=train", *map(str, arguments)])


def test_a_sound_data_set(data, tmp_path, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    assert inspect(data, "--out", sheet, "--json", tmp_path / "found.json") == 0
    printed = capsys.readouterr()
    assert "images:        4\n" in printed.out and "errors:        none\n" in printed.out
    assert str(sheet) in printed.out
    assert "inspecting" in printed.err
    with Image.open(sheet) as picture:
        assert min(picture.size) > 400
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["images"] == 4 and found["errors"] == []
    names = [count["name"] for count in found["classes"]]
    assert names[:4] == ["disc", "box", "triangle", "star"]


def test_missing_and_damaged_files_are_all_listed(data, tmp_path, capsys):
    images = sorted(path for path in data.rglob("train/*.png") if "annotations" not in path.parts)
    images[0].unlink()
    images[2].write_bytes(images[2].read_bytes()[:300])
    assert inspect(data, "--samples=0", "--json", tmp_path / "found.json") == 1
    printed = capsys.readouterr().out
    assert "images:        2\n" in printed
    errors = json.loads((tmp_path / "found.json").read_text())["errors"]
    assert len(errors) == 2
    for path in (images[0], images[2]):
        (error,) = (error for error in errors if path.stem in error)
        assert error in printed


def test_without_a_split_it_is_train_and_says_so(data, capsys):
    assert main(["inspect", str(data), "--workers=0", "--samples=0"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("splits: train, val; without --split this is train\n")
    assert "images:        4\n" in printed


def test_label_maps_of_0_and_255_are_warned_of(tmp_path, capsys):
    for folder, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / folder).mkdir()
        picture = Image.new(mode, (40, 32))
        picture.paste((255,) * len(mode), (10, 10, 20, 20))
        picture.save(tmp_path / folder / "a.png")
    command = ["inspect", str(tmp_path), "--workers=0", "--samples=0"]
    assert main(command) == 0
    warnings = capsys.readouterr().out.partition("warnings:\n")[2]
    (warning,) = warnings.splitlines()
    assert "0 and 255" in warning


def test_label_maps_that_count_from_1_are_found_out(tmp_path, capsys):
    for name, values in (("a", (1, 2)), ("b", (1, 3))):
        for folder, mode in (("images", "RGB"), ("masks", "L")):
            (tmp_path / folder).mkdir(exist_ok=True)
            picture = Image.new(mode, (40, 32), (values[0],) * len(mode))
            picture.paste((values[1],) * len(mode), (10, 10, 20, 20))
            picture.save(tmp_path / folder / f"{name}.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\nsky\n")
    command = ["inspect", str(tmp_path), "--workers=0", "--samples=0"]
    assert main(command) == 1
    errors, _, warnings = capsys.readouterr().out.partition("warnings:\n")
    assert "b.png has the number 3" in errors and "--reduce-labels" in errors
    assert "The first class, 'cat' (number 0), never occurs" in warnings
    assert main([*command, "--reduce-labels"]) == 0
    assert "warnings" not in capsys.readouterr().out


def test_options_that_do_not_apply_are_wrong_usage(tmp_path, capsys):
    render_dataset(tmp_path / "data", "coco-panoptic", [1], [], 32)
    with pytest.raises(SystemExit, match="2"):
        inspect(tmp_path / "data", "--reduce-labels")
    assert "--reduce-labels" in capsys.readouterr().err


def test_no_sheet_when_none_is_wanted(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert inspect(data, "--samples=0") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    render_dataset(tmp_path / "data", "semantic", [1], [], 32)
    for option in ("--out", "--json"):
        assert inspect(tmp_path / "data", option, tmp_path / "data") == 1
        complaint = capsys.readouterr().err.splitlines()[-1]
        assert str(tmp_path / "data") in complaint and option in complaint


def test_what_is_no_data_set_is_one_sentence(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "missing"):
        assert inspect(path) == 1
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1 and str(path) in complaint


@pytest.mark.parametrize("wrong", ["--samples=-1", "--workers=-1"])
def test_numbers_below_0_are_wrong_usage(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit, match="2"):
        inspect(tmp_path, wrong)
    assert wrong.partition("=")[0] in capsys.readouterr().err
