"""Where images come from and how they become two views."""
