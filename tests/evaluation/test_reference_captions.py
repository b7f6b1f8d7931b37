"""The reference captions that ship: enough, varied, and no two alike."""

import numpy as np

from diffmem.data.reference import REFERENCE, reference_prompts
from diffmem.evaluation.text_groups import near_duplicate_groups


def test_enough_captions_and_every_one_its_own_group():
    prompts = reference_prompts()
    texts = [prompt.text for prompt in prompts]
    assert len(prompts) >= 400 and prompts.source == REFERENCE
    assert all(prompt.problem is None and prompt.text == prompt.text.strip() for prompt in prompts)
    assert len(np.unique(near_duplicate_groups(texts))) == len(texts)


def test_styles_are_varied():
    texts = [prompt.text for prompt in reference_prompts()]
    upper = np.array([sum(c.isupper() for c in text) / len(text) for text in texts])
    words = np.array([len(text.split()) for text in texts])
    counts = {
        "lower case": (upper == 0).sum(), "title case": ((upper > 0.1) & (upper < 0.5)).sum(),
        "capitals": (upper > 0.5).sum(), "questions": sum("?" in text for text in texts),
        "digits": sum(any(c.isdigit() for c in text) for text in texts), "short": (words <= 3).sum(),
        "long": (words >= 12).sum(), "other scripts": sum(max(map(ord, text)) > 0x370 for text in texts),
    }  # fmt: skip
    assert min(counts.values()) >= 10, counts


def test_the_list_is_the_one_that_thresholds_were_made_for():
    # A caption was changed: raise the number in REFERENCE, then this fingerprint.
    assert (REFERENCE, reference_prompts().fingerprint) == ("diffmem-reference-1", "53ae6fc252c999c82040be39a20135b9")
