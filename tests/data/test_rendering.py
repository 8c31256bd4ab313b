import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.data import rendering
from mask2former.data.open_dataset import open_dataset
from mask2former.data.rendering import main, render_dataset
from mask2former.data.scene_dataset import SceneDataset
from mask2former.images.visualization import rgb_to_id_map
from mask2former.scenes.scene import HELD_OUT_SEEDS, render_scene
from mask2former.scenes.taxonomies import TAXONOMIES

SIZE = 48
TRAIN, VAL = [3, 5, 11], [20]


def render(out, format, taxonomy="shapes", **settings) -> Path:
    render_dataset(out, format, TRAIN, VAL, SIZE, taxonomy, **settings)
    return out


def files(root) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def names_of(taxonomy, scene):
    """The name of the class of every pixel."""
    ids, segments = TAXONOMIES[taxonomy].annotate(scene)
    names = np.full(ids.max() + 1, "", dtype="U16")
    for number, category in segments:
        names[number] = category.name
    return names[ids]


@pytest.mark.parametrize("taxonomy", TAXONOMIES)
def test_coco_panoptic_files_hold_the_scenes(tmp_path, taxonomy):
    root = render(tmp_path / "new" / "data", "coco-panoptic", taxonomy)
    for split, seeds in (("train", TRAIN), ("val", VAL)):
        content = json.loads((root / "annotations" / f"panoptic_{split}.json").read_text())
        categories = {category["id"]: category for category in content["categories"]}
        for category in TAXONOMIES[taxonomy].categories:
            written = categories[category.id]
            assert (written["name"], written["isthing"]) == (category.name, category.is_thing)
        images = {image["id"]: image for image in content["images"]}
        assert len(images) == len(content["annotations"]) == len(seeds)
        for annotation, seed in zip(content["annotations"], seeds, strict=True):
            scene = render_scene(seed, SIZE, SIZE)
            image = images[annotation["image_id"]]
            assert (image["height"], image["width"]) == (SIZE, SIZE)
            with Image.open(root / split / image["file_name"]) as picture:
                assert np.array_equal(np.asarray(picture), scene.image)
            folder = root / "annotations" / f"panoptic_{split}"
            with Image.open(folder / annotation["file_name"]) as picture:
                ids = rgb_to_id_map(picture)
            segments = annotation["segments_info"]
            assert set(np.unique(ids)) == {segment["id"] for segment in segments}
            truth = names_of(taxonomy, scene)
            for segment in segments:
                mask = ids == segment["id"]
                assert set(truth[mask]) == {categories[segment["category_id"]]["name"]}
                check_extent(segment, mask)


def check_extent(record, mask):
    rows, columns = np.argwhere(mask).T
    width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert record["area"] == len(rows)
    assert record["bbox"] == [columns.min(), rows.min(), width, height]
    assert record["iscrowd"] == 0


# pycocotools 2.0 asks numpy for something it deprecated
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_instances_are_read_by_pycocotools(tmp_path, capsys):
    root = render(tmp_path, "coco-instances", "outlines")
    coco = pytest.importorskip("pycocotools.coco").COCO(
        root / "annotations" / "instances_train.json"
    )
    assert sorted(coco.getImgIds()) == TRAIN
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    assert list(names.values()) == ["round", "angular", "spiky"]
    for seed in TRAIN:
        scene = render_scene(seed, SIZE, SIZE)
        truth = names_of("outlines", scene)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[seed]))
        assert len(annotations) == len(scene.things)
        masks = [coco.annToMask(annotation).astype(bool) for annotation in annotations]
        for annotation, mask in zip(annotations, masks, strict=True):
            assert set(truth[mask]) == {names[annotation["category_id"]]}
            check_extent(annotation, mask)
        assert np.array_equal(np.any(masks, axis=0), np.isin(truth, list(names.values())))


def test_semantic_pixels_are_lines_of_the_list_of_classes(tmp_path):
    root = render(tmp_path, "semantic", "outlines")
    classes = np.array((root / "classes.txt").read_text().splitlines())
    for split, seeds in (("train", TRAIN), ("val", VAL)):
        for seed in seeds:
            scene = render_scene(seed, SIZE, SIZE)
            with Image.open(root / "images" / split / f"{seed:012d}.png") as picture:
                assert np.array_equal(np.asarray(picture), scene.image)
            with Image.open(root / "annotations" / split / f"{seed:012d}.png") as labels:
                assert labels.mode == "L"
                assert np.array_equal(classes[np.asarray(labels)], names_of("outlines", scene))


@pytest.mark.parametrize(
    ("format", "task"),
    [("coco-panoptic", "panoptic"), ("coco-instances", "instance"), ("semantic", "semantic")],
)
def test_opened_again_the_files_are_the_scenes(tmp_path, format, task):
    root = render(tmp_path, format)
    for split, seeds in (("train", TRAIN), ("val", VAL)):
        written, scenes = open_dataset(root, split), SceneDataset(seeds, SIZE, task)
        assert (written.task, written.id2label) == (task, scenes.id2label)
        assert written.thing_label_ids == scenes.thing_label_ids
        assert written.skipped in ((), [])
        for found, expected in zip(written, scenes, strict=True):
            assert torch.equal(found.image, expected.image)
            assert torch.equal(found.labels, expected.labels)
            segments = torch.arange(len(found.labels))
            assert torch.equal(found.masks_of(segments), expected.masks_of(segments))


def test_more_processes_write_the_same_files(tmp_path):
    one = render(tmp_path / "one", "coco-instances", workers=1)
    two = render(tmp_path / "two", "coco-instances", workers=2)
    assert files(one) == files(two)


def test_a_split_without_scenes_is_not_written(tmp_path):
    render_dataset(tmp_path, "coco-panoptic", [], VAL, SIZE)
    assert {path.name for path in tmp_path.iterdir()} == {"annotations", "val"}


def test_the_splits_have_no_scene_in_common(tmp_path):
    with pytest.raises(ValueError, match="Seed 20 is in train and in val"):
        render_dataset(tmp_path, "semantic", range(21), VAL, SIZE)


def test_held_out_scenes_are_for_validation_only(tmp_path):
    with pytest.raises(ValueError, match="1000000 are held out"):
        render_dataset(tmp_path, "semantic", [3, 1_000_050], VAL, SIZE)
    command = ["--format=semantic", "--size=32", "--train=2", "--val=3", "--workers=1"]
    assert main([*command, "--held-out", "--out", str(tmp_path)]) == 0
    assert names(tmp_path / "images" / "train") == [0, 1]
    assert names(tmp_path / "images" / "val") == list(HELD_OUT_SEEDS[:3])


def names(folder) -> list[int]:
    return sorted(int(path.stem) for path in folder.iterdir())


def test_the_command_takes_consecutive_seeds(tmp_path, capsys):
    out = tmp_path / "data"
    command = ["--format=semantic", "--size=32", "--train=2", "--val=3", "--workers=1"]
    assert main([*command, "--first-seed=7", "--out", str(out)]) == 0
    assert names(out / "images" / "train") == [7, 8]
    assert names(out / "images" / "val") == [9, 10, 11]
    assert str(out) in capsys.readouterr().out


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    assert main(["--out", str(tmp_path), "--workers=1"]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and str(tmp_path) in complaint
    assert files(tmp_path) == {"photo.jpg": b"mine"}


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_data_set_that_cannot_be_finished(
    tmp_path, monkeypatch, capsys, existed, error
):
    save = rendering.save_png

    def save_until_full(image, path):
        if path.name == f"{11:012d}.png":
            raise error
        save(image, path)

    monkeypatch.setattr(rendering, "save_png", save_until_full)
    out = tmp_path / "data"
    if existed:
        out.mkdir()
    command = ["--out", str(out), "--first-seed=10", "--size=32", "--workers=1"]
    if isinstance(error, OSError):
        assert main(command) == 1
        complaint = capsys.readouterr().err.splitlines()[-1]
        assert "No space left on device" in complaint and str(out) in complaint
    else:
        with pytest.raises(KeyboardInterrupt):
            main(command)
    assert out.exists() == existed
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        ["--train=0", "--val=0"],
        ["--size=31"],
        ["--workers=0"],
        ["--train=-1"],
        ["--first-seed=-1"],
        ["--first-seed=999999", "--train=2"],
    ],
)
def test_wrong_usage_writes_nothing(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path / "data"), "--workers=1", *wrong])
    assert files(tmp_path) == {}
