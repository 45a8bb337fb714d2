"""Rows, splits and tokens: whatever the source, the same columns come out. Needs no torch."""
