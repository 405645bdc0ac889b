"""Fine-tune on the device under a hard memory budget."""
