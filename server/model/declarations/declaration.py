"""Declaration: what a model is, as its family's config says it.

It names modules and parameters of transformers, and holds the facts that these do not show by their structure. Sizes,
epsilons and kinds of norms, activations and weights are the modules' own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from server.kernels.native.structures.layers import RouterKind
from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.workspace import PairAngles


@dataclass(frozen=True, kw_only=True)
class Router:
    """Chooses the experts of each token."""

    module: str = "mlp.gate"  # that has its parameters
    weight: str | None = "mlp.gate.weight"  # ``(experts, hidden)``; None: a linear layer of the module, with a norm
    bias: str | None = None
    correction: str | None = None  # added to scores for the choice alone
    kind: RouterKind
    top_k: int
    logits_scale: float = 1.0
    is_normalised: bool = True  # the weights of a token's experts are divided by their sum
    scale: float = 1.0  # of these weights
    groups: int = 1  # of experts, of which a token takes the best ones
    top_groups: int = 1
    is_by_best: bool = False  # a group is as good as its best expert, instead of its two best
    near: float = 0.0  # difference of scores that the sparse mixer regards as small
    has_table: bool = False  # experts are those of tokens in a table; scores give weights alone
    num_shared: int = 0  # last rows of the matrix, which only weight experts that every token goes to
    num_skips: int = 0  # last rows of the matrix, which stand for no expert
    has_mlp: bool = False  # an MLP of the module makes the rows that the matrix takes
    chooses: bool = True  # the module takes rows, at most with the correction, and returns logits, weights and choices


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """An MLP that every token goes to."""

    module: str = "mlp"
    weighting: str | None = None  # linear layer whose sigmoid multiplies the result
    input_norm: str | None = None  # of the hidden states, if it is not the layer's
    output_norm: str | None = None
    scale: float = 1.0  # of the result


@dataclass(frozen=True, kw_only=True)
class ImageExperts:
    """Experts that tokens of images go to instead of a layer's own."""

    block: str  # module that has them and their router
    module: str
    router: Router


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Experts, of which a token goes to some."""

    module: str = "mlp.experts"
    router: Router
    input_projection: str | None = None  # linear layer whose results they take
    projected_norm: str | None = None  # of these
    output_projection: str | None = None  # linear layer of their weighted sum
    norm: str | None = None  # of their weighted sum
    scale: float = 1.0  # of this sum
    is_deferred: bool = False  # the next block of the same layer adds the sum
    shared: str | None = None  # module of experts that every token goes to, with weights of the router
    images: ImageExperts | None = None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A mixer, then experts, an MLP, or both side by side, each with norms around it.

    A norm that is None is not there. Names are those within a decoder layer of transformers.
    """

    mixer: MixerDeclaration
    experts: Experts | None = None
    mlp: Mlp | None = None
    input_norm: str | None = "input_layernorm"  # before the mixer
    mixer_norm: str | None = None  # of its results
    inner_norm: str | None = "post_attention_layernorm"  # before the feed-forward part
    output_norm: str | None = None  # of its results
    is_parallel: bool = False  # the feed-forward part takes what the mixer takes
    residual_scale: float = 1.0  # of what is added to the hidden states
    mixer_residual: float = 0.0  # not 0: results are added to the mixer's normed input times this
    inner_residual: float = 0.0  # the same of the feed-forward part
    mixer_residual_gate: str | None = None  # module that weights the hidden states and the mixer's results by channel
    inner_residual_gate: str | None = None  # the same of the feed-forward part's results
    mixer_convolution: str | None = None  # of the mixer's results
    output_convolution: str | None = None  # of those of the feed-forward part
    key_input_norm: str | None = (
        None  # of the rows that the mixer takes for keys, if they are other ones than for queries
    )
    value_input_norm: str | None = None  # the same for values
    starts_block: bool = (
        False  # the residual stream becomes a row of its token, and begins anew with the mixer's results
    )
    streams: Sequence[str] = ()  # modules that sum the rows of a residual stream with several rows a token
    ngrams: str | None = None  # embeds the last tokens together, for the residual stream
    adds_deferred: bool = False  # it adds the sum of the experts of the block before


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """A kind of rotary positions."""

    module: str = "rotary_emb"  # of the text body; it computes cosines and sines
    columns: PairAngles = PairAngles.FIRST_HALF  # of its result that give one angle a pair
    num_axes: int = 0  # of its positions; 0 if they have no such dimension
    arguments: Sequence[str] = ()  # after rows and positions
    named: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A model, from its embeddings to its logits."""

    layers: Sequence[Layer]
    layers_in_one: int = 1  # so many of them are one decoder layer of transformers
    rotary: Sequence[Rotary] = (Rotary(),)
    embedding_scale: float = 1.0
    is_scale_rounded: bool = False  # to the model's dtype
    logits_scale: float = 1.0
    is_head_input_scaled: bool = False  # the head's module takes its rows times ``logits_scale``
    unused_logits: int = 0  # last rows of the head
    num_streams: int = 0  # rows of a token's residual stream; 0 if that is one row and nothing else
