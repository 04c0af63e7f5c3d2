"""The tables that `mocokit reproduce` knows, by name; `cost` is measured rather than trained (cost.py)."""

from mocokit.reproduction.moco_v1_tables import MECHANISMS
from mocokit.reproduction.moco_v2_tables import ABLATION, SOTA, TEMPERATURE

TABLES = {table.name: table for table in (TEMPERATURE, ABLATION, SOTA, MECHANISMS)}
