"""The copying lab: training with known duplication, captions and mitigations."""

from diffmem.registry import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Monitor": "diffmem.experiments.monitor.loop",
        "TrainPlan": "diffmem.training.plan",
        "TrainResult": "diffmem.training.result",
        "load_plan": "diffmem.training.plan",
        "load_training_set": "diffmem.training.data",
    },
)
