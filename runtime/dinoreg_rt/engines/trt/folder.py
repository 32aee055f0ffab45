"""The folder of TensorRT engines: names, storage and checked reading of engines and records."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from ...device.limits import user_folder
from ...errors import InputError, OutputError
from ...io.staging import whole_file
from .record import EngineKey, EngineRecord


def engines_folder() -> Path:
    """Return ``DINOREG_ENGINES``, or a folder in the user's cache; errors as in `user_folder`."""
    return user_folder("DINOREG_ENGINES", "engines")


def engine_stem(model: str, key: EngineKey) -> str:
    """Return the name of an engine's files, without the suffix."""
    size = f"{key.height}x{key.width}"
    return f"{model}_{size}_{key.precision}_{key.flavour}_{key.digest()}"


def store_engine(folder: Path, plan: bytes, record: EngineRecord) -> Path:
    """Write an engine and then its record, without which the engine does not exist.

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
    """Return the records of all engines in a folder; other files are skipped."""
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(EngineRecord.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue
    return records


def engine_file(folder: Path, record: EngineRecord, command: str) -> Path:
    """Return the file of a record's engine, looked at but not read.

    Args:
        folder: folder of the record.
        record: record of the engine.
        command: command that rebuilds the engine, for the message.

    Raises:
        InputError: the engine is missing, is a link out of the folder, has another size, or failed
            its verification.
    """
    path = folder / record.file
    if not record.verification.holds:
        raise InputError(
            f"{path}: its verification failed ({record.verification.describe()}); {command}"
        )
    if not path.is_file() or path.resolve().parent != folder.resolve():
        raise InputError(f"{path}: missing, or not a file of this folder; {command}")
    if (size := path.stat().st_size) != record.size_bytes:
        raise InputError(
            f"{path}: changed since it was verified ({size} bytes, {record.size_bytes} expected); "
            f"{command}"
        )
    return path


def read_engine(folder: Path, record: EngineRecord, command: str) -> bytes:
    """Return the bytes of a record's engine, unchanged since it was built and verified.

    The arguments are those of `engine_file`.

    Raises:
        InputError: as `engine_file`, or the bytes were changed.
    """
    path = engine_file(folder, record, command)
    plan = path.read_bytes()
    # Hash the bytes that will be used; a second read could return others.
    if hashlib.sha256(plan).hexdigest() != record.sha256:
        raise InputError(f"{path}: changed since it was verified (another sha256); {command}")
    return plan
