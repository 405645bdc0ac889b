"""CAN bus intrusion detection: readers, a streaming detector, the models of the comparative study, a generator."""
