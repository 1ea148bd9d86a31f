"""Which parallel sizes a world has, and the list of worlds that every test walks through.

Decides world sizes and which combinations are possible; must not know models or torch.
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Where one rank stands on every axis."""

    tp: int
    cp: int
    dp: int
    pp: int
    etp: int
    ep: int
    expert_dp: int


@dataclass(frozen=True, slots=True)
class Topology:
    """Parallel sizes as megatron-core takes them; `dp` is the data parallel size of the dense parameters.

    The expert parameters live on etp * ep * expert_dp ranks of each pipeline stage, the dense ones on
    tp * cp * dp: the two grids have the same number of ranks and are otherwise independent.
    """

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 1
    cp: int = 1
    dp: int = 1
    first_stage_layers: int | None = None
    last_stage_layers: int | None = None
    stage_layers: tuple[int, ...] = ()  # of a hybrid: of every chunk, in the order of the pipeline

    def __post_init__(self) -> None:
        sizes = (self.tp, self.pp, self.vpp, self.ep, self.etp, self.cp, self.dp)
        if min(sizes) < 1:
            raise ValueError(f"every parallel size must be at least 1, got {sizes}")
        if self.stage_size % (self.etp * self.ep):
            raise ValueError(
                f"etp * ep = {self.etp * self.ep} does not divide tp * cp * dp = {self.stage_size}"
            )
        if self.pp == 1 and (self.vpp > 1 or self.is_uneven):
            raise ValueError("virtual and uneven pipeline stages need pp > 1")
        if self.stage_layers and len(self.stage_layers) != self.pp * self.vpp:
            raise ValueError(f"{self.stage_layers} are not the layers of {self.pp} * {self.vpp} chunks")

    @property
    def stage_size(self) -> int:
        """Ranks of one pipeline stage."""
        return self.tp * self.cp * self.dp

    @property
    def world_size(self) -> int:
        """Ranks of the whole world."""
        return self.stage_size * self.pp

    @property
    def expert_dp(self) -> int:
        """Ranks that hold the same routed experts."""
        return self.stage_size // (self.etp * self.ep)

    @property
    def is_uneven(self) -> bool:
        """Whether the first or the last pipeline stage has its own number of layers."""
        return self.first_stage_layers is not None or self.last_stage_layers is not None

    def coordinates(self, rank: int) -> Coordinates:
        """Return the rank's place by plain arithmetic, in megatron's default order "tp-cp-ep-dp-pp".

        The dense axes count tp, cp, dp, pp from the fastest, the expert axes etp, ep, expert_dp, pp.
        """
        pp_rank, in_stage = divmod(rank, self.stage_size)
        return Coordinates(
            tp=in_stage % self.tp,
            cp=in_stage // self.tp % self.cp,
            dp=in_stage // (self.tp * self.cp),
            pp=pp_rank,
            etp=in_stage % self.etp,
            ep=in_stage // self.etp % self.ep,
            expert_dp=in_stage // (self.etp * self.ep),
        )

    @property
    def name(self) -> str:
        """A test id such as "tp2-pp2-ep2": everything that is not its default."""
        short = {"first_stage_layers": "first", "last_stage_layers": "last", "stage_layers": "stages"}
        named = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        parts = [
            f"{short.get(name, name)}{'_'.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value, default in named
            if value != default
        ]
        return "-".join(parts) or "single"


SINGLE = Topology()

TOPOLOGIES: tuple[Topology, ...] = (
    SINGLE,
    # one axis at a time
    Topology(tp=2),
    Topology(tp=4),  # more than the two query groups of the grouped families
    Topology(pp=2),
    Topology(pp=4),
    Topology(pp=2, vpp=2),
    Topology(cp=2),
    Topology(dp=2),
    Topology(ep=2, dp=2),  # expert_dp 1
    Topology(etp=2, dp=2),  # experts cut where nothing else is
    Topology(tp=2, etp=2),
    # uneven stages
    Topology(pp=2, first_stage_layers=3, last_stage_layers=1),
    Topology(pp=2, first_stage_layers=1),
    Topology(pp=3, first_stage_layers=1, last_stage_layers=1),
    # the expert grid against the dense grid
    Topology(ep=2, dp=4),  # expert_dp 2
    Topology(ep=8, dp=8),  # one expert per rank
    Topology(tp=2, ep=2),  # experts spread over the tensor ranks, each whole
    Topology(tp=2, ep=2, dp=2),
    Topology(tp=2, etp=2, ep=2, dp=2),
    Topology(tp=4, ep=2, dp=2),  # expert_dp 4 while dense dp 2
    Topology(tp=4, etp=2, ep=2, dp=2),
    Topology(cp=2, ep=2, dp=2),
    Topology(tp=2, cp=2, dp=2, ep=4),
    # everything at once
    Topology(pp=2, vpp=2, tp=2, ep=2, dp=2),
    Topology(tp=2, pp=2, ep=2, dp=2),
    Topology(tp=2, pp=2, ep=2, etp=2, dp=2),
    Topology(tp=2, pp=2, cp=2, first_stage_layers=1),
    Topology(tp=4, pp=2, ep=4),
)
