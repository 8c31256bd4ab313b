"""Where the files of a checkpoint are: in a local folder or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from mask2former.io.errors import DataError


class MissingFileError(DataError):
    """The folder or the repository exists, but it holds no such file."""


def resolve_file(
    name_or_folder: str | Path,
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Path of `filename` in a local folder, or in a hub repository after downloading it.

    A name that is an existing folder is local; a name like "owner/model" is a hub repository.

    Raises:
        MissingFileError: the folder, the repository or, offline, the cache lacks the file.
        DataError: there is no such folder or repository, or the hub cannot be reached.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        path = folder / filename
        if not path.is_file():
            raise MissingFileError(
                f"The folder {folder} has no {filename}; give a folder written by save_pretrained "
                "or a Hugging Face model name."
            )
        return path
    if folder.exists():
        raise DataError(
            f"{folder} is a file; give the model's folder or a Hugging Face name (`mask2former "
            "convert` makes folders of the paper's .pkl and .pth files)."
        )
    if not _looks_like_hub_name(str(name_or_folder)):
        raise DataError(
            f"The folder {folder} does not exist; give an existing model folder or a Hugging Face "
            "model name such as 'facebook/mask2former-swin-tiny-coco-panoptic'."
        )
    return _download(str(name_or_folder), filename, revision, cache_dir, token, local_files_only)


def _looks_like_hub_name(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _download(
    name: str,
    filename: str,
    revision: str | None,
    cache_dir: str | Path | None,
    token: str | None,
    local_files_only: bool,
) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = hf_hub_download(
            name,
            filename,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
    except RepositoryNotFoundError as error:
        raise DataError(
            f"The hub has no model {name!r} that you may read; check the name, or pass a token if "
            "it is private."
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(f"The hub model {name!r} has no revision {revision!r}.") from error
    except LocalEntryNotFoundError as error:
        raise MissingFileError(
            f"{filename} of {name!r} is not in the local cache and the hub cannot be reached; "
            "connect to the network or give a local folder."
        ) from error
    except EntryNotFoundError as error:
        raise MissingFileError(f"The hub model {name!r} has no file {filename}.") from error
    except (HfHubHTTPError, OSError) as error:
        raise DataError(
            f"Downloading {filename} of {name!r} failed ({error}); try again or give a local "
            "folder."
        ) from error
    return Path(path)
