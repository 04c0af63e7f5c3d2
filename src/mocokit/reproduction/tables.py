"""The tables that `mocokit reproduce` trains, by name; `cost` is measured instead (cost.py)."""

import difflib

from mocokit.reproduction.moco_v1_tables import MECHANISMS
from mocokit.reproduction.moco_v2_tables import ABLATION, SOTA, TEMPERATURE
from mocokit.reproduction.table import Table

TABLES = {table.name: table for table in (TEMPERATURE, ABLATION, SOTA, MECHANISMS)}


def get_table(name: str) -> Table:
    """The table of that name.

    Raises:
        ValueError: Unknown; the message names the nearest one and lists all.

    """
    if name not in TABLES:
        near = difflib.get_close_matches(name, TABLES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"table={name}: unknown; {hint}choose one of {[*TABLES, 'cost']}")
    return TABLES[name]
