"""A trained sub-network becomes int8 C firmware for Cortex-M, within its planned memory."""
