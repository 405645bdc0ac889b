"""Autograd operations that keep less for the backward pass: bit masks, frozen norms, selected channels.

* `ondevice_train.ops.masks`: ReLU-like activations that save one bit an element, smooth ones a byte or half.
* `ondevice_train.ops.frozen_norm`: BatchNorm on fixed statistics that saves nothing of its input.
* `ondevice_train.ops.selective`: Conv2d and Linear that save only chosen input channels.
"""
