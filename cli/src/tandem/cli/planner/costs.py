"""What a request takes of a worker of each role, by the costs that `tandem plan` reckons with. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tandem.cli.sim_serve.jobs import Ask
from tandem.cli.sim_serve.model_file import CostModel
from tandem.cli.sizing.capacity import capacity_of
from tandem.cli.sizing.sample import Sample
from tandem.core.ids import Role
from tandem.core.planner.demand import Costs, MeanRequest


def costs_by(model: CostModel) -> Costs:
    """Of workers as the model has them."""

    def seconds(request: MeanRequest) -> Mapping[Role, float]:
        ask = Ask(0.0, ((0, max(1, round(request.prompt_tokens))),), max(1, round(request.new_tokens)))
        one = capacity_of(model, Sample((ask,), (0,)))
        return {
            # A worker computes while its link moves what it has computed: the slower of both binds.
            Role.PREFILL: max(one.prefill_s, one.link_s),
            Role.DECODE: max(one.decode_s, one.link_s),
            Role.UNIFIED: one.prefill_s + one.decode_s,
        }

    return seconds
