"""Finds Kimi delta attention by the names of its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.kimi_delta_attention.declaration import KimiDeltaAttention
from server.model.blocks.kimi_delta_attention.mixer import KimiDeltaAttentionMixer
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.mixer import LayerPlace, MixerParts

SIZES = ("num_heads", "head_dim")
FORGET_GATE = "forget_gate"
GATES = (("g_proj",), ("g_a_proj", "g_b_proj"))  # one matrix, or two
DECAYS = (("f_proj",), ("f_a_proj", "f_b_proj"))


@dataclass(frozen=True)
class KimiDeltaAttentionParts(MixerParts):
    """The parts of Kimi delta attention."""

    declares: ClassVar[type[MixerDeclaration]] = KimiDeltaAttention
    keeps_state: ClassVar[bool] = True

    module: Any
    inputs: Sequence[Sequence[Linear]]  # of queries, keys, values, gates, decays and betas: one matrix of each, or two
    output: Linear

    @classmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        forget, output = getattr(module, FORGET_GATE, None), getattr(module, "o_proj", None)
        has_sizes = all(isinstance(getattr(module, name, None), int) for name in SIZES)
        is_whole = isinstance(getattr(module, "conv1d", None), nn.Conv1d) and hasattr(module, "o_norm")
        has_decays = all(isinstance(getattr(forget, name, None), nn.Parameter) for name in ("A_log", "dt_bias"))
        if not keeps_state or not has_sizes or not is_whole or not has_decays or not isinstance(output, LINEARS):
            return None
        inputs = [_linears(module, [(name,)]) for name in ("q_proj", "k_proj", "v_proj")]
        inputs += [_linears(module, GATES), _linears(forget, DECAYS), _linears(module, [("b_proj",)])]
        return cls(module, inputs, output) if all(inputs) else None

    def parameters(self) -> Iterator[nn.Parameter]:
        module, forget = self.module, getattr(self.module, FORGET_GATE)
        linears = [linear for several in self.inputs for linear in several]
        for part in (*linears, self.output, module.conv1d, module.o_norm):
            yield from part.parameters()
        yield from (forget.A_log, forget.dt_bias)

    def build(self, declared: MixerDeclaration, place: LayerPlace) -> KimiDeltaAttentionMixer:
        del declared
        return KimiDeltaAttentionMixer(self, place.index)


def _linears(module: Any, choices: Sequence[Sequence[str]]) -> Sequence[Linear]:
    """Return the linear layers of the first names that a module has; none if it has none of them."""
    for names in choices:
        found = [linear for name in names if isinstance(linear := getattr(module, name, None), LINEARS)]
        if len(found) == len(names):
            return found
    return ()
