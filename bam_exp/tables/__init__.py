"""Published tables as files: what the paper prints, and the overrides that select each row."""

from bam_exp.tables.read import NOT_TRAINED, load_table, table_names, trained_tables
from bam_exp.tables.register import register
from bam_exp.tables.table import Row, Table

__all__ = ["NOT_TRAINED", "Row", "Table", "load_table", "register", "table_names", "trained_tables"]
