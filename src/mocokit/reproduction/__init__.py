"""The papers' tables: what each cell is, running them, and the table as it fills."""
