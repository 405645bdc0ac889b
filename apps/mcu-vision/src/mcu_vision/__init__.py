"""From a trained network to int8 firmware for Cortex-M: `quantise`, `integer` (reference), `codegen`, `firmware`, `workflow`."""
