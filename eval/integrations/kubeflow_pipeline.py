"""A compression run as a Kubeflow pipeline: a container per step, the run's folder on a volume between them.

python eval/integrations/kubeflow_pipeline.py compress.yaml     # compiles it
"""

import sys

from kfp import compiler, dsl

IMAGE = "my-registry/joule-compressor:0.1.0"


@dsl.container_component
def run(pipeline: str, folder: str) -> dsl.ContainerSpec:
    """Every stage and the judging; the same folder again resumes."""
    return dsl.ContainerSpec(image=IMAGE, command=["compressor"], args=["run", pipeline, "--out", folder, "--quiet"])


@dsl.container_component
def gate(folder: str, max_accuracy_drop: float, min_reduction: float) -> dsl.ContainerSpec:
    """Exit code 3 fails the step."""
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["compressor"],
        args=["gate", folder, "--max-accuracy-drop", max_accuracy_drop, "--min-reduction", min_reduction],
    )


@dsl.pipeline(name="compress")
def compress(
    pipeline: str = "/data/pipeline.yaml",
    folder: str = "/data/runs/compress",
    max_accuracy_drop: float = 0.01,
    min_reduction: float = 0.3,
) -> None:
    """Run, then gate."""
    made = run(pipeline=pipeline, folder=folder)
    gate(folder=folder, max_accuracy_drop=max_accuracy_drop, min_reduction=min_reduction).after(made)


if __name__ == "__main__":
    compiler.Compiler().compile(compress, sys.argv[1])
