"""Learning-rate schedules: pure functions (step, max_steps) -> factor, so there is no state to lose.

``warmup_steps`` rises linearly from ``1 / warmup_steps`` to 1 and multiplies the rest.
"""

from __future__ import annotations

from math import cos, pi


class Schedule:
    """A factor on the optimizer's base learning rate at an optimizer step counted from 0."""

    def __init__(self, warmup_steps: int):
        if warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps must be 0 or more; got {warmup_steps}")
        self.warmup_steps = warmup_steps

    def decay(self, step: int, max_steps: int) -> float:
        """The factor without warm-up."""
        raise NotImplementedError

    def __call__(self, step: int, max_steps: int) -> float:
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * self.decay(step, max_steps)


class Constant(Schedule):
    """1 after the warm-up."""

    def decay(self, step: int, max_steps: int) -> float:
        return 1.0


class Exponential(Schedule):
    """``rate ** step`` (PixelCNN++: 0.999995 a step)."""

    def __init__(self, warmup_steps: int, rate: float):
        super().__init__(warmup_steps)
        self.rate = rate

    def decay(self, step: int, max_steps: int) -> float:
        return self.rate**step


class Drop(Schedule):
    """1 for the first ``after`` steps, then ``factor``: the rate changes with what is being learned."""

    def __init__(self, warmup_steps: int, after: int, factor: float):
        super().__init__(warmup_steps)
        self.after, self.factor = after, factor

    def decay(self, step: int, max_steps: int) -> float:
        return 1.0 if step < self.after else self.factor


class Cosine(Schedule):
    """Half a cosine from 1 to ``final`` over the whole run (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)."""

    def __init__(self, warmup_steps: int, final: float):
        super().__init__(warmup_steps)
        self.final = final

    def decay(self, step: int, max_steps: int) -> float:
        progress = min(1.0, max(0.0, (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps)))
        return self.final + (1 - self.final) * 0.5 * (1 + cos(pi * progress))


class Stages(Schedule):
    """Stage i of ``num_stages`` lasts ``growth**i`` parts of the run at factor ``final ** (i / (num_stages - 1))``.

    IWAE (Burda et al. 2016, arXiv:1509.00519, section 5): 8 stages of 3^i epochs at 0.001 * 10^(-i/7): num_stages 8,
    growth 3, final 0.1.
    """

    def __init__(self, warmup_steps: int, num_stages: int, growth: float, final: float):
        super().__init__(warmup_steps)
        if num_stages < 2:
            raise ValueError(f"schedule.num_stages must be at least 2; got {num_stages}")
        self.num_stages, self.growth, self.final = num_stages, growth, final
        lengths = [growth**i for i in range(num_stages)]
        self.ends = [sum(lengths[: i + 1]) / sum(lengths) for i in range(num_stages)]

    def decay(self, step: int, max_steps: int) -> float:
        progress = step / max(1, max_steps)
        stage = next((i for i, end in enumerate(self.ends) if progress < end), self.num_stages - 1)
        return self.final ** (stage / (self.num_stages - 1))
