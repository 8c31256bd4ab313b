import pytest

from mask2former import BUNDLED_MODEL, Mask2FormerForUniversalSegmentation
from mask2former.evaluation.synthetic import HELD_OUT_SEEDS, evaluate, table
from mask2former.image_processing import Mask2FormerImageProcessor
from mask2former.synthetic import ID2LABEL


@pytest.fixture(scope="module")
def result():
    model = Mask2FormerForUniversalSegmentation.from_pretrained(BUNDLED_MODEL)
    return evaluate(model, Mask2FormerImageProcessor.from_pretrained(BUNDLED_MODEL))


def test_there_are_200_held_out_scenes():
    assert len(HELD_OUT_SEEDS) == 200


def test_the_bundled_model_reaches_its_stated_quality(result):
    assert result["panoptic"]["pq"] >= 0.70
    assert result["semantic"]["miou"] >= 0.85


def test_table_has_a_line_per_class_and_the_means(result):
    lines = table(result).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(ID2LABEL.values())
    assert lines[-1].startswith(f"PQ {result['panoptic']['pq']:.3f}")


def test_the_bundled_weights_are_at_most_six_megabytes():
    assert (BUNDLED_MODEL / "model.safetensors").stat().st_size <= 6_000_000
