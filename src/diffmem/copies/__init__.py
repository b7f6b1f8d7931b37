"""Are generated images copies of training images? Descriptors, exact nearest neighbours, calibrated verdicts."""

from diffmem.registry import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "CopyIndex": "diffmem.copies.index",
        "CopyRule": "diffmem.copies.rule",
        "DESCRIPTORS": "diffmem.copies.descriptors",
        "copying_metrics": "diffmem.copies.copying_metrics",
        "make_descriptor": "diffmem.copies.descriptors",
        "near_duplicates": "diffmem.copies.duplicates",
    },
)
