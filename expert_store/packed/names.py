"""Names of the files and the data folder of a packed model, as manifest and journal hold them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

DATA_FOLDER = r"[0-9a-f]{16}(-2)?"


def _file_name(name: str) -> str:
    if name in {"", ".", ".."} or any(character in name for character in "/\\\0"):
        raise ValueError(f"{name!r} is not a plain file name")
    return name


FileName = Annotated[str, AfterValidator(_file_name)]
DataFolderName = Annotated[str, Field(pattern=f"^{DATA_FOLDER}$")]
