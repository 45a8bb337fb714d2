"""Results for other people's tools: a gate for CI, and exports of the one report. Thin, and deletable.

Each module is a pure function of a `Report`; none measures anything.
"""
