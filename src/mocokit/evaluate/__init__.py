"""How good a backbone is, by published protocols."""
