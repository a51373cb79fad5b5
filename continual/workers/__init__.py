"""Workers: processes that work maps beside this one, each with the model at the same state.

A `Crew` is an `Executor` (see `execution`): it hands the items of a map to workers one by one, and
yields the results in the items' order, with the same bits as one process. ``processes`` keeps
workers on this machine, ``cluster`` on a cluster of Ray's; ``worker`` is a worker's side;
``travel`` turns functions, items and results into bytes. The model stays where it is: a worker
loads the base from its directory, comes to the state by the journal, and is sent later patches.

A worker that dies is replaced, and its item is done again. Leaves the choice of what is mapped to
everybody else::

    from continual.workers import Crew
    from continual.workers.processes import LocalProcesses

    with Crew(LocalProcesses(4)) as crew, continual.open(".cedit", executor=crew) as session:
        session.apply(corrections)
"""

from continual.workers.crew import Crew, WorkerLost

__all__ = ["Crew", "WorkerLost"]
