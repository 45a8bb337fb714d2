"""The typed things that travel: the report and the events. Imports no torch."""
