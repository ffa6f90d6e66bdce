"""Parquet tables that another hand may have written: read whole after their columns and their size are known."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from typing_extensions import Self

from varlora.io.files import misfit_of, parse_json, read_bytes

FREE_VALUES = 1 << 23
VALUES_PER_BYTE = 64
"""A table may hold `FREE_VALUES` values, and so many more for each byte of its file: what repeats is short."""


def read_table(path: str | os.PathLike[str], columns: Mapping[str, pa.DataType]) -> pa.Table:
    """The columns of a Parquet file, without nulls in them but where a type is nullable.

    Args:
        path: the file.
        columns: name to type. Others are not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, no sound Parquet file, lacks a column or has one of another type, has no row,
            or would take far more memory than its bytes are worth. The message begins with the file's name.
    """
    name = os.fspath(path)
    data = read_bytes(path)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        check_values(file.metadata, len(data))
        schema = file.schema_arrow
        if misfits := [
            f"{column} ({schema.field(column).type if column in schema.names else 'missing'}, not {kind})"
            for column, kind in columns.items()
            if schema.get_all_field_indices(column) == [] or schema.field(column).type != kind
        ]:
            raise ValueError(f"its columns are others: {', '.join(misfits)}")
        table = file.read(columns=list(columns), use_threads=False)
        table.validate(full=True)
    except (ValueError, LookupError, TypeError, OSError, pa.ArrowException) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{name} cannot be read as the table that it should be ({why}).") from error
    if table.num_rows == 0:
        raise ValueError(f"{name} has no rows.")
    return table


class TableFile:
    """A result that is saved as one Parquet table: `to_table` and `from_table` say what is in it.

    Attributes:
        columns: that the table must have, by name.
        misfit: what a file is not, for the error: "FILE is not a saved prediction: ...".
    """

    columns: ClassVar[Mapping[str, pa.DataType]]
    misfit: ClassVar[str]

    @abstractmethod
    def to_table(self) -> pa.Table:
        """What is saved."""

    @classmethod
    @abstractmethod
    def from_table(cls, table: pa.Table) -> Self:
        """What `to_table` wrote; a ValueError where it is not that."""

    def save(self, file: str | Path) -> Path:
        """Write the table as a Parquet file; returns its path."""
        pq.write_table(self.to_table(), file)
        return Path(file)

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is no Parquet file of ours.
            FileNotFoundError: If there is no such file.
        """
        try:
            return cls.from_table(read_table(file, cls.columns))
        except ValueError as error:
            raise ValueError(f"{file} {cls.misfit}: {error}") from error


def facts_in(table: pa.Table, kind: Any) -> Any:
    """What stands in a table's metadata, under "varlora".

    Args:
        table: as read.
        kind: its form, as of `varlora.io.files.read_json`.

    Raises:
        ValueError: it is not there, or of another form.
    """
    facts = parse_json((table.schema.metadata or {}).get(b"varlora", b"{}"))
    if (misfit := misfit_of(facts, kind, "its metadata")) is not None:
        raise ValueError(misfit)
    return facts


def rectangle(lists: pa.ChunkedArray | pa.Array, name: str) -> tuple[int, pa.Array]:
    """The length that all lists of a column have, and what is in them, one after the other.

    Raises:
        ValueError: there is a null, or they are of several lengths.
    """
    whole = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    lengths, inside = pc.list_value_length(whole).unique().to_pylist(), whole.flatten()
    if len(lengths) != 1 or not lengths[0] or inside.null_count:
        raise ValueError(f"the lists of {name} must all have one length, at least 1, and no gap")
    return lengths[0], inside


def check_values(metadata: Any, size: int) -> None:
    """Refuses a table that would take far more memory than its bytes are worth.

    Args:
        metadata: of a `pyarrow.parquet.ParquetFile`.
        size: bytes of the file.

    Raises:
        ValueError: it says that it holds more values than `FREE_VALUES` and `VALUES_PER_BYTE` allow.
    """
    values = sum(
        metadata.row_group(group).column(column).num_values
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )
    if max(values, metadata.num_rows) > FREE_VALUES + VALUES_PER_BYTE * size:
        raise ValueError(f"{size:,} bytes that say they hold {max(values, metadata.num_rows):,} values")
