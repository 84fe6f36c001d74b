"""What solving a differential equation numerically costs, and what it loses."""

from __future__ import annotations

import copy

import torch

from models.build import ConfigError
from models.evaluators.base import Context, Evaluator, Statistics, record
from models.transforms.continuous import continuous_flows, count_evaluations


class SolverError(Evaluator):
    """Function evaluations of a score, and the score's error by the solver, on ``num`` examples of the split.

    ``solver_evaluations``: calls of the vector fields for the score of a batch, all flows together; mean over batches.
    ``solver_error_nats`` and ``solver_abs_error_nats``: mean of score - reference and of its absolute value, under the same noise,
    both in float64, where the reference has ``refine`` times smaller tolerances or as many times more steps.

    Raises ConfigError for a model without a continuous flow.
    """

    def __init__(self, num: int, refine: int):
        if num < 1 or refine < 2:
            raise ValueError(f"evaluators.solver: num must be at least 1 and refine at least 2; got {num} and {refine}")
        self.num, self.refine = num, refine

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        model = copy.deepcopy(context.model).double()
        flows = continuous_flows(model)
        if not flows:
            raise ConfigError("this model has no continuous flow: take solver out of evaluators")
        given = [flow.solver for flow in flows]
        refined = [solver.refined(self.refine) for solver in given]

        evaluations, signed, absolute = Statistics(), Statistics(), Statistics()
        data, size = context.examples(self.num), context.datamodule.eval_batch_size
        for index in torch.arange(len(data.x)).split(size)[context.rank :: context.world]:
            x, y = data[index].to(context.device)
            nats = []
            for solvers in (refined, given):
                for flow, solver in zip(flows, solvers):
                    flow.solver = solver
                with context.noise("solver", int(index[0])):
                    nats.append(model(x.double() if x.is_floating_point() else x, y).nats)
            evaluations.add(index[:1], torch.tensor([count_evaluations(model)]))
            signed.add(index, nats[1] - nats[0])
            absolute.add(index, (nats[1] - nats[0]).abs())
        evaluations, signed, absolute = (part.merged(context) for part in (evaluations, signed, absolute))
        return [
            record("solver_evaluations", evaluations.mean, evaluations.stderr, "calls", "exact", evaluations.count),
            record("solver_error_nats", signed.mean, signed.stderr, "nats", "estimate", signed.count),
            record("solver_abs_error_nats", absolute.mean, absolute.stderr, "nats", "estimate", absolute.count),
        ]
