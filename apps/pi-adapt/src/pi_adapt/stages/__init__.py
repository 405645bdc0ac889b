"""One file per stage. A stage is ``run(config, folders, say) -> dict``: it reads the folders of earlier stages and fills its own."""
