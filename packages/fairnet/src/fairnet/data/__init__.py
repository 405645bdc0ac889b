"""Image sets with a known shortcut: generators from any image set, readers of published layouts and of one's own tables.

`choose.load` finds them by name.
"""

from fairnet.data.biased import biased_images
from fairnet.data.parts import BiasedSet, Part
from fairnet.data.table import read_image_table

__all__ = ["BiasedSet", "Part", "biased_images", "read_image_table"]
