"""Attention state from EEG as Cortex-M firmware, calibrated on the device.

`calibration`  the last layer moved to the wearer: what the C computes, in single precision
`firmware`     a trained chain and its calibration as a folder of C, compiled and run
`recordings`   recordings as the stretches that the firmware reads
`workflow`     build and run, as the commands do; `report` draws a run
"""
