"""The order of stages, resume, selection: one YAML becomes one folder under `runs/`."""
