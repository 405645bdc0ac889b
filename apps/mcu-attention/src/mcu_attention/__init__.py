"""Attention state from EEG as Cortex-M firmware, calibrated on the device."""
