"""The folder of engines: names of the files, records written and read, engines found or refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from ...device.limits import user_folder
from ...errors import InputError, OutputError
from ...io.staging import whole_file
from .record import EngineKey, EngineRecord


def engines_folder() -> Path:
    """``DINOREG_ENGINES``, else the user's cache; errors as of `user_folder`."""
    return user_folder("DINOREG_ENGINES", "engines")


def engine_stem(model: str, key: EngineKey) -> str:
    """Name of an engine's files, without the ending."""
    size = f"{key.height}x{key.width}"
    return f"{model}_{size}_{key.precision}_{key.flavour}_{key.digest()}"


def store_engine(folder: Path, plan: bytes, record: EngineRecord) -> Path:
    """Write engine and record, the record last: without it the engine does not exist.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = folder / record.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path, 0o644) as stream:
            stream.write(plan)
        with whole_file(path.with_suffix(".json"), 0o644) as stream:
            stream.write((record.model_dump_json(indent=2) + "\n").encode())
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written: {error.strerror}; DINOREG_ENGINES names another folder"
        ) from error
    return path


def read_records(folder: Path) -> list[EngineRecord]:
    """Records of all engines in a folder; a file that is no record is passed over."""
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(EngineRecord.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue
    return records


def read_engine(folder: Path, record: EngineRecord, command: str) -> bytes:
    """The engine of a record, unchanged since it was built and verified.

    Args:
        folder: where the record lies.
        record: of the engine.
        command: builds the engine anew, for the message.

    Raises:
        InputError: gone, a link out of the folder, or changed; or its verification does not hold.
    """
    path = folder / record.file
    if not record.verification.holds:
        raise InputError(
            f"{path}: its verification does not hold ({record.verification.describe()}); {command}"
        )
    if not path.is_file() or path.resolve().parent != folder.resolve():
        raise InputError(f"{path}: missing, or not a file of this folder; {command}")
    plan = path.read_bytes()
    # Of the bytes that will be used, not of the file a second time.
    if hashlib.sha256(plan).hexdigest() != record.sha256:
        raise InputError(
            f"{path}: changed since it was verified ({len(plan)} bytes, {record.size_bytes} "
            f"expected, or another sha256); {command}"
        )
    return plan
