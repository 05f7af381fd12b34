"""The program of a model says what runs where, in one place."""

from __future__ import annotations

import pytest

from server.model.program import LayerTargets, ModelProgram, Segment, Target

REASON = "its layers are of another kind"
ATTENTION = LayerTargets("attention", Target.NATIVE, Target.NATIVE)
DELTA = LayerTargets("GatedDeltaNet", Target.MODULES, Target.NATIVE)


def whole(target: Target) -> ModelProgram:
    return ModelProgram((LayerTargets("Layer", target, target),) * 3, REASON)


@pytest.mark.parametrize(
    ("program", "segments"),
    [
        (ModelProgram((ATTENTION, ATTENTION)), [(Target.NATIVE, 4)]),
        (
            ModelProgram((DELTA, DELTA, ATTENTION)),
            [(Target.MODULES, 1), (Target.NATIVE, 1), (Target.MODULES, 1), (Target.NATIVE, 3)],
        ),
        (whole(Target.TRANSFORMERS), [(Target.TRANSFORMERS, 6)]),
    ],
    ids=["native", "hybrid", "sequential"],
)
def test_neighbouring_parts_of_one_target_are_a_segment(
    program: ModelProgram, segments: list[tuple[Target, int]]
) -> None:
    assert program.segments == tuple(Segment(*each) for each in segments)


@pytest.mark.parametrize(
    ("program", "text"),
    [
        (ModelProgram((ATTENTION, ATTENTION)), "native kernels run all 2 layers"),
        (
            ModelProgram((DELTA, DELTA, ATTENTION)),
            "transformers' modules run GatedDeltaNet in 2 of 3 layers, and native kernels run the rest",
        ),
        (
            ModelProgram((LayerTargets("Mamba2", Target.CUDA, Target.MODULES),)),
            "Triton's kernels run mixers in 1 and feed-forward parts in 0 of 1 layers, transformers' modules the rest",
        ),
        (whole(Target.MODULES), f"transformers' modules run all layers, because {REASON}"),
        (
            whole(Target.TRANSFORMERS),
            f"requests run one at a time, with transformers' attention and cache, because {REASON}",
        ),
    ],
    ids=["native", "hybrid", "cuda", "modules", "sequential"],
)
def test_a_program_is_described_in_a_line(program: ModelProgram, text: str) -> None:
    assert program.describe() == text
