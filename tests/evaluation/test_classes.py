import pytest

from mask2former.evaluation.classes import class_order
from mask2former.io.errors import DataError


def named(*names):
    return dict(enumerate(names))


def test_classes_are_found_by_name():
    assert class_order(named("sky", "cat", "dog"), named("cat", "dog", "sky")) == [1, 2, 0]
    assert class_order(named("cat", "dog"), named("cat", "dog")) == [0, 1]


def test_other_classes_of_the_model_come_last_where_they_are_allowed():
    model, dataset = named("sky", "cat", "sea", "dog"), named("dog", "cat")
    assert class_order(model, dataset, others_allowed=True) == [3, 1, 0, 2]
    with pytest.raises(DataError, match="only the model has 'sky', 'sea'"):
        class_order(model, dataset)


def test_a_message_says_which_classes_differ():
    model, dataset = named("cat", "dog", "sky"), named("cat", "cow", "sheep")
    with pytest.raises(DataError) as caught:
        class_order(model, dataset, others_allowed=True)
    assert "knows 3 classes and the data set has 3" in str(caught.value)
    assert "only the data set has 'cow', 'sheep'; only the model has 'dog', 'sky'" in str(
        caught.value
    )


def test_a_message_stays_short():
    with pytest.raises(DataError, match="'4' and 75 more"):
        class_order(named("cat"), named(*map(str, range(80))))


def test_classes_of_one_name_need_the_same_order():
    assert class_order(named("bow", "bow"), named("bow", "bow")) == [0, 1]
    with pytest.raises(DataError, match="'bow', cannot be distinguished"):
        class_order(named("bow", "bow", "cat"), named("cat", "bow", "bow"))
    with pytest.raises(DataError, match="'bow', cannot be distinguished"):
        class_order(named("bow", "bow", "cat"), named("cat", "bow"))
