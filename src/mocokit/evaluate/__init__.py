"""How good a frozen backbone is."""
