"""Folders of saved pipelines in which a test changes one thing."""

import json

import pytest
from safetensors.torch import load_file, save_file

from diffmem.errors import ModelError
from diffmem.models.target import Target

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def edit(file, **changes):
    """Set entries of a config."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite(file, change):
    """Save what `change` makes of a file's tensors."""
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def refused(folder, *words, **options):
    """Assert that the model is refused in one line with these words."""
    with pytest.raises(ModelError) as caught:
        Target.from_pretrained(folder, **options)
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert "\n" not in said
