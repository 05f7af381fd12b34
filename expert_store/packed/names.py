"""Names of the files and the data folder of a packed model, as manifest and journal hold them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from expert_store.file_name import FileName

DATA_FOLDER = r"[0-9a-f]{16}(-2)?"


def _plain(name: FileName) -> FileName:
    if name.folder:
        raise ValueError(f"{name!r} is not a plain file name")
    return name


PlainName = Annotated[FileName, AfterValidator(_plain)]  # without a folder
DataFolderName = Annotated[FileName, Field(pattern=f"^{DATA_FOLDER}$")]
