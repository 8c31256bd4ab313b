"""`mask2former evaluate`: what it writes and says."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed

from mask2former import BUNDLED_MODEL
from mask2former.cli import main
from mask2former.cli.evaluate import METRICS, _processes
from mask2former.data.sample_picture import panoptic_map
from mask2former.data.scene_dataset import SceneDataset
from mask2former.evaluation.evaluate import METRIC_TASKS
from mask2former.images.run_length import mask_to_rle
from mask2former.images.visualization import id_map_to_rgb
from mask2former.io.errors import DataError

SCENES = range(1_000_000, 1_000_003)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three scenes, 96 pixels wide and high, as a COCO panoptic data set with a split "val"."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "panoptic_val").mkdir()
    (folder / "val").mkdir()
    dataset = SceneDataset(SCENES, size=96)
    images, annotations = [], []
    for number in range(len(dataset)):
        sample = dataset[number]
        save_image(sample, folder / "val" / f"{number}.png")
        ids, segments = panoptic_map(sample)
        Image.fromarray(id_map_to_rgb(ids)).save(folder / "panoptic_val" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 96})
        annotations.append(
            {
                "image_id": number,
                "file_name": f"{number}.png",
                "segments_info": [
                    {
                        "id": segment["id"],
                        "category_id": segment["label_id"],
                        "iscrowd": 0,
                        "area": int((ids == segment["id"]).sum()),
                        "bbox": [0, 0, 96, 96],
                    }
                    for segment in segments
                ],
            }
        )
    categories = [
        {"id": label, "name": name, "isthing": int(label in dataset.thing_label_ids)}
        for label, name in dataset.id2label.items()
    ]
    write(folder / "panoptic_val.json", images, annotations, categories)
    return folder


@pytest.fixture(scope="module")
def instance_data(tmp_path_factory):
    """The things of one scene as COCO instances."""
    folder = tmp_path_factory.mktemp("instances")
    (folder / "val").mkdir()
    dataset = SceneDataset(SCENES[:1], size=96, task="instance")
    sample = dataset[0]
    save_image(sample, folder / "val" / "0.png")
    annotations = [
        {
            "id": i + 1,
            "image_id": 0,
            "category_id": int(sample.labels[i]),
            "segmentation": mask_to_rle(sample.masks[i]),
            "area": int(sample.masks[i].sum()),
            "bbox": [0, 0, 96, 96],
            "iscrowd": 0,
        }
        for i in range(len(sample.labels))
    ]
    categories = [{"id": label, "name": name} for label, name in dataset.id2label.items()]
    images = [{"id": 0, "file_name": "0.png", "height": 96, "width": 96}]
    write(folder / "instances_val.json", images, annotations, categories)
    return folder


def save_image(sample, path):
    Image.fromarray(sample.image.permute(1, 2, 0).contiguous().numpy()).save(path)


def write(path, images, annotations, categories):
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


@pytest.fixture
def evaluate(tmp_path):
    """Run `evaluate` with the bundled model into `tmp_path / "out"`; returns the exit status."""

    def run(data, *arguments, model=BUNDLED_MODEL) -> int:
        options = ["--out", str(tmp_path / "out"), "--device", "cpu"]
        words = ["evaluate", "--model", str(model), "--data", str(data), *options]
        return main([*words, *map(str, arguments)])

    return run


def report(tmp_path):
    return json.loads((tmp_path / "out" / "evaluation.json").read_text())


def test_table_json_and_picture_are_written(evaluate, data, tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    assert evaluate(data, "--metrics", "pq,ap,boundary-ap,miou", "--worst", "2") == 0
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "evaluation.json",
        "evaluation.txt",
        "worst.png",
    ]
    printed = capsys.readouterr()
    table = (out / "evaluation.txt").read_text()
    assert printed.out == f"{table}3 images; the report is in {out}\n"
    assert "3/3" in printed.err  # the progress bar
    assert table.splitlines()[0].split() == [
        *("class", "PQ", "SQ", "RQ", "AP", "AP50", "bAP", "IoU")
    ]
    about = report(tmp_path)
    assert (about["model"], about["data"]) == (str(BUNDLED_MODEL), str(data))
    assert (about["task"], about["threshold"]) == ("panoptic", 0.8)
    assert about["size"] == {"shortest_edge": 192, "longest_edge": 384}
    assert about["figures"]["pq"] > 0.4  # measured: 0.6 and more
    assert about["figures"]["miou"] > 0.4
    assert about["figures"]["ap"] > 0.2
    assert 0 < about["figures"]["boundary_ap"] <= about["figures"]["ap"]
    assert [image["image"] for image in about["images"]] == ["0.png", "1.png", "2.png"]
    with Image.open(out / "worst.png") as picture:
        assert picture.width > picture.height / 2


def test_figures_are_written_before_the_picture_is_drawn(evaluate, data, tmp_path, monkeypatch):
    def vanished(*arguments):
        raise DataError("1.png is gone.")

    monkeypatch.setattr("mask2former.evaluation.report.draw_worst_images", vanished)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "worst.png").touch()
    assert evaluate(data, "--metrics", "miou") == 1
    assert report(tmp_path)["figures"]["miou"] > 0.4
    assert not (tmp_path / "out" / "worst.png").exists()  # of another evaluation


def test_the_command_takes_every_metric_that_there_is():
    assert tuple(METRIC_TASKS) == METRICS


def test_the_task_decides_the_metrics_and_the_model_may_know_stuff_too(
    evaluate, instance_data, tmp_path
):
    pytest.importorskip("faster_coco_eval")
    assert evaluate(instance_data) == 0
    about = report(tmp_path)
    assert (about["task"], about["metrics"]) == ("instance", ["ap"])
    assert about["figures"]["ap"] > 0.2


def test_average_precision_alone_measures_things_only(evaluate, data, tmp_path):
    pytest.importorskip("faster_coco_eval")
    assert evaluate(data, "--metrics", "ap") == 0
    about = report(tmp_path)
    assert [row["name"] for row in about["classes"]] == ["disc", "box", "triangle", "star"]


def test_size_and_thresholds_reach_the_model(evaluate, data, tmp_path):
    assert evaluate(data, "--size", "64,100", "--threshold", "1", "--metrics", "pq") == 0
    about = report(tmp_path)
    assert about["size"] == {"shortest_edge": 64, "longest_edge": 100}
    assert about["figures"]["pq"] == 0  # no score reaches one
    assert about["threshold"] == 1


def test_the_papers_padding_reaches_the_model(evaluate, data, tmp_path):
    accuracy = {}
    for switch in ([], ["--paper-padding"]):
        assert evaluate(data, "--size", "100", "--metrics", "miou", *switch) == 0
        about = report(tmp_path)
        assert about["paper_padding"] is bool(switch)
        accuracy[about["paper_padding"]] = about["figures"]["pixel_accuracy"]
    assert accuracy[True] != accuracy[False]


def test_bad_samples_can_be_skipped(evaluate, data, tmp_path, capsys):
    folder = shutil.copytree(data, tmp_path / "copy")
    (folder / "val" / "1.png").write_bytes(b"no picture")
    (folder / "panoptic_val" / "2.png").unlink()  # found missing when the data set is opened
    assert evaluate(folder, "--metrics", "miou") == 1
    assert "2.png" in capsys.readouterr().err.splitlines()[-1]
    assert evaluate(folder, "--metrics", "miou", "--skip-bad") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("1 image; ")
    skipped = report(tmp_path)["skipped"]
    assert ["2.png" in skipped[0], "1.png" in skipped[1]] == [True, True]
    for reason in skipped:
        assert f"mask2former: skipped: {reason}\n" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--metrics", "pq,map"], "'map' is none of pq, ap, boundary-ap, miou"),
        (["--size", "800,600"], "800,600 is not the short and the long side"),
        (["--size", "big"], "'big' is not an integer above 0"),
        (["--worst", "0"], "'0' is not an integer above 0"),
        (["--workers", "-1"], "'-1' is not an integer from 0 on"),
        (["--threshold", "2"], "2 is not between 0 and 1"),
        (["--reduce-labels"], "reduce_labels"),
        (["--device", "quantum"], "quantum"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(evaluate, data, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit, match="2"):
        evaluate(data, *arguments)
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert words in complaint
    assert not (tmp_path / "out").exists()


def test_of_several_splits_the_one_for_validation_is_meant(evaluate, data, tmp_path, capsys):
    folder = shutil.copytree(data, tmp_path / "copy")
    shutil.copytree(folder / "panoptic_val", folder / "panoptic_train")
    shutil.copytree(folder / "val", folder / "train")
    shutil.copy(folder / "panoptic_val.json", folder / "panoptic_train.json")
    assert evaluate(folder, "--metrics", "miou") == 0
    assert report(tmp_path)["split"] == "val"
    (folder / "panoptic_val.json").rename(folder / "panoptic_test.json")
    (folder / "panoptic_val").rename(folder / "panoptic_test")
    (folder / "val").rename(folder / "test")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        evaluate(folder, "--metrics", "miou")
    complaint = capsys.readouterr().err
    assert "test" in complaint and "train" in complaint and "--split" in complaint


def test_of_two_splits_for_validation_one_must_be_chosen(evaluate, data, tmp_path, capsys):
    folder = shutil.copytree(data, tmp_path / "copy")
    for name in ("panoptic_val2014", "panoptic_val2017"):
        shutil.copytree(folder / "panoptic_val", folder / name)
        shutil.copy(folder / "panoptic_val.json", folder / f"{name}.json")
    (folder / "panoptic_val.json").unlink()
    with pytest.raises(SystemExit, match="2"):
        evaluate(folder)
    assert "val2014, val2017; say which with --split" in capsys.readouterr().err


def test_yolo_is_measured_on_its_validation_images_even_where_nothing_is_annotated(
    evaluate, tmp_path, capsys
):
    pytest.importorskip("faster_coco_eval")
    dataset = SceneDataset(SCENES[:2], size=96, task="instance")
    for index, split in enumerate(("train", "val")):
        (tmp_path / "images" / split).mkdir(parents=True)
        save_image(dataset[index], tmp_path / "images" / split / f"{split}.png")
    names = list(dataset.id2label.values())
    yaml = tmp_path / "data.yaml"
    yaml.write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(names)}]\n")
    assert evaluate(yaml) == 0
    about = report(tmp_path)
    assert about["split"] == "val"
    assert [image["image"] for image in about["images"]] == ["images/val/val.png"]
    assert about["figures"]["ap"] is None
    assert "AP -" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [None, "cuda"])
def test_every_process_of_torchrun_takes_its_own_gpu(monkeypatch, asked):
    taken = []
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setattr("mask2former.cli.evaluate.choose_device", torch.device)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(distributed, name, lambda *arguments: None)
    monkeypatch.setattr(distributed, "get_rank", lambda: 3)
    with _processes(asked) as (device, rank, ranks):
        assert (device, rank, ranks) == (torch.device("cuda:3"), 3, 4)
    assert taken == [device]


def test_bad_data_and_other_classes_are_named(evaluate, data, tiny_model, tmp_path, capsys):
    assert evaluate(tmp_path / "nowhere") == 1
    assert "nowhere does not exist" in capsys.readouterr().err
    assert evaluate(data, model=tiny_model) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "only the model has 'cat', 'dog'" in complaint


def test_an_output_folder_that_cannot_be_written_is_named_before_any_work(
    evaluate, data, tmp_path, capsys, monkeypatch
):
    (tmp_path / "out").touch()
    monkeypatch.setattr("mask2former.cli.evaluate.load_predictor", None)
    assert evaluate(data) == 1
    assert str(tmp_path / "out") in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_shares_the_images(evaluate, data, tmp_path):
    assert evaluate(data) == 0
    alone = report(tmp_path)
    words = ["evaluate", "--model", str(BUNDLED_MODEL), "--data", str(data)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "mask2former", *words]
    command += ["--out", str(tmp_path / "out"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 images; the report is in") == 1
    shared = report(tmp_path)
    assert shared["images"] == alone["images"]
    np.testing.assert_allclose(shared["figures"]["pq"], alone["figures"]["pq"], rtol=1e-12)


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from mask2former.cli import main\n"
        "try: main(['evaluate', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
