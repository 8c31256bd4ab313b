import collections
import copyreg
import datetime
import os
import pickle

import numpy as np
import pytest

from mask2former import DataError
from mask2former.checkpoints.array_pickle import PickledArray, load_array_pickle

rng = np.random.default_rng(0)
ARRAYS = {
    "float32": rng.random((3, 4), dtype=np.float32),
    "float16": rng.random(5).astype(np.float16),
    "int64": np.arange(6).reshape(2, 3),
    "bool": np.array([True, False]),
    "big endian": rng.random(4).astype(">f8"),
    "columns first": np.asfortranarray(rng.random((3, 5))),
    "scalar array": np.array(7),
    "empty": np.zeros((0, 3)),
}


def load(path, contents, protocol=2):
    path.write_bytes(pickle.dumps(contents, protocol))
    return load_array_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_are_read(tmp_path, kind, protocol):
    expected = ARRAYS[kind]
    array = load(tmp_path / "a.pkl", {"model": {"a": expected}}, protocol)["model"]["a"].array
    assert array.dtype == expected.dtype.newbyteorder("=") and array.dtype.isnative
    assert array.flags.writeable
    assert np.array_equal(array, expected) and array.shape == expected.shape


@pytest.mark.parametrize("old", [False, True])
def test_both_names_of_numpy_s_modules_are_known(tmp_path, old):
    data = pickle.dumps([ARRAYS["int64"], np.float32(2.5)], 2)
    new = b"numpy._core.multiarray"
    data = data.replace(new, b"numpy.core.multiarray") if new in data else data
    if not old:
        data = data.replace(b"numpy.core.multiarray", new)
    (tmp_path / "a.pkl").write_bytes(data)
    array, number = load_array_pickle(tmp_path / "a.pkl")
    assert np.array_equal(array.array, ARRAYS["int64"]) and number == 2.5


def test_plain_containers_are_read(tmp_path):
    contents = {"iteration": 3, "names": ["a", ("b", None, 1.5)], "ids": {1, 2}, "raw": b"\xff"}
    assert load(tmp_path / "a.pkl", contents) == contents


def test_an_ordered_dict_with_the_metadata_of_torch_is_a_dict(tmp_path):
    state = collections.OrderedDict(a=ARRAYS["bool"])
    state._metadata = collections.OrderedDict(version=2)
    found = load(tmp_path / "a.pkl", state)
    assert list(found) == ["a"] and isinstance(found["a"], PickledArray)


def test_a_file_of_python_2_is_read(tmp_path):
    # As Python 2 wrote {"a": np.array([1, 515], "<i2")}: its texts are bytes, its bytes texts.
    (tmp_path / "a.pkl").write_bytes(
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x04\x01\x00\x03\x02tbs."
    )
    assert load_array_pickle(tmp_path / "a.pkl")["a"].array.tolist() == [1, 515]


class Call:
    """Pickles as the call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.mkdir, ("broken-in",)),
        (eval, ("__import__('os').mkdir('broken-in')",)),
        (getattr, ("", "join")),
        (np.load, ("broken-in",)),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_call_of_anything_else_is_refused(tmp_path, monkeypatch, function, arguments, protocol):
    monkeypatch.chdir(tmp_path)
    contents = {"model": {"a": ARRAYS["bool"], "b": Call(function, *arguments)}}
    name = rf"\w+\.{function.__name__}"
    message = f"a.pkl holds the Python object {name}, which is not read because it could run code"
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.pkl", contents, protocol)
    assert not (tmp_path / "broken-in").exists()


def test_functions_are_not_reached_through_attributes_of_allowed_names(tmp_path):
    data = b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93."
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(DataError, match=r"numpy\.ndarray\.__class__"):
        load_array_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([None, {}]), np.zeros(2, "V8")])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
    with pytest.raises(DataError, match="is not one of plain numbers"):
        load(tmp_path / "a.pkl", [array])


def test_other_objects_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"holds the Python object datetime\.date"):
        load(tmp_path / "a.pkl", datetime.date(2020, 1, 1))


def test_every_way_to_cut_off_a_file_names_it(tmp_path):
    whole = pickle.dumps({"model": {"a": ARRAYS["float16"]}, "__author__": "someone"}, 2)
    path = tmp_path / "model_final.pkl"
    for keep in range(len(whole)):
        path.write_bytes(whole[:keep])
        with pytest.raises(DataError, match="model_final.pkl is cut off, damaged") as caught:
            load_array_pickle(path)
        assert "\n" not in str(caught.value)


def in_pickle(value):
    """The opcodes that put a plain value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


ENCODE = b"c_codecs\nencode\n"
FORGED = {
    "state of a function": (ENCODE + in_pickle({"__defaults__": ("x", "y")}) + b"b", "_codecs"),
    "slots of a function": (
        ENCODE + in_pickle((None, {"__defaults__": ("x", "y")})) + b"b",
        "gives attributes to _codecs.encode",
    ),
    "keyword defaults": (
        b"cnumpy.core.multiarray\nscalar\n" + in_pickle((None, {"__kwdefaults__": {}})) + b"b",
        "gives attributes to numpy.core.multiarray.scalar",
    ),
    "its own slots": (ENCODE + in_pickle((None, {"_call": 1})) + b"b", "gives attributes to"),
    "state of a class": (
        b"cnumpy\nndarray\n" + in_pickle((None, {"__setstate__": 1})) + b"b",
        "gives attributes to numpy.ndarray",
    ),
    "state of a built-in class": (b"cbuiltins\nset\n" + in_pickle({}) + b"b", "builtins.set"),
    "a new object of a function": (ENCODE + b")\x81", "NEWOBJ"),
    "a new object of a class": (b"cnumpy\ndtype\n)\x81", "NEWOBJ"),
    "a new object with keywords": (b"cnumpy\ndtype\n)}\x92", "NEWOBJ_EX"),
    "an extension of one byte": (b"\x82\xf0", "refers by EXT1 to 240"),
    "an extension of two bytes": (b"\x83\xf0\x00", "refers by EXT2 to 240"),
    "an extension of four bytes": (b"\x84\xf0\x00\x00\x00", "refers by EXT4 to 240"),
    "a persistent id": (b"Psomething\n", "refers by PERSID to 'something'"),
    "a persistent id of the stack": (b"K\x01Q", "refers by BINPERSID to an object"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_file_is_refused_and_changes_nothing(tmp_path, kind):
    """The extension codes lead to a function that another unpickler has already fetched."""
    copyreg.add_extension("os", "getpid", 240)
    try:
        assert pickle.loads(b"\x80\x02\x82\xf0.") is os.getpid
        opcodes, message = FORGED[kind]
        path = tmp_path / "forged.pkl"
        path.write_bytes(b"\x80\x04" + opcodes + b".")
        with pytest.raises(DataError, match=r"^\S*forged.pkl .*" + message) as caught:
            load_array_pickle(path)
        assert "\n" not in str(caught.value)
    finally:
        copyreg.remove_extension("os", "getpid", 240)
        copyreg.clear_extension_cache()
    contents = {"raw": b"\xff", "number": np.float32(2.5), "array": ARRAYS["int64"]}
    again = load(tmp_path / "a.pkl", contents)
    assert (again["raw"], again["number"]) == (b"\xff", 2.5)
    assert np.array_equal(again["array"].array, ARRAYS["int64"])
