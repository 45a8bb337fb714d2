"""Stages: plain functions from checkpoints to a checkpoint.

Each unpacks its settings, calls the rooms below, and seals what it made with numbers read back from it. `dispatch` is
the one place that knows them all; training runs in a child process that is gone before anything is measured.
"""
