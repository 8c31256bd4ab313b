"""The settings of the image processor in files, its own and those of transformers."""

import json

import pytest
from PIL import Image

import mask2former
from mask2former.images.processor import Mask2FormerImageProcessor, Mask2FormerImageProcessorPil
from mask2former.io.errors import DataError


def test_a_saved_processor_is_read_back_equal(tmp_path):
    processor = Mask2FormerImageProcessor(
        size={"height": 64, "width": 96},
        resample=Image.Resampling.BICUBIC,
        ignore_index=255,
        do_reduce_labels=True,
        pad_size={"height": 128, "width": 128},
        thing_label_ids={4, 2},
    )
    processor.save_pretrained(tmp_path / "new" / "folder")
    assert Mask2FormerImageProcessor.from_pretrained(tmp_path / "new" / "folder") == processor
    settings = json.loads((tmp_path / "new" / "folder" / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "Mask2FormerImageProcessor"
    assert settings["thing_label_ids"] == [2, 4]


def write(folder, settings):
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_unknown_keys_are_kept_and_written_back(tmp_path):
    write(tmp_path, {"image_processor_type": "MaskFormerImageProcessor", "y": None, "x": 1})
    processor = Mask2FormerImageProcessor.from_pretrained(tmp_path, do_resize=False)
    assert processor.do_resize is False
    processor.save_pretrained(tmp_path / "again")
    settings = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert (settings["x"], settings["y"]) == (1, None)
    assert settings["image_processor_type"] == "Mask2FormerImageProcessor"


def test_null_in_a_file_means_the_default():
    processor = Mask2FormerImageProcessor.from_dict({"image_mean": None, "size": None})
    assert processor == Mask2FormerImageProcessor()


def test_the_processor_in_pillow_is_saved_under_the_common_name(tmp_path):
    processor = Mask2FormerImageProcessorPil(size=480, resample=Image.Resampling.BOX)
    processor.save_pretrained(tmp_path)
    assert Mask2FormerImageProcessorPil.from_pretrained(tmp_path) == processor
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "Mask2FormerImageProcessor"
    assert mask2former.AutoImageProcessor.from_pretrained(tmp_path).size == processor.size


HUB_FILES = {
    "2023": {
        "_max_size": 1333,
        "do_normalize": True,
        "do_reduce_labels": True,
        "do_rescale": True,
        "do_resize": True,
        "feature_extractor_type": "MaskFormerFeatureExtractor",
        "ignore_index": 255,
        "image_mean": [0.48500001430511475, 0.4560000002384186, 0.4059999883174896],
        "image_std": [0.2290000021457672, 0.2240000069141388, 0.22499999403953552],
        "num_labels": 150,
        "reduce_labels": True,
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 384, "width": 384},
        "size_divisor": 32,
    },
    "2025": {
        "crop_size": None,
        "data_format": "channels_first",
        "default_to_square": False,
        "device": None,
        "disable_grouping": None,
        "do_center_crop": None,
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_reduce_labels": True,
        "ignore_index": 255,
        "image_mean": [0.48500001430511475, 0.4560000002384186, 0.4059999883174896],
        "image_processor_type": "Mask2FormerImageProcessorFast",
        "image_std": [0.2290000021457672, 0.2240000069141388, 0.22499999403953552],
        "input_data_format": None,
        "num_labels": 150,
        "pad_size": None,
        "resample": 2,
        "return_tensors": None,
        "size": {"height": 384, "width": 384},
    },
}


@pytest.mark.parametrize("year", HUB_FILES)
def test_files_of_any_age_mean_the_same(tmp_path, year):
    processor = Mask2FormerImageProcessor.from_pretrained(write(tmp_path, HUB_FILES[year]))
    assert processor == Mask2FormerImageProcessor(
        size={"height": 384, "width": 384},
        image_mean=HUB_FILES[year]["image_mean"],
        image_std=HUB_FILES[year]["image_std"],
        ignore_index=255,
        do_reduce_labels=True,
        num_labels=150,
    )
    processor.save_pretrained(tmp_path / "again")
    assert Mask2FormerImageProcessor.from_pretrained(tmp_path / "again") == processor
    settings = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert not {"_max_size", "reduce_labels", "feature_extractor_type"} & set(settings)


def test_a_file_for_another_model_is_named(tmp_path):
    write(tmp_path, {"image_processor_type": "DetrImageProcessor"})
    with pytest.raises(DataError, match=rf"{tmp_path}.*DetrImageProcessor"):
        Mask2FormerImageProcessor.from_pretrained(tmp_path)


def test_old_names_of_arguments_are_taken_where_a_file_is_read(tmp_path):
    write(tmp_path, {"size": 480})
    processor = Mask2FormerImageProcessor.from_pretrained(tmp_path, reduce_labels=True)
    assert processor.do_reduce_labels


def test_bad_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"preprocessor_config\.json"):
        Mask2FormerImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": ')
    with pytest.raises(DataError, match=str(tmp_path)):
        Mask2FormerImageProcessor.from_pretrained(tmp_path)
    write(tmp_path, {"size": "large"})
    with pytest.raises(DataError, match=rf"{tmp_path}.*size must be"):
        Mask2FormerImageProcessor.from_pretrained(tmp_path)


def test_an_argument_out_of_range_is_not_blamed_on_the_file(tmp_path):
    write(tmp_path, {})
    with pytest.raises(ValueError, match=r"^size_divisor"):
        Mask2FormerImageProcessor.from_pretrained(tmp_path, size_divisor=-1)


def test_files_travel_between_transformers_and_here(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Mask2FormerImageProcessor(size=480, max_size=640, ignore_index=255)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Mask2FormerImageProcessor.from_pretrained(tmp_path / "theirs")
    assert ours == Mask2FormerImageProcessor(
        size={"shortest_edge": 480, "longest_edge": 640}, ignore_index=255
    )
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.Mask2FormerImageProcessor.from_pretrained(tmp_path / "ours")
    assert dict(again.size) == dict(theirs.size)
    assert (again.ignore_index, again.resample) == (255, theirs.resample)


def test_an_old_max_size_keeps_the_shorter_side_of_the_file(tmp_path):
    Mask2FormerImageProcessor(size={"shortest_edge": 480, "longest_edge": 640}).save_pretrained(
        tmp_path
    )
    processor = Mask2FormerImageProcessor.from_pretrained(tmp_path, max_size=1000)
    assert dict(processor.size) == {"shortest_edge": 480, "longest_edge": 1000}
