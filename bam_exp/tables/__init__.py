"""Published tables as files: what the paper prints, and the overrides that select each row."""

from bam_exp.tables.read import load_table, table_names
from bam_exp.tables.register import named_by, register, register_row
from bam_exp.tables.table import Row, Table

__all__ = ["Row", "Table", "load_table", "named_by", "register", "register_row", "table_names"]
