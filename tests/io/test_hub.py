from unittest import mock

import pytest
from huggingface_hub import errors

from mask2former import DataError
from mask2former.io.hub import resolve_file


def test_missing_folder_is_named():
    with pytest.raises(DataError, match="nowhere/at/all does not exist"):
        resolve_file("./nowhere/at/all", "config.json")


def test_a_file_instead_of_a_folder_is_named(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(DataError, match=r"photo\.jpg is a file; give the model's folder"):
        resolve_file(tmp_path / "photo.jpg", "config.json")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"has no config\.json"):
        resolve_file(tmp_path, "config.json")


def test_hub_name_is_downloaded_with_its_options(tmp_path):
    with mock.patch(
        "huggingface_hub.hf_hub_download", return_value=str(tmp_path / "f")
    ) as download:
        path = resolve_file(
            "owner/model", "config.json", revision="v1", cache_dir=tmp_path, token="t"
        )
    assert path == tmp_path / "f"
    assert download.call_args.args == ("owner/model", "config.json")
    assert download.call_args.kwargs == {
        "revision": "v1",
        "cache_dir": tmp_path,
        "token": "t",
        "local_files_only": False,
    }


RESPONSE = mock.Mock(headers={}, status_code=404)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError("x", response=RESPONSE), "no model 'owner/model'"),
        (errors.RevisionNotFoundError("x", response=RESPONSE), "no revision"),
        (errors.LocalEntryNotFoundError("x"), "not in the local cache"),
        (errors.EntryNotFoundError("x"), r"has no file config\.json"),
        (OSError("disk full"), "disk full"),
    ],
)
def test_hub_failures_are_one_sentence(error, message):
    with (
        mock.patch("huggingface_hub.hf_hub_download", side_effect=error),
        pytest.raises(DataError, match=message),
    ):
        resolve_file("owner/model", "config.json")


def test_an_uncached_hub_model_offline_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="not in the local cache"):
        resolve_file("owner/model", "config.json", cache_dir=tmp_path, local_files_only=True)
