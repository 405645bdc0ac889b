"""Image sets with a known shortcut: generators from any image set, and readers of one's own tables."""

from fairnet.data.biased import biased_images
from fairnet.data.parts import BiasedSet, Part
from fairnet.data.table import read_image_table

__all__ = ["BiasedSet", "Part", "biased_images", "read_image_table"]
