"""The pipeline language and the task table. Imports no torch."""
