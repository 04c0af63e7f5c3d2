"""Pictures and text tables for people to look at.

Imports no other room.
"""
