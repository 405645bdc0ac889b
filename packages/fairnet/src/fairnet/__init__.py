"""Find the shortcut in an image model, cut it out, prove it.

`audit` (numpy alone): accuracies by group with intervals. `data`: sets with a shortcut. `methods`: Voronoi, FFW, their combination and
the baselines. `geometry`, `information`, `gates`: the parts they are made of. `compare`: paired runs over seeds.
"""
