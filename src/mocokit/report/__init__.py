"""Pictures and text tables that people look at.

Imports no other room.
"""
