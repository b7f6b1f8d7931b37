"""One folder per verb: its plan, its summary, its page."""

from diffmem.registry import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Arm": "diffmem.experiments._arm",
        "Experiment": "diffmem.experiments._experiment",
        "Generation": "diffmem.stages.generate",
        "LabPlan": "diffmem.experiments.lab.plan",
        "MonitorPlan": "diffmem.experiments.monitor.plan",
        "Matching": "diffmem.stages.match.stage",
        "Options": "diffmem.experiments._arm",
        "Reference": "diffmem.experiments._arm",
        "RobustnessPlan": "diffmem.experiments.robustness.conditions",
        "Run": "diffmem.experiments._run",
        "as_run": "diffmem.experiments._run",
        "audit_lora": "diffmem.experiments.against.lora",
        "run_experiment": "diffmem.experiments._experiment",
    },
)
