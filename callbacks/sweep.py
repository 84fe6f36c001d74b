"""What a sweep prints at its end, and its exit code."""

from __future__ import annotations

import sys
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback


class SweepSummary(Callback):
    """Collects the outcome of each job; after the last, a table, and exit code 1 if any failed."""

    def __init__(self):
        self.outcomes = []

    def on_job_end(self, config: Any, job_return: JobReturn, **kwargs: Any) -> None:
        self.outcomes.append(job_return._return_value)

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        from models.reopen import headline

        if not self.outcomes:
            print("the jobs ran in processes of another launcher: status.json in each run folder says how it ended", flush=True)
            return
        width = max(len(o.name) for o in self.outcomes)
        print(f"\n{len(self.outcomes)} jobs")
        for outcome in self.outcomes:
            print(f"  {outcome.name:<{width}}  {outcome.state:<9} {outcome.message or headline(outcome.folder)}")
        failed = [o for o in self.outcomes if o.state != "finished"]
        if failed:
            print(f"{len(failed)} of {len(self.outcomes)} jobs failed; the same command tries them again", flush=True)
            sys.exit(1)
