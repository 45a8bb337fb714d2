"""Checkpoint folders: the manifest, digests, completeness. Imports no torch."""
