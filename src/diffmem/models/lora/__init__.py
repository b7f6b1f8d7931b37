"""Load LoRAs into a pipeline of any family: everything that their files say, or nothing.

Loaders that take what fits and log the rest leave an audit of another model than the user's. Here every key of a file
belongs to a layer of the pipeline, and after loading each layer's change is compared with what the file says it is.
"""

from diffmem.models.lora.choice import LoraChoice, Loras, choices, lora_name, name_of
from diffmem.models.lora.load import Loaded, load_lora, load_loras

__all__ = ["Loaded", "LoraChoice", "Loras", "choices", "load_lora", "load_loras", "lora_name", "name_of"]
